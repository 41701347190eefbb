# SPDX-License-Identifier: Apache-2.0
"""The platform seam: a store, event channels and grants, as Protocols that every platform implements.

Knows what a backend and a guest need of a hypervisor, not which hypervisor provides it. The verbs of a burst (take,
unmask, notify, copy) are native and reached through `.native` and `GuestMemory`. The methods here are for control code,
each a short blocking call. tests/platforms/contract.py checks both platforms.
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
    """One handle of event channels, as one open /dev/xen/evtchn; a worker owns one."""

    @property
    def native(self) -> Events:
        """Take, unmask and notify, for the worker."""

    def bind_interdomain(self, domid: int, port: int) -> int:
        """Bind a new local port to the unbound `port` of `domid`: the local port, pending at once.

        PlatformError EINVAL where that port is bound already or is not meant for this domain: the caller tries again,
        with a bound (docs/decisions.md, Resume).
        """

    def alloc_unbound(self, domid: int) -> int:
        """Allocate a port that `domid` may bind to; PlatformError ENOSPC where none is left."""

    def unbind(self, port: int) -> None:
        """Close a port: its far side becomes unbound again. PlatformError EINVAL where it is no port of this handle."""

    def close(self) -> None:
        """Close every port."""


class MappedPage(Protocol):
    """A granted page mapped into this process."""

    @property
    def address(self) -> int:
        """Its address in this process."""

    def unmap(self) -> None:
        """Unmap it; the guest may revoke the grant afterwards. May be called again."""


class Platform(Protocol):
    """What a backend needs of the hypervisor, as the domain `domid`."""

    @property
    def name(self) -> str:
        """The value of `--platform`."""

    @property
    def domid(self) -> int:
        """The backend's own domain."""

    async def open_store(self) -> Store:
        """Open a store connection with this domain's privilege; StoreError where the store cannot be reached."""

    def open_events(self) -> EventChannels:
        """Open a handle of event channels, which the caller closes."""

    def open_arena(self) -> Arena:
        """The memory of a worker's bursts, such that copies between it and guests are cheap."""

    def open_memory(self, domid: int) -> GuestMemory:
        """A guest's memory, for copies that check its grants.

        Where there is no such domain, this raises PlatformError or the first copy fails.
        """

    def map_grant(self, domid: int, gref: int) -> MappedPage:
        """Map a granted page for reading and writing; PlatformError where the guest did not grant it so."""

    def close(self) -> None:
        """Close the platform's handles. A page that is still mapped is not accessed afterwards."""


@dataclass(frozen=True, slots=True)
class GrantedPage:
    """A page that another domain may use: its gref for that domain, its address in this process."""

    gref: int
    address: int
    view: memoryview

    def write(self, offset: int, data: bytes) -> None:
        """Write `data` at `offset`."""
        self.view[offset : offset + len(data)] = data

    def read(self, offset: int = 0, length: int = PAGE_SIZE) -> bytes:
        """A copy of a part of the page."""
        return bytes(self.view[offset : offset + length])


class Domain(Protocol):
    """What a frontend needs of the hypervisor, as the guest `domid`. Linux's gntalloc makes a page and its grant in one
    call, so `grant_pages` does."""

    @property
    def domid(self) -> int:
        """The guest's own domain."""

    @property
    def events(self) -> EventChannels:
        """The domain's first handle."""

    async def open_store(self) -> Store:
        """Open a store connection with this domain's privilege; StoreError where the store cannot be reached."""

    def open_events(self) -> EventChannels:
        """Open a further handle, for one worker."""

    def claim(self, device: str) -> None:
        """ConfigError where another driver in this guest uses `device`, such as "device/vif/0"."""

    def grant_pages(self, domid: int, count: int, readonly: bool = False) -> list[GrantedPage]:
        """Grant `count` pages of zeros to `domid`; PlatformError ENOSPC where so many are not available."""

    def take_back(self, pages: Sequence[GrantedPage]) -> None:
        """End the grants of one `grant_pages`. A page stays in use while another process has it mapped (XSA-396)."""

    def close(self) -> None:
        """Close ports and end grants; on emulated Xen this ends the domain."""
