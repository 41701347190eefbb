# SPDX-License-Identifier: Apache-2.0
from netback.dataplane.peers.peer import Peer

REASONS: dict[int, str]
COUNTERS: tuple[str, ...]

class Link:
    """A queue of either end, as a worker serves it."""

    peer: Peer
    @property
    def broken(self) -> str | None: ...
    @property
    def index(self) -> int: ...
    @property
    def counters(self) -> dict[str, int]: ...
    @property
    def blocked(self) -> tuple[bool, bool]: ...
    def watch(self, *, traced: bool, captured: bool) -> None: ...
    def freeze(self, frozen: bool = True) -> None: ...
