# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence

from netback.dataplane.capture import Sink
from netback.dataplane.notices import Notice
from netback.dataplane.peers.peer import Peer
from netback.dataplane.states import State

REASONS: dict[int, str]
COUNTERS: tuple[str, ...]

class Link:
    """A queue of either end, as a worker serves it."""

    peer: Peer
    source: Peer
    @property
    def broken(self) -> str | None: ...
    @property
    def condition(self) -> Notice: ...
    @property
    def index(self) -> int: ...
    @property
    def counters(self) -> dict[str, int]: ...
    @property
    def states(self) -> tuple[State, State]: ...
    @property
    def blocked(self) -> tuple[bool, bool]: ...
    def watch(self, *, traced: bool, sinks: Sequence[Sink] = ()) -> None: ...
