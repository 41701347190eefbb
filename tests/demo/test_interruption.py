# SPDX-License-Identifier: Apache-2.0
"""Interrupted at any instant, a demo leaves no process, link, namespace, shared memory or file."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import pytest

from .harness import HANG_SECONDS, Place, finish, new_place, wait_until

SEED = 0xDE30
INSTANTS = 20
LATEST = 2.0
"""Seconds after its first trace, in which each variant's transfers alone take longer."""
EARLY = 4
"""So many of the instants are counted from the start of Python instead, when there is no trace yet."""
AT_ONCE = 4
VARIANTS = (
    ("--tier", "taps"),
    ("--tier", "veth"),
    ("--tier", "python"),
    ("--tier", "taps", "--break", "restart"),
    ("--tier", "veth", "--break", "csum"),
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def namespaces() -> set[str]:
    """Every mounted namespace; only those outlive their processes."""
    return {line for line in Path("/proc/self/mounts").read_text().splitlines() if line.startswith("nsfs ")}


def interrupt(
    instant: float, early: bool, words: tuple[str, ...], number: signal.Signals
) -> tuple[int, list[str]]:
    """Send a signal to a demo at an instant: its exit code, and what it left behind."""
    with new_place() as place:
        process = place.start(*words, seconds=LATEST)
        assert early or wait_until(lambda: any(place.tmp.iterdir()))
        try:
            process.wait(timeout=instant)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        _, err = process.communicate(timeout=HANG_SECONDS)
        interrupted = process.returncode == 128 + number
        assert early or not interrupted or "everything is removed" in err
        assert not interrupted or "Traceback" not in err
        return process.returncode, place.left(*(() if interrupted else ("netback-demo.pcapng",)))


def test_twenty_instants() -> None:
    """A signal during the first imports ends Python before the demo handles it; there is nothing to remove yet."""
    choose = random.Random(SEED)
    instants = [choose.uniform(0, 1 if number < EARLY else LATEST) for number in range(INSTANTS)]
    early = [number < EARLY for number in range(INSTANTS)]
    before = namespaces()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        ended = list(threads.map(interrupt, instants, early, cycle(VARIANTS), cycle(SIGNALS)))
    assert [(instant, left) for instant, (_, left) in zip(instants, ended, strict=True) if left] == []
    assert namespaces() == before
    codes = [code for code, _ in ended]
    assert all(codes), "a demo ended before its signal"


def test_under_nohup_the_terminal_may_go(place: Place) -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = place.start("--tier", "python")
    finally:
        signal.signal(signal.SIGHUP, former)
    assert wait_until(lambda: place.child("netfront") is not None)
    for number in (signal.SIGHUP, signal.SIGINT):
        process.send_signal(number)
    assert finish(process).code == 128 + signal.SIGINT


def test_a_second_signal_does_not_disturb_the_first(place: Place) -> None:
    process = place.start("--tier", "veth")
    assert wait_until(lambda: place.child("netfront") is not None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
    ended = finish(process)
    assert ended.code in (128 + signal.SIGTERM, 128 + signal.SIGINT), "signals of one moment have no order"
    assert len(ended.err.splitlines()) == 1
    assert place.left() == []


@pytest.mark.parametrize("tier", ["taps", "veth", "python"])
def test_no_process_outlives_a_killed_parent(place: Place, tier: str) -> None:
    """After kill -9 no process is left to remove the directory; the kernel ends the others and removes their links."""
    process = place.start("--tier", tier)
    assert wait_until(lambda: place.child("netfront") is not None)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert wait_until(lambda: place.processes() == [])
    assert not [left for left in place.left() if not left.startswith("netback-demo-")]


def test_a_capture_of_an_earlier_demo_stays(place: Place) -> None:
    capture = place.cwd / "netback-demo.pcapng"
    capture.write_text("precious")
    process = place.start("--tier", "python")
    assert wait_until(lambda: place.child("backend") is not None)
    process.send_signal(signal.SIGINT)
    assert finish(process).code == 128 + signal.SIGINT
    assert capture.read_text() == "precious"
