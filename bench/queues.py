# SPDX-License-Identifier: Apache-2.0
"""Two queues on two cores beside one on one core: full rings alone, a null peer, one thread for each queue."""

from __future__ import annotations

import os
import threading
from time import perf_counter_ns

from rich.progress import Progress

from .report import Row
from .rig import SHAPES, Ring
from .rings import drain

FILLS = 2000
RATIO = 1.6
CASES = (("TX", "1500 B"), ("RX", "1500 B"), ("RX", "64 KiB GSO"))


def frames_per_second(rings: list[Ring]) -> float:
    """FILLS full rings of each queue, all at the same time, each queue on a core of its own."""
    cores = sorted(os.sched_getaffinity(0))
    began: list[int] = []
    ready = threading.Barrier(len(rings), lambda: began.append(perf_counter_ns()))

    def serve(ring: Ring, core: int) -> None:
        os.sched_setaffinity(0, {core})
        ready.wait()
        for _ in range(FILLS):
            drain(ring)

    threads = [
        threading.Thread(target=serve, args=(ring, core)) for ring, core in zip(rings, cores, strict=False)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    frames = FILLS * sum(ring.shape.frames for ring in rings)
    return frames * 1e9 / (perf_counter_ns() - began[0])


def measure(rounds: int, seconds: float, progress: Progress) -> list[Row]:
    """A row for each case; none on a machine with one core."""
    if len(os.sched_getaffinity(0)) < 2:
        return []
    turns = max(3, round(2 * rounds * seconds))
    task = progress.add_task("two queues", total=turns * len(CASES))
    rows = []
    for way, name in CASES:
        rings = [Ring(SHAPES[name], tx=way == "TX") for _ in range(2)]
        samples: dict[str, list[float]] = {"two": [], "one": []}
        for _ in range(turns):
            samples["one"].append(frames_per_second(rings[:1]))
            samples["two"].append(frames_per_second(rings))
            progress.advance(task)
        for ring in rings:
            ring.check()
        row = Row("rings alone", f"{way} {name}, two queues", "frames/s", samples)
        ratio = row.ratio("two", "one")
        rows.append(row.judged(f"ratio >= {RATIO}", ratio >= RATIO, {"ratio": ratio}))
    return rows
