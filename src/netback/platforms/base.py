# SPDX-License-Identifier: Apache-2.0
"""The platform seam: a store, event channels and grants, as Protocols that every platform keeps.

Knows what a backend and a guest need of a hypervisor, not which one answers. The verbs of a burst (take, unmask,
notify, copy) are native and reached through `.native` and `GuestMemory`; what stands here is for control
code, a short blocking call each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from netback.abi.ring import PAGE_SIZE
from netback.dataplane.arena import Arena
from netback.dataplane.platform.events import Events
from netback.dataplane.platform.memory import GuestMemory
from netback.xenstore.aio import Store


class EventChannels(Protocol):
    """One handle of event channels, like one open /dev/xen/evtchn; a worker owns one."""

    @property
    def native(self) -> Events:
        """Take, unmask, notify: what the worker uses."""

    def bind_interdomain(self, domid: int, port: int) -> int:
        """Our new port at the far side of an unbound `port` of `domid`; it is pending at once.

        PlatformError EINVAL where that port is bound already or meant for somebody else: the caller tries
        again, with a bound.
        """

    def alloc_unbound(self, domid: int) -> int:
        """A port that `domid` may bind to."""

    def unbind(self, port: int) -> None:
        """Close a port: its far side becomes unbound again."""

    def close(self) -> None:
        """Close every port."""


class MappedPage(Protocol):
    """A granted page mapped into this process."""

    @property
    def address(self) -> int:
        """Where it lies."""

    def unmap(self) -> None:
        """Give it back: after this the guest may revoke the grant. May be called again."""


class Platform(Protocol):
    """Where a backend lives: as the domain `domid`."""

    @property
    def name(self) -> str:
        """The word of `--platform`."""

    @property
    def domid(self) -> int:
        """The backend's own domain."""

    async def open_store(self) -> Store:
        """A store connection of its own, with this domain's privilege."""

    def open_events(self) -> EventChannels:
        """A new handle."""

    def open_arena(self) -> Arena:
        """A worker's memory for its bursts, such that copies between it and guests are cheap."""

    def open_memory(self, domid: int) -> GuestMemory:
        """A guest's memory, for copies that check its grants."""

    def map_grant(self, domid: int, gref: int) -> MappedPage:
        """Map a granted page for reading and writing; PlatformError where the guest did not grant it so."""

    def close(self) -> None:
        """Close every handle and mapping that came from here."""


@dataclass(frozen=True, slots=True)
class GrantedPage:
    """A page of one's own that another domain may use: the gref that it knows it by, and where it lies here."""

    gref: int
    address: int
    view: memoryview

    def write(self, offset: int, data: bytes) -> None:
        """Fill a part of the page."""
        self.view[offset : offset + len(data)] = data

    def read(self, offset: int = 0, length: int = PAGE_SIZE) -> bytes:
        """What a part of the page holds."""
        return bytes(self.view[offset : offset + length])


class Domain(Protocol):
    """Where a frontend lives: a guest as itself. Real Xen gives a page and its grant in one, so both do."""

    @property
    def domid(self) -> int:
        """The guest's own domain."""

    @property
    def events(self) -> EventChannels:
        """Its first handle."""

    async def open_store(self) -> Store:
        """A store connection with this domain's privilege."""

    def open_events(self) -> EventChannels:
        """One more handle, for a worker of its own."""

    def claim(self, device: str) -> None:
        """ConfigError where somebody else in this guest drives `device`, as in "device/vif/0"."""

    def grant_pages(self, domid: int, count: int, readonly: bool = False) -> list[GrantedPage]:
        """Pages of zeros that `domid` may use; PlatformError ENOSPC, and none, where there are not so many."""

    def take_back(self, pages: Sequence[GrantedPage]) -> None:
        """End the grants of what one `grant_pages` gave. A page that is mapped elsewhere is lost as long as it is."""

    def close(self) -> None:
        """End what this process has of the domain: ports, grants, and on emulated Xen the domain itself."""
