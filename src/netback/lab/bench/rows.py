# SPDX-License-Identifier: Apache-2.0
"""What the bench measures: its rows, their wanted ratios, and a sample of one."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec

from netback.lab.host import Guest
from netback.lab.tools import iperf, ping

At = tuple[int, int]
"""A round: its boot and its number there, from 0 on."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measured quantity; `targets` are the accepted least ratios to each baseline."""

    name: str
    unit: str
    measure: Callable[[Guest, int], Awaitable[tuple[float, float]]]
    """Returns the figure and the work done: gigabytes or millions of frames."""
    work: str
    targets: Mapping[str, float]
    less_is_better: bool = False


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measurement; `value` is None if the backend crashed or stalled, and `fault` says how."""

    row: str
    backend: str
    boot: int
    round: int
    value: Annotated[float, msgspec.Meta(gt=0)] | None = None
    cpu: float | None = None
    """dom0's CPU seconds per gigabyte, or per million frames."""
    fault: str = ""


def _tcp(options: str) -> Callable[[Guest, int], Awaitable[tuple[float, float]]]:
    async def measure(guest: Guest, seconds: int) -> tuple[float, float]:
        flow = await iperf(guest, options, seconds=seconds, tries=1)
        return flow.bits / 1e6, flow.bits * seconds / 8e9

    return measure


def _udp(options: str) -> Callable[[Guest, int], Awaitable[tuple[float, float]]]:
    async def measure(guest: Guest, seconds: int) -> tuple[float, float]:
        flow = await iperf(guest, f"-u -b 0 {options}", seconds=seconds, tries=1)
        return flow.packets / 1e3, flow.packets * seconds / 1e6

    return measure


async def _flood(guest: Guest, seconds: int) -> tuple[float, float]:
    count = 300 * seconds
    seen = await ping(guest, f"-f -c {count} -w {5 * seconds}", seconds=5 * seconds + 30)
    return seen.average, 2 * seen.received / 1e6


ROWS = (
    Row("TCP to guest", "Mbit/s", _tcp(""), "GB", {"kernel": 0.85, "qnic": 50}),
    Row("TCP from guest", "Mbit/s", _tcp("-R"), "GB", {"kernel": 0.95, "qnic": 50}),
    Row("UDP 64 to guest", "kpps", _udp("-l 64"), "M frames", {"kernel": 0.85, "qnic": 5}),
    Row("UDP 64 from guest", "kpps", _udp("-l 64 -R"), "M frames", {"kernel": 1.1, "qnic": 5}),
    Row("UDP 1400 to guest", "kpps", _udp("-l 1400"), "M frames", {"kernel": 0.75, "qnic": 5}),
    Row("UDP 1400 from guest", "kpps", _udp("-l 1400 -R"), "M frames", {"kernel": 1.5, "qnic": 5}),
    Row("flood ping", "ms", _flood, "M frames", {"kernel": 0.75, "qnic": 1}, True),
)
