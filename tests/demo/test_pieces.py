# SPDX-License-Identifier: Apache-2.0
"""The demo's smaller parts alone."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from netback.demo.child import Child, DemoError
from netback.demo.report import Crossing, Ping
from netback.demo.stacks import PIECE, Payload, Tally

from .harness import wait_until


def pour(payload: Payload, tally: Tally) -> None:
    while piece := payload.next():
        tally.add(memoryview(piece))


def test_a_checked_payload_tells_damage_from_health() -> None:
    payload, whole, damaged = Payload(60, 3 * PIECE, True), Tally(True), Tally(True)
    while piece := payload.next():
        whole.add(memoryview(piece))
        damaged.add(memoryview(piece[:-1] + bytes([piece[-1] ^ 1])))
    assert payload.report()["bytes"] == whole.report()["bytes"] == damaged.report()["bytes"] == 3 * PIECE
    assert payload.report()["digest"] == whole.report()["digest"] != damaged.report()["digest"]


def test_pieces_of_a_checked_payload_cannot_be_swapped() -> None:
    payload = Payload(60, 2 * PIECE, True)
    first, second = payload.next(), payload.next()
    tally = Tally(True)
    for piece in (second, first):
        tally.add(memoryview(piece))
    assert tally.report()["digest"] != payload.report()["digest"]


def test_a_payload_ends_with_its_time() -> None:
    assert Payload(0, 1 << 40, False).next() == b""


def test_pings() -> None:
    assert Ping.of([3.0, None, 1.0, 2.0]) == Ping(4, 3, 1.0, 2.0, 3.0)
    assert Ping.of([None]).received == 0


def test_a_crossing_without_any_notification() -> None:
    before = {"frames": 1, "slots": 2, "bytes": 3, "notifications": 4}
    after = {"frames": 11, "slots": 22, "bytes": 33, "notifications": 4}
    crossing = Crossing.between(before, after)
    assert crossing == Crossing(10, 20, 30, 0)
    assert all(map(math.isfinite, crossing.per_notification))


async def test_a_child_says_why_it_cannot(tmp_path: Path) -> None:
    child = Child("backend", {"directory": str(tmp_path / "nowhere"), "net": "null"}, log=tmp_path / "log")
    try:
        with pytest.raises(DemoError, match="nowhere"):
            await child.ready()
        with pytest.raises(DemoError):
            await child.call("counters")
    finally:
        child.kill()
    child.kill()


async def test_a_child_that_fails_without_a_word_is_quoted(tmp_path: Path) -> None:
    child = Child("xen", {"no such argument": 1}, log=tmp_path / "log")
    try:
        with pytest.raises(DemoError, match=r"xen: the process ended unexpectedly .*TypeError"):
            await child.ready()
    finally:
        child.kill()


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    """Also a stopped child, which cannot notice anything itself."""
    parent = """
import asyncio, os, signal, sys
from pathlib import Path
from netback.demo.child import Child
async def main():
    child = Child("xen", {"directory": sys.argv[1] + "/xen"}, log=Path(sys.argv[1], "log"))
    await child.ready()
    os.kill(child.pid, signal.SIGSTOP)
    print(child.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", parent, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    pid = int(ended.stdout)
    assert wait_until(
        lambda: not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()
    )
