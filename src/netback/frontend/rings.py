# SPDX-License-Identifier: Apache-2.0
"""The ring pages, buffers, grants and event channel of a connection, released by one call.

This module uses a guest's memory and ports; the queue writes the rings.
"""

from contextlib import ExitStack, suppress

from netback.abi.netif_keys import Key
from netback.abi.ring import SRING
from netback.errors import PlatformError
from netback.frontend.config import RING_SLOTS
from netback.platforms.base import Domain, EventChannels, GrantedPage


class Rings:
    """Two empty ring pages, `buffers` pages for each, and a port, all granted to one backend domain.

    TX buffers are granted read-only, as Linux's netfront does. PlatformError: the guest has too few pages or ports.
    """

    def __init__(
        self, domain: Domain, events: EventChannels, backend: int, buffers: int = RING_SLOTS
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
            self.port = events.alloc_unbound(backend)
            undo.callback(self._unbind, events)
            self._undo = undo.pop_all()

    def grant(self, readonly: bool = False) -> GrantedPage:
        """Grant one more page to the backend, until `close`."""
        return self._grant(1, readonly)[0]

    def nodes(self) -> dict[str, str]:
        """The keys with which the backend finds the rings and the port."""
        return {
            Key.TX_RING_REF: str(self.tx.gref),
            Key.RX_RING_REF: str(self.rx.gref),
            Key.EVENT_CHANNEL: str(self.port),
        }

    def close(self) -> None:
        """Release everything. As in Linux, the guest loses a page that the backend still has mapped."""
        self._undo.close()

    def _grant(self, count: int, readonly: bool = False) -> list[GrantedPage]:
        pages = self._domain.grant_pages(self.backend, count, readonly)
        self._undo.callback(self._domain.take_back, pages)
        return pages

    def _unbind(self, events: EventChannels) -> None:
        with suppress(PlatformError):  # the hypervisor is gone, and every port with it
            events.unbind(self.port)
