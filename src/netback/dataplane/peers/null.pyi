# SPDX-License-Identifier: Apache-2.0
from netback.dataplane.peers.peer import Peer

class NullPeer(Peer):
    def __init__(self, *, caps: int = 0, template: bytes = b"", owner: object = None) -> None: ...
