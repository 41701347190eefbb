# SPDX-License-Identifier: Apache-2.0
"""The results of a demo as values; ui.py shows them, and `--json` prints them."""

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Chosen:
    """The tier of this demo, and why it was chosen."""

    tier: str
    means: str
    reason: str


@dataclass(frozen=True, slots=True)
class Step:
    """The states of both ends, and the time since when they held."""

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
    """The frames that crossed a ring in one direction."""

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
        notifications = max(self.notifications, 1)
        return self.frames / notifications, self.slots / notifications, self.bytes / notifications


@dataclass(frozen=True, slots=True)
class Flow:
    """A TCP transfer: its throughput, and what crossed the ring."""

    direction: str
    segmentation: bool
    """Whether the ring carried GSO frames of up to 64 KiB."""
    tool: str
    gbit_s: float
    crossing: Crossing

    def as_data(self) -> dict[str, Any]:
        frames, slots, size = self.crossing.per_notification
        per = {"frames": frames, "slots": slots, "bytes": size}
        return {**asdict(self), "per_notification": per}


@dataclass(frozen=True, slots=True)
class CaptureFile:
    """The pcapng file of the last phase."""

    path: str
    frames: int


@dataclass(frozen=True, slots=True)
class LostFlags:
    """A guest before and after its checksum flags are lost."""

    ping_before: Ping
    gbit_s_before: float
    ping_after: Ping
    tcp_after: str
    checksum_errors: int
    """Segments that the host's stack dropped."""


@dataclass(frozen=True, slots=True)
class Survivor:
    """A transfer during which the backend was killed."""

    direction: str
    bytes: int
    stall_ms: float
    """The longest time without a byte."""
    sha256: str
    intact: bool

    @classmethod
    def of(cls, direction: str, sent: dict[str, Any], received: dict[str, Any]) -> Self:
        intact = all(sent[key] == received[key] for key in ("bytes", "digest"))
        return cls(direction, received["bytes"], received["silence"] * 1000, received["digest"], intact)


@dataclass(frozen=True, slots=True)
class Restart:
    """A backend that was killed, and the guest's connections meanwhile."""

    killed_pid: int
    new_pid: int
    down_ms: float
    """Milliseconds from the kill until the new process serves the rings."""
    states: tuple[str, str]
    transfers: tuple[Survivor, ...]


@dataclass(slots=True)
class Report:
    """All results of a demo."""

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
        """For JSON."""
        return {**asdict(self), "throughput": [flow.as_data() for flow in self.throughput]}
