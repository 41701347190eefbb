# SPDX-License-Identifier: Apache-2.0
"""The platform seam: a store, event channels and grants, as Protocols that every platform keeps.

Knows what a backend needs of a hypervisor, not which one answers. The verbs of a burst (take, unmask,
notify, copy) are native and reached through `.native` and `GuestMemory`; what stands here is for control
code, a short blocking call each.
"""

from typing import Protocol

from netback.dataplane.events import Events
from netback.dataplane.grant_copy import GuestMemory
from netback.platforms.store import Store


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

    def open_memory(self, domid: int) -> GuestMemory:
        """A guest's memory, for copies that check its grants."""

    def map_grant(self, domid: int, gref: int) -> MappedPage:
        """Map a granted page for reading and writing; PlatformError where the guest did not grant it so."""

    def close(self) -> None:
        """Close every handle and mapping that came from here."""
