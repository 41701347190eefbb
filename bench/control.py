# SPDX-License-Identifier: Apache-2.0
"""What a guest gets by its control ring: the cost of a frame's hash, and rings of staged pages beside granted ones."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter_ns

from rich.progress import Progress

from netback.dataplane.toeplitz import KEY_BYTES, Toeplitz

from .report import Row
from .rig import SHAPES, Ring
from .rings import CPU, drain, pinned

FILLS = 200
HASHES = 100_000
ALL_TYPES = 15
NOT_SLOWER = 1.03


def ipv4() -> bytes:
    addresses = socket.inet_aton("10.99.0.1") + socket.inet_aton("10.99.0.2")
    return b"\x08\x00" + struct.pack(">BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0) + addresses


def ipv6() -> bytes:
    ends = [socket.inet_pton(socket.AF_INET6, f"2001:db8::{end}") for end in (1, 2)]
    return b"\x86\xdd" + struct.pack(">IHBB", 6 << 28, 20, 6, 64) + b"".join(ends)


@dataclass(frozen=True, slots=True)
class Hash:
    """One kind of frame, TCP both."""

    name: str
    packet: bytes
    most: float
    """The maximum cost in nanoseconds."""
    samples: list[float] = field(default_factory=list)

    def sample(self) -> None:
        frame = bytes(12) + self.packet + struct.pack(">HH", 5001, 5002) + bytes(16)
        hashes = Toeplitz(bytes(range(KEY_BYTES)), ALL_TYPES)
        start = perf_counter_ns()
        hashes.cost(frame, HASHES)
        self.samples.append((perf_counter_ns() - start) / HASHES)

    def row(self) -> Row:
        row = Row("control ring", f"hash of TCP over {self.name}", "ns/frame", {"netback": self.samples})
        return row.judged(f"<= {self.most:.0f}", row.median("netback") <= self.most)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two equal rings, the pages of one of them staged."""

    name: str
    staged: Ring
    granted: Ring
    samples: dict[str, list[float]] = field(default_factory=lambda: {"staged": [], "granted": []})

    def sample(self) -> None:
        """Medians of FILLS full rings each, in turn, in nanoseconds a frame."""
        pairs = [(drain(self.staged), drain(self.granted)) for _ in range(FILLS)]
        for values, name in zip(zip(*pairs, strict=True), self.samples, strict=True):
            self.samples[name].append(median(values) / self.staged.shape.frames)
        self.staged.check()

    def row(self) -> Row:
        row = Row("control ring", self.name, "ns/frame", self.samples)
        ratio = row.ratio("staged", "granted")
        return row.judged(f"ratio <= {NOT_SLOWER}", ratio <= NOT_SLOWER, {"ratio": ratio})


def make(way: str, name: str) -> Pair:
    staged, granted = (Ring(SHAPES[name], tx=way == "TX") for _ in range(2))
    staged.stage()
    return Pair(f"{way} {name}", staged, granted)


def measure(rounds: int, seconds: float, progress: Progress) -> list[Row]:
    cases: list[Hash | Pair] = [Hash("IPv4", ipv4(), 15), Hash("IPv6", ipv6(), 30)]
    cases += [make(way, name) for way in ("TX", "RX") for name in SHAPES]
    turns = max(3, round(rounds * seconds))
    task = progress.add_task("control ring", total=turns)
    with pinned(CPU):
        for _ in range(turns):
            for case in cases:
                case.sample()
            progress.advance(task)
    return [case.row() for case in cases]
