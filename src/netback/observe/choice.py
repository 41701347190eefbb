# SPDX-License-Identifier: Apache-2.0
"""Which frames a capture takes, and what a recorder keeps. A module of its own, since it loads nothing native."""

from dataclasses import dataclass
from typing import Literal

MAX_FRAME = 65535 + 18
"""Bytes of the longest frame, with VLAN tags: the greatest sensible `snaplen`."""

Direction = Literal["both", "tx", "rx"]
RecordMode = Literal["off", "on", "payload"]
"""on: a recorder keeps the first bytes of each frame; payload: all of them."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which frames a capture takes, and how much of each."""

    devices: frozenset[str] = frozenset()
    """The devices by name; empty: all, also those that come later."""
    direction: Direction = "both"
    """tx: what guests send."""
    queue: int | None = None
    """One queue's alone."""
    snaplen: int = MAX_FRAME
    """Bytes of each frame."""

    def takes(self, device: str, queue: int) -> bool:
        """Whether the frames of this queue are wanted."""
        return (not self.devices or device in self.devices) and self.queue in (None, queue)
