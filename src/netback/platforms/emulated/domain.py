# SPDX-License-Identifier: Apache-2.0
"""A guest of emulated Xen: a domain that this process creates and ends.

It has memory, grants, event channels and the store connection; the frontend decides what to do with them.
"""

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from netback.abi.grant_table import RESERVED_ENTRIES
from netback.errors import PlatformError
from netback.platforms.base import GrantedPage
from netback.platforms.emulated.client import Handle
from netback.platforms.emulated.events import AttachedHandles, EmulatedEventChannels
from netback.platforms.emulated.memory import GrantTable
from netback.platforms.emulated.protocol import DOMID_ANY, PAGE_SIZE, Hello
from netback.xenstore.aio import Store


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the guest's memory: its frame number, which a grant names, and its address in this process."""

    frame: int
    address: int


class EmulatedDomain:
    """A guest. The domain ends at `close` and with this process.

    with Emulator(directory), EmulatedDomain.join(directory, name="guest") as guest:
        page = guest.alloc_page()
        gref = guest.grant(page, domid=0)
        port = guest.events.alloc_unbound(0)
    """

    def __init__(self, handle: Handle, directory: Path, pages: int) -> None:
        self.domid = handle.domid
        self.memory = handle.memory
        self.events = EmulatedEventChannels(handle, handle.close)
        self._handle = handle
        self._others = AttachedHandles(directory, handle.domid)
        self._table = GrantTable.of(handle.memory.words, handle.grant_pages)
        self._free_grefs = deque(range(RESERVED_ENTRIES, self._table.entries))
        self._free_frames = deque(range(handle.grant_pages + 1, pages))
        self._granted: dict[int, Page] = {}

    @classmethod
    def join(
        cls,
        directory: Path,
        *,
        domid: int | None = None,
        name: str = "",
        pages: int = 4096,
        grant_pages: int = 8,
    ) -> Self:
        """Create a domain with `pages` of memory and 512 grants for each of `grant_pages` (1 to 64).

        Without `domid` it gets the smallest one that was never used. PlatformError names an argument that is out of
        bounds (docs/emulated-xen.md, Memory) or a domid in use (EEXIST).
        """
        wanted = DOMID_ANY if domid is None else domid
        total = grant_pages + 1 + pages
        hello = Hello(domid=wanted, grant_pages=grant_pages, name=name.encode("utf-8", "surrogateescape"))
        return cls(Handle(directory, hello, total), directory, total)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the domain. May be called again."""
        self._others.close()
        self.events.close()

    async def open_store(self) -> Store:
        """A store connection with this domain's privilege."""
        return await Store.from_socket(self._handle.take_store())

    def open_events(self) -> EmulatedEventChannels:
        """Open a further handle of this domain, for one worker."""
        return self._others.open_events()

    # ---- granted pages, as a frontend uses them

    def claim(self, device: str) -> None:
        """Does nothing: this guest has no other driver."""

    def grant_pages(self, domid: int, count: int, readonly: bool = False) -> list[GrantedPage]:
        """Grant `count` zeroed pages to `domid`. PlatformError ENOSPC: fewer are left."""
        if count > min(len(self._free_frames), len(self._free_grefs)):
            raise PlatformError(f"domain {self.domid} has no {count} pages and grants left", "ENOSPC")
        return [self._grant_page(domid, readonly) for _ in range(count)]

    def take_back(self, pages: Sequence[GrantedPage]) -> None:
        """End their grants; a page that is still mapped elsewhere is not reused."""
        for granted in pages:
            granted.view.release()
            page = self._granted.pop(granted.gref)
            with suppress(PlatformError):
                self.revoke(granted.gref)
                self.free_page(page)

    def _grant_page(self, domid: int, readonly: bool) -> GrantedPage:
        page = self.alloc_page()
        gref = self.grant(page, domid, readonly)
        self._granted[gref] = page
        return GrantedPage(gref, page.address, self.view(page.frame))

    # ---- memory

    def alloc_page(self) -> Page:
        """A zeroed page. PlatformError ENOMEM: none is left."""
        if not self._free_frames:
            raise PlatformError(f"domain {self.domid} has no page left", "ENOMEM")
        frame = self._free_frames.popleft()
        self.view(frame)[:] = bytes(PAGE_SIZE)
        return self.page(frame)

    def free_page(self, page: Page) -> None:
        """Free a page; it must not be granted any more."""
        self._free_frames.append(page.frame)

    def page(self, frame: int) -> Page:
        """Any frame of this memory, including those of the grant table: a guest may grant any."""
        return Page(frame, self.memory.address + frame * PAGE_SIZE)

    def view(self, frame: int) -> memoryview:
        """A frame's bytes."""
        return self.memory.view(frame)

    # ---- grants

    def grant(self, page: Page, domid: int, readonly: bool = False) -> int:
        """Grant a page to a domain; returns the gref. PlatformError ENOSPC: no entry is left."""
        if not self._free_grefs:
            raise PlatformError(f"domain {self.domid} has no grant left", "ENOSPC")
        gref = self._free_grefs.popleft()
        self.put_entry(gref, page.frame, domid, readonly)
        return gref

    def put_entry(self, gref: int, frame: int, domid: int, readonly: bool = False) -> None:
        """Write a grant entry, valid or not."""
        self._table.set(gref, domid, frame, readonly)

    def revoke(self, gref: int) -> None:
        """End a grant. PlatformError EBUSY: it is mapped."""
        if not self._table.clear(gref):
            raise PlatformError(f"gref {gref} of domain {self.domid} is still in use", "EBUSY")
        self._free_grefs.append(gref)

    def still_in_use(self, gref: int) -> bool:
        """Whether the grant is mapped."""
        return self._table.pinned(gref)
