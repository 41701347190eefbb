# SPDX-License-Identifier: Apache-2.0
"""Rates: as a toolstack writes them ("62500,50000"), and as people do ("10Mb/s").

Pure functions. A rate is a number of bytes in each interval, as Linux's backend has it (xen-netback, `credit_bytes` and
`credit_usec`): the interval decides how large a burst may be.
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

MIN_BURST: Final = 131072
"""Bytes: Linux's backend lets a burst of 128 KiB pass at any rate (tx_add_credit)."""
UNLIMITED: Final = "none"
"""The text for no limit."""

_INTERVAL = 50_000
"""Microseconds: xl's default interval (libxlu_vif.c)."""
_MAX = 1 << 64
_NODE = re.compile(r"([0-9]{1,20}),([0-9]{1,20})")
_PLAIN = re.compile(
    r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([kKMG]?)(b|bit|B)(?:/s|ps)(?:@([0-9]{1,18})(us|ms|s))?"
)
_UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}
_TIMES = {"us": 1, "ms": 10**3, "s": 10**6}


@dataclass(frozen=True, slots=True)
class Rate:
    """`size` bytes in each `interval` microseconds, which is above 0. A size of 0 lets nothing pass."""

    size: int
    interval: int

    @property
    def burst(self) -> int:
        """The most bytes that may pass at once."""
        return max(self.size, MIN_BURST)

    def __str__(self) -> str:
        """In bits per second, as in "10Mb/s"."""
        bits = Decimal(self.size * 8 * 10**6) / self.interval
        unit = next((unit for unit in ("G", "M", "k") if bits >= _UNITS[unit]), "")
        return f"{bits / _UNITS[unit]:.4g}{unit}b/s"


def as_node(rate: Rate | None) -> str:
    """The value of a rate node."""
    return UNLIMITED if rate is None else f"{rate.size},{rate.interval}"


@dataclass(frozen=True, slots=True)
class Rates:
    """The limits of a vif: what the guest sends (TX), and what it receives (RX). None: no limit."""

    tx: Rate | None = None
    rx: Rate | None = None


def parse_node(text: str) -> Rate | None:
    """A rate as "bytes,microseconds", both decimal; None for "none". ValueError: it is neither.

    With no bytes nothing passes, as in Linux's backend, whose credit then never grows (tx_add_credit). With no
    microseconds Linux's credit is there again at once, so it is no rate.
    """
    if text == UNLIMITED:
        return None
    match = _NODE.fullmatch(text)
    if match is None:
        raise ValueError("not bytes and microseconds, as in 62500,50000")
    size, interval = int(match[1]), int(match[2])
    return _checked(size, interval if size else max(interval, 1))


def parse_rate(text: str) -> Rate | None:
    """A rate in units: "10Mb/s" (bits), "1.5 MB/s" (bytes), with xl's interval "10Mb/s@20ms"; None for "none".

    k, M and G are powers of 1000, as in xl. Without an interval it is xl's 50 ms. ValueError says what is wrong.
    """
    if text == UNLIMITED:
        return None
    match = _PLAIN.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:40]!a} is not a rate: as in 10Mb/s, 1.5MB/s, 500kbit/s, or {UNLIMITED}")
    number, unit, kind, length, time = match.groups()
    second = Decimal(number) * _UNITS[unit] / (1 if kind == "B" else 8)
    # the burst of a slow rate does not depend on its interval, and a long one expresses it more exactly
    default = _INTERVAL if second > MIN_BURST else 10**6
    interval = int(length) * _TIMES[time] if length else default
    size = int(second * interval / 10**6)
    if not size:  # xl refuses 0b/s as well
        raise ValueError("a rate of 0 passes nothing: it needs a byte in each interval at least")
    return _checked(size, interval)


def _checked(size: int, interval: int) -> Rate:
    if not interval:
        raise ValueError("an interval of 0 limits nothing")
    if size >= _MAX or interval >= _MAX:
        raise ValueError("the number is too large")
    return Rate(size, interval)
