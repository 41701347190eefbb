# SPDX-License-Identifier: Apache-2.0
"""What a frame costs the backend on one core with a null peer, beside the bare copies of floor.c.

Both are measured in turn on the same pages, a full ring each time; nothing is subtracted from either.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import median
from time import perf_counter_ns

from rich.progress import Progress

from netback.observe.choice import RecordMode
from netback.observe.recorder import MEMORY

from . import allocations
from .native import build
from .report import Row
from .rig import LIMITED, SHAPES, Ring

CPU = 1
FILLS = 400
RATIO = 1.2
ABOVE = 60.0
FILTERED = 30.0
"""Nanoseconds that `antispoof` may cost a frame."""
PRIVATE_BYTES = 512 * 1024
HEADROOM = 64
"""Before each frame, as in the backend's private memory: frames begin on cache lines."""


class Copy(ctypes.Structure):
    _fields_ = (("to", ctypes.c_void_p), ("source", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Floor:
    """The bare copies of a full ring."""

    def __init__(self, ring: Ring) -> None:
        library = ctypes.CDLL(str(build("floor.c", "-shared", "-fPIC")))
        self._run = library.copy_all
        self._run.restype = ctypes.c_uint64
        self._private = mmap.mmap(-1, PRIVATE_BYTES)
        copies = ring.copies(ctypes.addressof(ctypes.c_char.from_buffer(self._private)) + HEADROOM)
        self._copies = (Copy * len(copies))(*(Copy(*copy) for copy in copies))
        self._count = ctypes.c_size_t(len(copies))

    def run(self) -> int:
        elapsed: int = self._run(self._copies, self._count)
        return elapsed


def drain(ring: Ring) -> int:
    """Nanoseconds until the backend has written every response of a full ring."""
    step, queue = ring.worker.step, ring.queue
    ring.fill()
    start = perf_counter_ns()
    while step(queue):
        pass
    return perf_counter_ns() - start


@dataclass(slots=True)
class Case:
    way: str
    name: str
    ring: Ring
    floor: Floor
    ours: list[float]
    copies: list[float]

    def sample(self) -> None:
        """Medians of FILLS full rings each, in turn, in nanoseconds a frame."""
        frames = self.ring.shape.frames
        pairs = [(drain(self.ring), self.floor.run()) for _ in range(FILLS)]
        self.ours.append(median(ours for ours, _ in pairs) / frames)
        self.copies.append(median(copies for _, copies in pairs) / frames)
        self.ring.check()

    def row(self) -> Row:
        row = Row(
            "rings alone",
            f"{self.way} {self.name}",
            "ns/frame",
            {"netback": self.ours, "copies": self.copies},
        )
        ours, floor = row.median("netback"), row.median("copies")
        large = self.ring.shape.gso
        met = ours <= RATIO * floor if large else ours - floor <= ABOVE
        notes = {"ns/slot": ours / self.ring.shape.slots, "above": ours - floor, "ratio": ours / floor}
        target = f"ratio <= {RATIO}" if large else f"above <= {ABOVE:.0f}"
        return row.judged(target, met, notes)


@dataclass(slots=True)
class Beside:
    """Full rings with something that costs time, and the same without it, in turn."""

    part: str
    name: str
    rings: dict[str, Ring]
    most: float | None = None
    """Nanoseconds that it may cost a frame."""
    samples: dict[str, list[float]] = field(init=False)

    def __post_init__(self) -> None:
        self.samples = {name: [] for name in self.rings}

    def sample(self) -> None:
        runs: dict[str, list[int]] = {name: [] for name in self.rings}
        for _ in range(FILLS):
            for name, ring in self.rings.items():
                runs[name].append(drain(ring))
        for name, ring in self.rings.items():
            self.samples[name].append(median(runs[name]) / ring.shape.frames)
            ring.check()

    def row(self) -> Row:
        row = Row(self.part, self.name, "ns/frame", self.samples)
        added = median(ours - plain for plain, ours in zip(*self.samples.values(), strict=True))
        if self.most is None:
            return replace(row, notes={"above": added})
        return row.judged(f"above < {self.most:.0f}", added < self.most, {"above": added})


def filtered(name: str) -> Beside:
    shape = SHAPES[name]
    rings = {"without": Ring(shape, tx=True), "netback": Ring(shape, tx=True, filtered=True)}
    return Beside("filters", f"antispoof, TX {name}", rings, FILTERED)


def recorded(way: str, name: str, mode: RecordMode) -> Beside:
    shape, tx = SHAPES[name], way == "TX"
    rings = {"without": Ring(shape, tx=tx), "netback": Ring(shape, tx=tx, record=mode)}
    return Beside("recorder", f"{mode}, {way} {name}", rings)


def make(way: str, name: str, *, limited: bool = False) -> Case:
    ring = Ring(SHAPES[name], tx=way == "TX", rate=LIMITED if limited else None)
    return Case(way, f"{name}, limited" if limited else name, ring, Floor(ring), [], [])


@contextmanager
def pinned(cpu: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu} & before or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure(rounds: int, seconds: float, progress: Progress) -> list[Row]:
    cases = [make(way, name) for way in ("TX", "RX") for name in SHAPES]
    cases += [make(way, "1500 B", limited=True) for way in ("TX", "RX")]
    turns = max(3, round(2 * rounds * seconds))
    others = [filtered(name) for name in SHAPES]
    others += [recorded(way, name, mode) for mode in MEMORY for way in ("TX", "RX") for name in SHAPES]
    task = progress.add_task("rings alone", total=turns)
    with pinned(CPU):
        for _ in range(turns):
            for case in (*cases, *others):
                case.sample()
            progress.advance(task)
    return [case.row() for case in (*cases, *others)] + allocations.measure_alone()
