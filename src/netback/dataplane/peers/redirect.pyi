# SPDX-License-Identifier: Apache-2.0
from netback.dataplane.peers.filter import FilterPeer
from netback.dataplane.peers.peer import Peer

class RedirectPeer(FilterPeer):
    """Frames come from `reader` and go to `writer`, None for `inner`; this link's thread alone uses both.

    `keep` lives as long.
    """

    def __init__(
        self, inner: Peer, *, reader: Peer | None = None, writer: Peer | None = None, keep: object = None
    ) -> None: ...
