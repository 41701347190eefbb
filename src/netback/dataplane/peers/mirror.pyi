# SPDX-License-Identifier: Apache-2.0
from netback.dataplane.peers.filter import FilterPeer
from netback.dataplane.peers.peer import Peer

class MirrorPeer(FilterPeer):
    """Copies frames to `other`, which this link's thread alone uses: TX, RX or both. `keep` lives as long."""

    def __init__(
        self, inner: Peer, *, other: Peer, tx: bool = True, rx: bool = True, keep: object = None
    ) -> None: ...
