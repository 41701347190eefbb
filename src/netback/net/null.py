# SPDX-License-Identifier: Apache-2.0
"""A network that discards every frame and sends none: for benchmarks, and for a vif without a network."""

from netback.dataplane.caps import EVERYTHING
from netback.dataplane.peers.null import NullPeer
from netback.net.base import Linkless


class NullNetwork(Linkless):
    """Its far end accepts every frame and sends none."""

    name = "null"

    def __init__(self) -> None:
        self.peers = (NullPeer(caps=EVERYTHING),)

    def offloads(self, caps: int) -> None:
        """No frame comes from here."""

    def drain(self) -> int:
        """No frame waits."""
        return 0

    def drops(self) -> dict[str, int]:
        """No frame is lost."""
        return {}

    def close(self) -> None:
        """Nothing is open."""

    def remove(self) -> None:
        """Nothing was made."""
