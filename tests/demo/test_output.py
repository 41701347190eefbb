# SPDX-License-Identifier: Apache-2.0
"""The output on a terminal: every result, and only commands that exist."""

from __future__ import annotations

import re
import shlex
import shutil

from netback.cli.app import netback
from netback.demo.command import demo

from .harness import Place, run

HEADINGS = ("xenbus", "ping", "TCP", "capture", "next")


def test_a_terminal_shows_everything_in_order(place: Place) -> None:
    ended = run(place, "--tier", "veth")
    assert ended.code == 0, ended.err
    assert ended.err == ""
    first, *rest = ended.out.splitlines()
    assert first.startswith("tier veth: ")
    found = [line for line in rest if line in HEADINGS]
    assert found == list(HEADINGS)
    assert re.search(r"Connected +Connected", ended.out)
    assert re.search(r"\d+ of \d+ came back", ended.out)
    assert len(re.findall(r"^ +(offload|none) +(guest → host|host → guest) +[\d.]+", ended.out, re.M)) == 4
    assert "\x1b" not in ended.out


def test_next_commands_exist(place: Place) -> None:
    ended = run(place, "--tier", "python", "--json")
    assert ended.code == 0, ended.err
    names = {"tshark", "netback"}
    commands = [shlex.split(command) for command in ended.data["next"]]
    assert {program for program, *_ in commands} == names
    for program, *words in commands:
        if program == "netback":
            check_command(words)
        else:
            assert shutil.which(program)


def check_command(words: list[str]) -> None:
    """One of netback's commands takes these words."""
    context = netback.make_context("netback", [*words])
    assert netback.get_command(context, words[0]) is not None
    if words[0] == "demo":
        demo.make_context("demo", words[1:])


def test_wrong_options_are_named(place: Place) -> None:
    for words in (["--tier", "moon"], ["--break", "moon"], ["--seconds", "1"]):
        ended = run(place, *words)
        assert ended.code == 2
        assert words[0] in ended.err
