# SPDX-License-Identifier: Apache-2.0
"""Manual pages and completion: every command and every option is there, and the shells' files are complete."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from netback.cli.app import netback

SCRIPT = Path(__file__).parents[2] / "scripts" / "manual.py"
SHELLS = (
    "bash-completion/completions/netback",
    "zsh/site-functions/_netback",
    "fish/vendor_completions.d/netback.fish",
)


def commands(
    group: click.Group, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*words, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))


def test_a_page_for_each_command(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SCRIPT, tmp_path], check=True)
    found = [*commands(netback)]
    pages = {
        path.name: path.read_text().replace("\\-", "-") for path in (tmp_path / "man" / "man1").iterdir()
    }
    assert set(pages) == {"netback.1", *(f"netback-{'-'.join(words)}.1" for words, _ in found)}
    for words, command in found:
        page = pages[f"netback-{'-'.join(words)}.1"]
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert all(option in page for option in parameter.opts), (words, parameter.opts)
    for name in SHELLS:
        assert "_NETBACK_COMPLETE" in (tmp_path / name).read_text()


def complete(*words: str) -> set[str]:
    """What bash would offer for the last word."""
    asked = {"COMP_WORDS": " ".join(("netback", *words)), "COMP_CWORD": str(len(words))}
    answer = subprocess.run(
        [sys.executable, "-c", "from netback.cli import main; main()"],
        env={**os.environ, "_NETBACK_COMPLETE": "bash_complete", **asked},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {line.partition(",")[2] for line in answer.stdout.splitlines()}


def test_words_are_completed() -> None:
    assert {"list", "lab"} <= complete("l")
    assert complete("se") == {"set"}
    assert {"--watch", "--json"} <= complete("list", "--")
    assert complete("set", "vif1.0", "--link", "") == {"up", "down"}
