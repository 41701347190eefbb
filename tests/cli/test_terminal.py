# SPDX-License-Identifier: Apache-2.0
"""What the commands that read show in a terminal of 80 columns, a real one; and that each of them has JSON."""

from __future__ import annotations

import asyncio
import os
import pty
import re
from pathlib import Path

import click
import pytest

from netback.cli.app import netback
from netback.cli.table import CLEAR, lay_out_wrapped
from tests.cli.commands import COMMAND, run, running
from tests.vif.guest import FRAME, SECONDS, join

CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
READS = ("doctor", "explain", "list", "rings", "show", "stats", "top", "trace")
"""`metrics` has Prometheus' text."""


async def in_terminal(*words: str | Path, looks: int = 0, **environment: str) -> str:
    """What a command writes to a terminal of 80 columns and 60 lines. `looks`: it is ended after so many pictures."""
    ours, theirs = pty.openpty()
    known = {"TERM": "xterm", "COLUMNS": "80", "LINES": "60", "LANG": "C.UTF-8", "PYTHONUTF8": "1"}
    kept = {key: value for key, value in os.environ.items() if key not in ("XENSTORED_PATH", "NO_COLOR")}
    try:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, *map(str, words), stdout=theirs, env=kept | known | environment
        )
    finally:
        os.close(theirs)
    text = b""

    def read() -> None:
        nonlocal text
        while True:
            try:
                text += os.read(ours, 65536)
            except OSError:  # EIO: the command has ended (pty(7))
                return
            if looks and text.count(CLEAR.encode()) >= looks and process.returncode is None:
                process.terminate()

    async with asyncio.timeout(SECONDS):
        await asyncio.to_thread(read)
        await process.wait()
    os.close(ours)
    return text.decode()


@pytest.mark.parametrize("command", READS)
def test_each_command_that_reads_has_json(command: str) -> None:
    found = netback.get_command(click.Context(netback), command)
    assert found is not None
    assert "--json" in [name for option in found.params for name in option.opts]


async def test_lines_fit_80_columns(xen: Path) -> None:
    """A guest without any feature, with a long name, whose device has an error."""
    async with running("serving domain 0", "run", "--dir", xen), join(xen, domid=1) as guest:
        await run("attach", "1", "--net", "null", "--dir", xen)
        await guest.store.write(f"{guest.path}/{'long' * 4}", "x" * 300)
        await guest.connect(feature_sg="0", feature_no_csum_offload="1")
        assert await guest.answer(guest.send(FRAME[:10])) == -1
        for words in (
            ("list",),
            ("show", "1"),
            ("explain", "1", "--seconds", "0"),
            ("rings", "1"),
            ("rings", "1", "--slots"),
            ("stats", "1"),
            ("top", "--count", "2", "--interval", "0.1"),
        ):
            text = CONTROL.sub("", await in_terminal(*words, "--dir", xen))
            assert "vif1.0" in text or words[0] in ("explain", "rings", "stats")
            assert max(map(len, text.splitlines())) <= 80, words


async def test_colours(xen: Path) -> None:
    async with running("serving domain 0", "run", "--dir", xen), join(xen, domid=1) as guest:
        await run("attach", "1", "--net", "null", "--dir", xen)
        await guest.connect()
        guest.post()
        assert "\x1b[96m■" in await in_terminal("rings", "1", "--dir", xen)
        assert "\x1b[96mr" in await in_terminal("rings", "1", "--dir", xen, PYTHONIOENCODING="ascii")
        plain = await in_terminal("rings", "1", "--dir", xen, NO_COLOR="1")
        assert "\x1b" not in plain
        assert re.search(r"^  0 r\.{15} ", plain, re.M)


async def test_watching_fills_the_terminal_and_no_more(xen: Path) -> None:
    """A request without a response grows old."""
    async with running("serving domain 0", "run", "--dir", xen), join(xen, domid=1) as guest:
        await run("attach", "1", "--net", "null", "--dir", xen)
        await guest.connect()
        guest.post()
        watch = ("rings", "1", "--watch", "--interval", "0.6", "--dir", xen)
        text = await in_terminal(*watch, looks=4, NO_COLOR="1", LINES="20")
        pictures = text.split(CLEAR)[1:4]
        assert {len(picture.splitlines()) for picture in pictures} == {19}
        assert re.search(r"^  0 r\.{15}", pictures[0], re.M)
        assert re.search(r"^  0 R\.{15}", pictures[2], re.M)


def test_a_long_last_column_goes_on_below_itself() -> None:
    rows = [("a", "one two three"), ("bb", "")]
    assert lay_out_wrapped(rows, 12) == ["a   one two", "    three", "bb"]
    assert lay_out_wrapped(rows, None) == ["a   one two three", "bb"]
    assert lay_out_wrapped([], 12) == []
    assert lay_out_wrapped([("a", "x" * 12)], 3) == ["a  xxxxx", "   xxxxx", "   xx"]
