# SPDX-License-Identifier: Apache-2.0
"""What a demo found out, as values. The same ones are shown and written as JSON."""

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Chosen:
    """The tier that was taken, and why."""

    tier: str
    means: str
    reason: str


@dataclass(frozen=True, slots=True)
class Step:
    """Both ends' states from a moment on."""

    milliseconds: float
    backend: str
    frontend: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Round trips, in microseconds."""

    sent: int
    received: int
    least: float
    median: float
    most: float

    @classmethod
    def of(cls, trips: list[float | None]) -> Self:
        back = sorted(trip for trip in trips if trip is not None) or [0.0]
        lost = trips.count(None)
        return cls(len(trips), len(trips) - lost, back[0], statistics.median(back), back[-1])


@dataclass(frozen=True, slots=True)
class Crossing:
    """What crossed a ring in one direction."""

    frames: int
    slots: int
    bytes: int
    notifications: int

    @classmethod
    def between(cls, before: Mapping[str, int], after: Mapping[str, int]) -> Self:
        return cls(**{name: after[name] - before[name] for name in cls.__slots__})

    @property
    def per_notification(self) -> tuple[float, float, float]:
        """Frames, slots, bytes."""
        told = max(self.notifications, 1)
        return self.frames / told, self.slots / told, self.bytes / told


@dataclass(frozen=True, slots=True)
class Flow:
    """A TCP transfer: how fast, and what it was on the ring."""

    direction: str
    segmentation: bool
    """Whether the ring carried frames that a later link cuts, of up to 64 KiB."""
    tool: str
    gbit_s: float
    crossing: Crossing

    def as_data(self) -> dict[str, Any]:
        frames, slots, size = self.crossing.per_notification
        per = {"frames": frames, "slots": slots, "bytes": size}
        return {**asdict(self), "per_notification": per}


@dataclass(frozen=True, slots=True)
class CaptureFile:
    """Where the frames of the last phase are."""

    path: str
    frames: int


@dataclass(frozen=True, slots=True)
class LostFlags:
    """What becomes of a connection when nobody knows that its checksums are blank."""

    ping_before: Ping
    gbit_s_before: float
    ping_after: Ping
    tcp_after: str
    checksum_errors: int
    """Segments that the host's stack threw away."""


@dataclass(frozen=True, slots=True)
class Survivor:
    """A transfer that went on over a kill."""

    direction: str
    bytes: int
    stall_ms: float
    """The longest time without a byte."""
    sha256: str
    intact: bool


@dataclass(frozen=True, slots=True)
class Restart:
    """A backend that was killed, and what the guest's connections had of it."""

    killed_pid: int
    new_pid: int
    down_ms: float
    """From the kill until the new process served the rings."""
    states: tuple[str, str]
    transfers: tuple[Survivor, ...]


@dataclass(slots=True)
class Report:
    """Everything."""

    chosen: Chosen | None = None
    timeline: list[Step] = field(default_factory=list)
    ping: Ping | None = None
    throughput: list[Flow] = field(default_factory=list)
    capture: CaptureFile | None = None
    lost_flags: LostFlags | None = None
    restart: Restart | None = None
    seconds: float = 0.0
    next: list[str] = field(default_factory=list)

    def as_data(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {**asdict(self), "throughput": [flow.as_data() for flow in self.throughput]}
