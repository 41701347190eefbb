# SPDX-License-Identifier: Apache-2.0
"""A guest's side of real Xen: the domain that this process runs in, for a frontend in userspace.

Implements platforms.base.Domain over /dev/xen/{gntalloc,evtchn,xenbus}.
"""

import ctypes
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from netback.abi.ring import PAGE_SIZE
from netback.errors import ConfigError, PlatformError
from netback.platforms.base import GrantedPage
from netback.platforms.xen import gntalloc
from netback.platforms.xen.devices import open_device
from netback.platforms.xen.events import XenEventChannels
from netback.platforms.xen.store import find_store, open_store, own_domid
from netback.xenstore.aio import Store

_NETFRONT = Path("/sys/bus/xen/drivers/vif")
"""Linux's netfront driver, which has a link for each of its devices."""


@dataclass(frozen=True, slots=True)
class _Allocated:
    """The pages of one ALLOC_GREF: their index in gntalloc, and their mapping."""

    index: int
    count: int
    memory: mmap.mmap


class XenDomain:
    """This guest. Pages, grants and ports end at `close` or with this process."""

    def __init__(self) -> None:
        self._store = find_store()
        self.domid = own_domid(self._store)
        self._gntalloc = open_device("gntalloc")
        self._allocated: dict[int, _Allocated] = {}
        self.events = XenEventChannels()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def open_store(self) -> Store:
        return await open_store(self._store)

    def open_events(self) -> XenEventChannels:
        return XenEventChannels()

    def claim(self, device: str) -> None:
        name = device.removeprefix("device/").replace("/", "-")
        if (_NETFRONT / name).exists():
            raise ConfigError(
                f"Linux's own netfront drives {device} of this domain: modprobe -r xen-netfront"
            )

    def grant_pages(self, domid: int, count: int, readonly: bool = False) -> list[GrantedPage]:
        if not count:
            return []
        index, grefs = gntalloc.allocate(self._gntalloc, domid, count, readonly=readonly)
        try:
            memory = mmap.mmap(self._gntalloc, count * PAGE_SIZE, offset=index)
        except OSError as error:
            gntalloc.free(self._gntalloc, index, count)
            raise PlatformError(
                f"cannot map {count} pages of gntalloc: {error.strerror}", "ENOMEM"
            ) from error
        self._allocated[grefs[0]] = _Allocated(index, count, memory)
        base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        places = range(0, count * PAGE_SIZE, PAGE_SIZE)
        whole = memoryview(memory)
        return [
            GrantedPage(gref, base + at, whole[at : at + PAGE_SIZE])
            for gref, at in zip(grefs, places, strict=True)
        ]

    def take_back(self, pages: Sequence[GrantedPage]) -> None:
        if not pages:
            return
        allocated = self._allocated.pop(pages[0].gref)
        for page in pages:
            page.view.release()
        with suppress(BufferError):  # a view still exists: its end unmaps
            allocated.memory.close()
        gntalloc.free(self._gntalloc, allocated.index, allocated.count)

    def close(self) -> None:
        """Close the devices. Pages that were not freed stay as long as they are mapped. May be called again."""
        self.events.close()
        self._allocated.clear()
        if self._gntalloc >= 0:
            os.close(self._gntalloc)
            self._gntalloc = -1
