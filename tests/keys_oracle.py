# SPDX-License-Identifier: Apache-2.0
"""What a frontend's keys agree to, in plain Python, from netif.h and docs/decisions.md.

It imports nothing of netback.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

WORD = 2**32
MAX_HEADROOM = 4096 - 14
CSUM4, CSUM6, TSO4, TSO6 = 1, 2, 4, 8
RINGS = ("tx-ring-ref", "rx-ring-ref")
CHANNELS = ("event-channel-tx", "event-channel-rx")
FLAGS = (
    "request-rx-copy",
    "feature-rx-notify",
    "feature-sg",
    "feature-gso-tcpv4",
    "feature-gso-tcpv6",
    "feature-no-csum-offload",
    "feature-ipv6-csum-offload",
    "request-multicast-control",
)


class Agreement(NamedTuple):
    """Queues are (TX ring, RX ring, TX channel, RX channel); the control ring is (ring, channel) or None."""

    queues: tuple[tuple[int, ...], ...]
    offloads: int
    sg: bool
    polled: bool
    multicast: bool
    headroom: int
    control: tuple[int, int] | None


class Keys:
    """A frontend's keys. `wrong` collects those that no honest frontend writes so, or that are missing."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        self.keys, self.wrong = keys, set[str]()

    def number(self, name: str, default: str = "", below: int = WORD) -> int:
        """1 to 10 ASCII digits, below a bound; an empty key counts as absent where there is a default."""
        text = self.keys.get(name) or default
        good = set(text) <= set("0123456789") and 1 <= len(text) <= 10 and int(text) < below
        if not good:
            self.wrong.add(name)
        return int(text) if good else 0

    def queue(self, path: str, split: bool) -> tuple[int, ...]:
        rings = [self.number(path + name) for name in RINGS]
        named = [path + name for name in CHANNELS if split and self.keys.get(path + name)]
        channels = [self.number(name) for name in named]
        if len(channels) < 2:
            channels = [self.number(path + "event-channel")] * 2
        return (*rings, *channels)


def agreement(frontend: Mapping[str, str], queues: int, split: bool) -> Agreement | set[str]:
    """The agreement of a frontend that was offered so many queues, and split event channels; or its wrong keys."""
    keys = Keys(frontend)
    count = keys.number("multi-queue-num-queues", "1")
    if not 1 <= count <= queues:
        keys.wrong.add("multi-queue-num-queues")
        count = 0
    paths = [""] if count == 1 else [f"queue-{number}/" for number in range(count)]
    rings = tuple(keys.queue(path, split) for path in paths)
    on = {name: keys.number(name, "0") > 0 for name in FLAGS}
    if not on["request-rx-copy"]:
        keys.wrong.add("request-rx-copy")
    headroom = keys.number("xdp-headroom", "0", MAX_HEADROOM + 1)
    control = None
    if frontend.get("ctrl-ring-ref"):
        control = keys.number("ctrl-ring-ref"), keys.number("event-channel-ctrl")
    if keys.wrong:
        return keys.wrong
    csum4, csum6 = not on["feature-no-csum-offload"], on["feature-ipv6-csum-offload"]
    tso4, tso6 = (on[f"feature-gso-tcpv{version}"] and on["feature-sg"] for version in (4, 6))
    offloads = CSUM4 * csum4 | CSUM6 * csum6 | TSO4 * (csum4 and tso4) | TSO6 * (csum6 and tso6)
    polled = not on["feature-rx-notify"]
    multicast = on["request-multicast-control"]
    return Agreement(rings, offloads, on["feature-sg"], polled, multicast, headroom, control)


def rate(text: str) -> tuple[int, int] | None:
    """A device's `rate`: bytes and microseconds; None where it limits nothing. No bytes pass nothing, in any time."""
    parts = text.split(",")
    if len(parts) != 2 or any(not part or set(part) - set("0123456789") or len(part) > 20 for part in parts):
        return None
    size, interval = map(int, parts)
    if size == 0:
        interval = max(interval, 1)
    return (size, interval) if size < 2**64 and 0 < interval < 2**64 else None
