# SPDX-License-Identifier: Apache-2.0
from netback.dataplane.peers.peer import Peer

class TapPeer(Peer):
    def __init__(self, fd: int, *, vnet_hdr: bool = False, caps: int = 0, owner: object = None) -> None: ...
