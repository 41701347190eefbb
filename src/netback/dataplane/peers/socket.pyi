# SPDX-License-Identifier: Apache-2.0
from netback.dataplane.peers.peer import Peer

class SocketPeer(Peer):
    def __init__(
        self,
        fd: int,
        *,
        vnet_hdr: bool = False,
        auxdata: bool = False,
        caps: int = 0,
        owner: object = None,
        address: bytes = b"",
        send_fd: int = -1,
    ) -> None: ...
