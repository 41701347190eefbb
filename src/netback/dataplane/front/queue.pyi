# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence

from netback.dataplane.link import Link
from netback.dataplane.peers.peer import Peer
from netback.dataplane.platform.events import Events
from netback.dataplane.toeplitz import Toeplitz

class FrontQueue(Link):
    """The frontend's end of one queue, on rings of its own that begin empty."""

    def __init__(
        self,
        events: Events,
        peer: Peer,
        *,
        tx_ring: int,
        rx_ring: int,
        tx_pages: Sequence[tuple[int, int]],
        rx_pages: Sequence[tuple[int, int]],
        tx_port: int,
        rx_port: int,
        caps: int,
        sg: bool,
        tx_slots: int = 256,
        rx_slots: int = 256,
        rx_notify: bool = True,
        keep: object = None,
    ) -> None: ...
    def set_hash(self, hash: Toeplitz | None) -> None: ...
    def change_multicast(self, address: bytes, *, add: bool) -> bool: ...
    @property
    def multicast_changed(self) -> int | None: ...
    @property
    def rings(self) -> dict[str, dict[str, int]]: ...
    @property
    def in_flight(self) -> int: ...

class RingPage:
    """A ring's page for a script: any index, any slot; only the page's bounds are checked."""

    slot_size: int
    req_prod: int
    req_event: int
    rsp_prod: int
    rsp_event: int
    def __init__(self, address: int, slot_size: int, keep: object = None) -> None: ...
    def get(self, index: int) -> bytes: ...
    def put(self, index: int, slot: bytes) -> None: ...
    def push(self, req_prod: int) -> bool: ...
    def respond(self, rsp_prod: int) -> bool: ...
    @property
    def raw(self) -> bytes: ...
