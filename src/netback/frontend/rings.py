# SPDX-License-Identifier: Apache-2.0
"""What a connection takes of its guest: ring pages, buffers, grants and an event channel, given back in one call.

Knows a guest's memory and ports; what is written into the rings is the queue's.
"""

from contextlib import ExitStack, suppress
from dataclasses import dataclass

from netback.abi.ring import PAGE_SIZE
from netback.errors import PlatformError
from netback.platforms.emulated import EmulatedDomain, EmulatedEventChannels, Page

from .config import RING_SLOTS


@dataclass(frozen=True, slots=True)
class Granted:
    """A page of the guest, and the gref that its backend knows it by."""

    page: Page
    gref: int
    view: memoryview

    @property
    def address(self) -> int:
        return self.page.address

    def write(self, offset: int, data: bytes) -> None:
        """Fill a part of the page."""
        self.view[offset : offset + len(data)] = data

    def read(self, offset: int = 0, length: int = PAGE_SIZE) -> bytes:
        """What a part of the page holds."""
        return bytes(self.view[offset : offset + length])


class Rings:
    """Two ring pages, `buffers` pages for each of them, and a port, all for one backend domain.

    TX buffers are granted read-only, as netfront grants them.
    """

    def __init__(
        self, domain: EmulatedDomain, events: EmulatedEventChannels, backend: int, buffers: int = RING_SLOTS
    ) -> None:
        self.backend = backend
        self._domain = domain
        with ExitStack() as undo:
            self._undo = undo
            self.tx, self.rx = self.grant(), self.grant()
            self.tx_buffers = [self.grant(readonly=True) for _ in range(buffers)]
            self.rx_buffers = [self.grant() for _ in range(buffers)]
            self.port = events.alloc_unbound(backend)
            undo.callback(self._unbind, events)
            self._undo = undo.pop_all()

    def grant(self, readonly: bool = False) -> Granted:
        """One more page for the backend; it lives as long as these rings."""
        page = self._domain.alloc_page()
        granted = Granted(
            page, self._domain.grant(page, self.backend, readonly), self._domain.view(page.frame)
        )
        self._undo.callback(self._take_back, granted)
        return granted

    def nodes(self) -> dict[str, str]:
        """The keys that tell the backend where all of it is."""
        return {
            "tx-ring-ref": str(self.tx.gref),
            "rx-ring-ref": str(self.rx.gref),
            "event-channel": str(self.port),
        }

    def close(self) -> None:
        """Give everything back. A page that the backend still has mapped is lost to this guest, as in Linux."""
        self._undo.close()

    def _take_back(self, granted: Granted) -> None:
        granted.view.release()
        with suppress(PlatformError):
            self._domain.revoke(granted.gref)
            self._domain.free_page(granted.page)

    def _unbind(self, events: EmulatedEventChannels) -> None:
        with suppress(PlatformError):  # the hypervisor is gone, and every port with it
            events.unbind(self.port)
