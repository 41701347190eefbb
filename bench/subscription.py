# SPDX-License-Identifier: Apache-2.0
"""What a subscriber to the statistics of a thousand vifs costs: processor time of the backend, with it and without."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import Progress

from .backends import NETBACK, emulator, until
from .report import Row
from .topology import Namespace, await_line, running, topology

VIFS = 1000
MOST = 5.0
"""Percent of a core."""
GUESTS = Path(__file__).with_name("guests.py")
SUBSCRIBER = """
import sys
from pathlib import Path
from netback.control import Client
with Client(Path(sys.argv[1])) as client, client.statistics(1.0) as statistics:
    for snapshot in statistics.moments():
        print(len(snapshot), statistics.lost, flush=True)
"""


@contextmanager
def backend(directory: Path, wire: Namespace) -> Iterator[int]:
    """A backend with connected vifs, each on a tap of its own; its process id."""
    at = ("--dir", str(directory))
    run = wire.command(*NETBACK, "run", "--workers", "1", "--net", "tap", *at)
    guests = (sys.executable, str(GUESTS), str(directory), "1", str(VIFS), "tap")
    with emulator(directory), running(run, quiet=True) as process:
        until((directory / "control.sock").exists, "the backend")
        with running(guests, stdout=subprocess.PIPE) as joined:
            await_line(joined, "connected")
            yield process.pid


def used(pid: int) -> float:
    """Seconds of processor time that a process has used (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percent(pid: int, seconds: float) -> float:
    before, start = used(pid), time.monotonic()
    time.sleep(seconds)
    return 100 * (used(pid) - before) / (time.monotonic() - start)


def measure(rounds: int, seconds: float, progress: Progress) -> list[Row]:
    samples: dict[str, list[float]] = {"netback": [], "without it": []}
    lost = 0
    task = progress.add_task("subscription", total=rounds)
    with tempfile.TemporaryDirectory(prefix="nbb") as name, topology(Path(name)) as at:
        directory = Path(name) / "xen"
        directory.mkdir(mode=0o700)
        with backend(directory, at.wire) as pid:
            for _ in range(rounds):
                samples["without it"].append(percent(pid, 5 * seconds))
                with running(
                    (sys.executable, "-c", SUBSCRIBER, str(directory)), stdout=subprocess.PIPE
                ) as reader:
                    await_line(reader, f"{VIFS} ")
                    samples["netback"].append(percent(pid, 5 * seconds))
                    reader.terminate()
                    assert reader.stdout is not None
                    lost += max(int(line.split()[1]) for line in reader.stdout)
                progress.advance(task)
    row = Row("control socket", f"statistics of {VIFS} vifs every second", "% of a core", samples)
    cost = row.median("netback") - row.median("without it")
    return [row.judged(f"< {MOST:.0f} more", cost < MOST, {"more": cost, "lost": float(lost)})]
