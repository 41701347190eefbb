# SPDX-License-Identifier: Apache-2.0
"""What a hundred idle connected vifs cost: wake-ups, memory, and the throughput of one busy vif beside them.

Wake-ups and memory are read from /proc.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import Progress

from .backends import DOMID, Netback, netback
from .endtoend import TO_GUEST, tcp
from .report import Row
from .topology import Topology, await_line, running, topology

VIFS = 100
KIB_EACH = 256
UNCHANGED = 0.9
SETTLE = 1.0
"""The longest wait until the last vif is connected."""
GUESTS = Path(__file__).with_name("guests.py")


@contextmanager
def idle_guests(at: Netback) -> Iterator[None]:
    command = (sys.executable, str(GUESTS), str(at.directory), str(DOMID + 1), str(VIFS))
    with running(command, stdout=subprocess.PIPE) as guests:
        await_line(guests, "connected")
        yield


def pss(pid: int) -> float:
    """The proportional set size of a process in KiB (proc(5), smaps_rollup)."""
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return float(found.group(1))


def switches(pid: int) -> int:
    """Context switches of all threads of a process since its start."""
    counts = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        status = (thread / "status").read_text()
        counts += sum(int(count) for count in re.findall(r"voluntary_ctxt_switches:\s+(\d+)", status))
    return counts


def wakes(pid: int, seconds: float) -> float:
    """Context switches a second."""
    before = switches(pid)
    time.sleep(seconds)
    return (switches(pid) - before) / seconds


def round_of(at: Topology, seconds: float, samples: dict[str, list[float]]) -> None:
    """Measure one backend alone, then with idle vifs."""
    throughput = tcp(TO_GUEST)
    with netback(at) as ours:
        samples["alone"].append(throughput(at, seconds))
        before = pss(ours.backend)
        with idle_guests(ours):
            time.sleep(SETTLE)
            samples["memory"].append((pss(ours.backend) - before) / VIFS)
            samples["wakes"].append(wakes(ours.backend, seconds))
            samples["beside"].append(throughput(at, seconds))


def measure(rounds: int, seconds: float, progress: Progress) -> list[Row]:
    samples: dict[str, list[float]] = {"alone": [], "beside": [], "memory": [], "wakes": []}
    task = progress.add_task("idle", total=rounds)
    with tempfile.TemporaryDirectory(prefix="nbb") as directory, topology(Path(directory)) as at:
        for _ in range(rounds):
            round_of(at, seconds, samples)
            progress.advance(task)
    return rows(samples)


def rows(samples: dict[str, list[float]]) -> list[Row]:
    part = f"{VIFS} idle vifs"
    woken = Row(part, "wake-ups", "/s", {"netback": samples["wakes"]})
    memory = Row(part, "memory of each", "KiB", {"netback": samples["memory"]})
    beside = {"netback": samples["beside"], "without them": samples["alone"]}
    throughput = Row(part, "TCP to guest", "Gbit/s", beside)
    ratio = throughput.ratio("netback", "without them")
    return [
        woken.judged("0", woken.median("netback") == 0),
        memory.judged(f"< {KIB_EACH}", memory.median("netback") < KIB_EACH),
        throughput.judged(f"ratio >= {UNCHANGED}", ratio >= UNCHANGED, {"ratio": ratio}),
    ]
