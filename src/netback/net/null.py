# SPDX-License-Identifier: Apache-2.0
"""A network that takes every frame and gives none: for benchmarks, and for a vif that shall be quiet."""

from netback.dataplane.caps import EVERYTHING
from netback.dataplane.peers.null import NullPeer
from netback.net.base import Linkless


class NullNetwork(Linkless):
    """Nothing at the other end, and always room for more."""

    name = "null"

    def __init__(self) -> None:
        self.peers = (NullPeer(caps=EVERYTHING),)

    def offloads(self, caps: int) -> None:
        """Nothing ever comes from here."""

    def drain(self) -> int:
        """Nothing waits."""
        return 0

    def drops(self) -> dict[str, int]:
        """Nothing is lost that somebody sent."""
        return {}

    def close(self) -> None:
        """Nothing is open."""

    def remove(self) -> None:
        """Nothing was made."""
