# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence

from netback.dataplane.link import Link
from netback.dataplane.peers.peer import Peer
from netback.dataplane.toeplitz import Toeplitz

class Distributor(Link):
    """Spreads the frames of one peer over the inboxes of queues."""

    def __init__(self, peer: Peer, inboxes: Sequence[Peer]) -> None: ...
    def steer(self, table: Sequence[int], hash: Toeplitz | None) -> None: ...
