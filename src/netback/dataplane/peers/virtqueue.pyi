# SPDX-License-Identifier: Apache-2.0
from netback.dataplane.peers.peer import Peer

MEMORY_BASE: int
PAIR_BYTES: int
PAIR_SLOTS: int

class VirtqueuePair:
    rings: tuple[tuple[int, int, int], tuple[int, int, int]]
    kicks: tuple[int, int]
    call: int
    error: int
    def __init__(self, fd: int, number: int, features: int) -> None: ...

class VirtqueuePeer(Peer):
    def __init__(self, *, stall: int = 1_000_000_000, owner: object = None) -> None: ...
    def join(self, pair: VirtqueuePair, socket: int) -> None: ...
    def leave(self) -> str | None: ...
