# SPDX-License-Identifier: Apache-2.0
"""The platform seam: a store, event channels and grants, as Protocols that every platform implements.

The Protocols state what a backend and a guest need from a hypervisor. The operations of a burst (take, unmask, notify,
copy) are native and reached through `.native` and `GuestMemory`. The methods here are for control code; each is a short
blocking call. tests/platforms/contract.py checks both platforms.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from netback.abi.ring import PAGE_SIZE
from netback.dataplane.arena import Arena
from netback.dataplane.own_grants import OwnGrants
from netback.dataplane.platform.events import Events
from netback.dataplane.platform.memory import GuestMemory
from netback.xenstore.aio import Store


class EventChannels(Protocol):
    """One handle of event channels, like one open /dev/xen/evtchn; a worker owns one."""

    @property
    def native(self) -> Events:
        """Take, unmask and notify, for the worker."""

    def bind_interdomain(self, domid: int, port: int) -> int:
        """Bind a new local port to the unbound `port` of `domid`; returns the local port, pending at once.

        PlatformError EINVAL: the port is already bound, or is not meant for this domain. The caller retries, with a
        bound (docs/decisions.md, Resume).
        """

    def alloc_unbound(self, domid: int) -> int:
        """Allocate a port that `domid` may bind to. PlatformError ENOSPC: none is left."""

    def unbind(self, port: int) -> None:
        """Close a port; its far side becomes unbound again. PlatformError EINVAL: not a port of this handle."""

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
    """What a backend needs from the hypervisor, as the domain `domid`."""

    @property
    def name(self) -> str:
        """The value of `--platform`."""

    @property
    def domid(self) -> int:
        """The backend's own domain."""

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables by which the store's tools (xenstore-read, ...) find this store."""

    @property
    def prefix(self) -> str:
        """What such a tool needs before a path that is relative to this domain's own directory; empty if the tool runs
        as this domain.
        """

    async def open_store(self) -> Store:
        """Open a store connection with this domain's privilege. StoreError: the store cannot be reached."""

    def open_events(self) -> EventChannels:
        """Open a handle of event channels; the caller closes it."""

    def open_arena(self) -> Arena:
        """Allocate the memory of a worker's bursts; copies between it and guests are cheap."""

    @property
    def own_grants(self) -> OwnGrants | None:
        """Pages that this domain grants to itself, for a peer's memory; None where a copy from such costs no less."""

    def open_memory(self, domid: int) -> GuestMemory:
        """A guest's memory, for copies that check its grants.

        For a missing domain either this raises PlatformError or the first copy fails.
        """

    def map_grant(self, domid: int, gref: int, *, readonly: bool = False) -> MappedPage:
        """Map a granted page for reading and writing, or for reading alone. PlatformError: the guest did not grant it
        that way.
        """

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
        """Return a copy of part of the page."""
        return bytes(self.view[offset : offset + length])


class Domain(Protocol):
    """What a frontend needs from the hypervisor, as the guest `domid`. Linux's gntalloc makes a page and its grant in
    one call, and so does `grant_pages`."""

    @property
    def domid(self) -> int:
        """The guest's own domain."""

    @property
    def events(self) -> EventChannels:
        """The domain's first handle."""

    async def open_store(self) -> Store:
        """Open a store connection with this domain's privilege. StoreError: the store cannot be reached."""

    def open_events(self) -> EventChannels:
        """Open a further handle, for one worker."""

    def claim(self, device: str) -> None:
        """ConfigError: another driver in this guest uses `device`, such as "device/vif/0"."""

    def grant_pages(self, domid: int, count: int, readonly: bool = False) -> list[GrantedPage]:
        """Grant `count` zeroed pages to `domid`. PlatformError ENOSPC: fewer are available."""

    def take_back(self, pages: Sequence[GrantedPage]) -> None:
        """End the grants made by one `grant_pages`. A page stays in use while another process has it mapped
        (XSA-396).
        """

    def close(self) -> None:
        """Close ports and end grants; on emulated Xen this ends the domain."""
