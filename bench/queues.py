# SPDX-License-Identifier: Apache-2.0
"""Two queues on two cores beside one on one core: full rings alone, a null peer.

Each queue has a process: a worker needs no GIL, but this part's filling of the rings does.
"""

from __future__ import annotations

import multiprocessing
import os
from functools import cache
from multiprocessing.pool import Pool
from multiprocessing.synchronize import Barrier
from time import perf_counter_ns

from rich.progress import Progress

from .report import Row
from .rig import SHAPES, Ring
from .rings import drain

FILLS = 4000
RATIO = 1.6
CASES = (("TX", "1500 B"), ("RX", "1500 B"), ("RX", "64 KiB GSO"))

both: Barrier


def begin(gate: Barrier) -> None:
    """In each process of the pool: where the two queues wait for each other."""
    global both
    both = gate


@cache
def ring(way: str, name: str) -> Ring:
    return Ring(SHAPES[name], tx=way == "TX")


def serve(way: str, name: str, core: int, alone: bool) -> float:
    """Frames per second of FILLS full rings on a core."""
    os.sched_setaffinity(0, {core})
    used = ring(way, name)
    drain(used)
    if not alone:
        both.wait()
    start = perf_counter_ns()
    for _ in range(FILLS):
        drain(used)
    elapsed = perf_counter_ns() - start
    used.check()
    return FILLS * used.shape.frames * 1e9 / elapsed


def sample(pool: Pool, way: str, name: str, cores: list[int]) -> float:
    """Frames per second of a queue on each of the cores, together."""
    alone = len(cores) == 1
    return sum(pool.starmap(serve, [(way, name, core, alone) for core in cores], chunksize=1))


def measure(rounds: int, seconds: float, progress: Progress) -> list[Row]:
    """A row for each case; none on a machine with one core."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        return []
    turns = max(3, round(2 * rounds * seconds))
    task = progress.add_task("two queues", total=turns * len(CASES))
    context = multiprocessing.get_context("spawn")
    rows = []
    with context.Pool(2, begin, (context.Barrier(2),)) as pool:
        for way, name in CASES:
            samples: dict[str, list[float]] = {"two": [], "one": []}
            for _ in range(turns):
                samples["one"].append(sample(pool, way, name, cores[:1]))
                samples["two"].append(sample(pool, way, name, cores))
                progress.advance(task)
            row = Row("rings alone", f"{way} {name}, two queues", "frames/s", samples)
            ratio = row.ratio("two", "one")
            rows.append(row.judged(f"ratio >= {RATIO}", ratio >= RATIO, {"ratio": ratio}))
    return rows
