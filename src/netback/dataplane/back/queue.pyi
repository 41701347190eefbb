# SPDX-License-Identifier: Apache-2.0
from netback.dataplane.flight import Flight
from netback.dataplane.journal import Journal
from netback.dataplane.link import Link
from netback.dataplane.peers.peer import Peer
from netback.dataplane.platform.events import Events
from netback.dataplane.platform.memory import GuestMemory
from netback.dataplane.settings import Settings
from netback.dataplane.staged import Staged
from netback.dataplane.toeplitz import Toeplitz

class BackQueue(Link):
    """The backend's end of one queue."""

    journal: Journal
    settings: Settings
    def __init__(
        self,
        events: Events,
        memory: GuestMemory,
        peer: Peer,
        journal: Journal,
        *,
        tx_page: int,
        rx_page: int,
        tx_name: int,
        rx_name: int,
        tx_port: int,
        rx_port: int,
        caps: int,
        sg: bool,
        rx_offset: int = 0,
        rx_unannounced: bool = False,
        settings: Settings | None = None,
        drain: int = ...,
        stall: int = ...,
        keep: object = None,
    ) -> None: ...
    def change(self, *, multicast_control: bool = False, xdp_headroom: int = 0) -> None: ...
    def set_hash(self, hash: Toeplitz | None) -> None: ...
    def set_staged(self, staged: Staged | None) -> None: ...
    def record(self, flight: Flight | None) -> None: ...
    @property
    def rings(self) -> dict[str, dict[str, int]]: ...
    def snapshot(self) -> tuple[dict[str, tuple[bytes, bool, int]], int, int]: ...
