# SPDX-License-Identifier: Apache-2.0
"""A backend's side of emulated Xen: implements platforms.base.Platform in an existing domain, 0 or a driver domain."""

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from netback.dataplane.arena import Arena
from netback.dataplane.platform.emulated_memory import EmulatedMemory
from netback.dataplane.platform.memory import GuestMemory
from netback.platforms.emulated.client import Handle
from netback.platforms.emulated.events import AttachedHandles, EmulatedEventChannels
from netback.platforms.emulated.memory import Mapping
from netback.platforms.emulated.protocol import MAP_READONLY, STORE_SOCKET, Op
from netback.xenstore.aio import Store


class EmulatedMappedPage:
    """A granted page, pinned in its owner's grant table until `unmap`."""

    def __init__(self, handle: Handle, grant: int, page: Mapping) -> None:
        self.address = page.address
        self._handle = handle
        self._grant = grant
        self._page: Mapping | None = page

    def view(self) -> memoryview:
        """The page's bytes, for tests and tools."""
        if self._page is None:
            raise ValueError("the page was unmapped")
        return self._page.view(0)

    def unmap(self) -> None:
        if self._page is not None:
            self._page.close()
            self._page = None
            self._handle.request(Op.UNMAP, number=self._grant)


class EmulatedPlatform:
    """A domain of the emulated Xen in `directory`, as a backend uses it.

    Many processes may be the same domain.
    """

    name = "emulated"

    def __init__(self, directory: Path, domid: int = 0) -> None:
        self.directory = directory
        self._handles = AttachedHandles(directory, domid)
        self._handle = self._handles.attach()
        self.domid = self._handle.domid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def environment(self) -> dict[str, str]:
        """The store's socket, whose users have domain 0's privilege."""
        return {"XENSTORED_PATH": str((self.directory / STORE_SOCKET).absolute())}

    @property
    def prefix(self) -> str:
        return f"/local/domain/{self.domid}/" if self.domid else ""

    async def open_store(self) -> Store:
        if self.domid == 0:
            return await Store.connect(self.directory / STORE_SOCKET)
        return await Store.from_socket(self._handle.take_store())

    def open_events(self) -> EmulatedEventChannels:
        return self._handles.open_events()

    def open_arena(self) -> Arena:
        return Arena()

    @property
    def own_grants(self) -> None:
        return None

    def open_memory(self, domid: int) -> GuestMemory:
        reply, (memfd,) = self._handle.request(Op.MEMORY, domid)
        try:
            return EmulatedMemory(memfd, reply.grant_pages, domid, self.domid)
        finally:
            os.close(memfd)

    def map_grant(self, domid: int, gref: int, *, readonly: bool = False) -> EmulatedMappedPage:
        reply, (memfd,) = self._handle.request(Op.MAP, domid, gref, MAP_READONLY if readonly else 0)
        try:
            return EmulatedMappedPage(self._handle, reply.number, Mapping(memfd, reply.page, 1))
        finally:
            os.close(memfd)

    def close(self) -> None:
        """Leave: every port closes, every mapping ends."""
        self._handles.close()
