# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence

from netback.dataplane.peers.filter import FilterPeer
from netback.dataplane.peers.peer import Peer

class AntispoofPeer(FilterPeer):
    """Sends what comes from `mac`, 6 bytes, and from `networks`: each the bytes of an address and its prefix length;
    None: IP addresses are not judged. ValueError: one of these is none, or there are more than 32 of a version.
    """

    def __init__(
        self, inner: Peer, *, mac: bytes, networks: Sequence[tuple[bytes, int]] | None = None
    ) -> None: ...
