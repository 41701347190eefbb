# SPDX-License-Identifier: Apache-2.0
from netback.dataplane.peers.peer import Peer

class L2tpv3Peer(Peer):
    def __init__(
        self,
        inner: Peer,
        *,
        takes: bytes,
        sends: bytes,
        udp: bool = False,
        ipv4_header: bool = False,
        counter: bool = False,
        pinned: bool = False,
    ) -> None: ...
    @property
    def strangers(self) -> int: ...
