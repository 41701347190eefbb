# SPDX-License-Identifier: Apache-2.0
"""The ring pages, buffers, grants and event channels of a connection, released by one call.

This module uses a guest's memory and ports; the queue writes the rings.
"""

from contextlib import ExitStack, suppress

from netback.abi.netif_keys import Key
from netback.abi.ring import SRING
from netback.errors import PlatformError
from netback.frontend.config import RING_SLOTS
from netback.platforms.base import Domain, EventChannels, GrantedPage


class Rings:
    """Two empty ring pages, `buffers` pages for each, and their ports, all granted to one backend domain.

    With `split` each ring has a port of its own; otherwise `tx_port` and `rx_port` are one. TX buffers are granted
    read-only, as Linux's netfront does. PlatformError: the guest has too few pages or ports.
    """

    def __init__(
        self,
        domain: Domain,
        events: EventChannels,
        backend: int,
        buffers: int = RING_SLOTS,
        *,
        split: bool = False,
    ) -> None:
        self.backend = backend
        self._domain = domain
        with ExitStack() as undo:
            self._undo = undo
            self.tx, self.rx = self._grant(2)
            for ring in (self.tx, self.rx):
                ring.write(0, SRING.pack(0, 1, 0, 1))
            self.tx_buffers = self._grant(buffers, readonly=True)
            self.rx_buffers = self._grant(buffers)
            self.tx_port = self._allocate(events)
            self.rx_port = self._allocate(events) if split else self.tx_port
            self._undo = undo.pop_all()

    def grant(self, readonly: bool = False) -> GrantedPage:
        """Grant one more page to the backend, until `close`."""
        return self._grant(1, readonly)[0]

    def nodes(self) -> dict[str, str]:
        """The keys with which the backend finds the rings and their ports."""
        channels = {Key.EVENT_CHANNEL: self.tx_port}
        if self.tx_port != self.rx_port:
            channels = {Key.EVENT_CHANNEL_TX: self.tx_port, Key.EVENT_CHANNEL_RX: self.rx_port}
        rings = {Key.TX_RING_REF: self.tx.gref, Key.RX_RING_REF: self.rx.gref}
        return {str(key): str(value) for key, value in (rings | channels).items()}

    def close(self) -> None:
        """Release everything. As in Linux, the guest loses a page that the backend still has mapped."""
        self._undo.close()

    def _grant(self, count: int, readonly: bool = False) -> list[GrantedPage]:
        pages = self._domain.grant_pages(self.backend, count, readonly)
        self._undo.callback(self._domain.take_back, pages)
        return pages

    def _allocate(self, events: EventChannels) -> int:
        port = events.alloc_unbound(self.backend)
        self._undo.callback(_unbind, events, port)
        return port


def _unbind(events: EventChannels, port: int) -> None:
    with suppress(PlatformError):  # the hypervisor is gone, and every port with it
        events.unbind(port)
