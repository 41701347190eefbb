# SPDX-License-Identifier: Apache-2.0
"""A guest's side of a real Xen: the domain that this process runs in, as a frontend in userspace uses it.

Implements platforms.base.Domain over /dev/xen/{gntalloc,evtchn,xenbus}.
"""

import ctypes
import mmap
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from netback.abi.ring import PAGE_SIZE
from netback.errors import ConfigError, PlatformError
from netback.platforms.base import GrantedPage
from netback.platforms.store import Store
from netback.platforms.xen.devices import call, open_device
from netback.platforms.xen.events import XenEventChannels
from netback.platforms.xen.store import find_store, open_store, own_domid

_ALLOC_GREF = 0x00184705
_DEALLOC_GREF = 0x00104706
_WRITABLE = 1
_LIMIT = Path("/sys/module/xen_gntalloc/parameters/limit")
_NETFRONT = Path("/sys/bus/xen/drivers/vif")
"""Linux's netfront, with a link for each device that it drives."""


@dataclass(frozen=True, slots=True)
class _Allocated:
    """What one ALLOC_GREF gave: where gntalloc knows it, and its mapping."""

    index: int
    count: int
    memory: mmap.mmap


class XenDomain:
    """This guest. Pages, grants and ports end with it, or with this process."""

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
        # struct ioctl_gntalloc_alloc_gref: domid, flags, count, index (out), gref_ids (out)
        head = struct.pack("=HHIQ", domid, 0 if readonly else _WRITABLE, count, 0)
        argument = bytearray(head + bytes(4 * count))
        try:
            call(self._gntalloc, _ALLOC_GREF, argument, f"cannot grant {count} pages to domain {domid}")
        except PlatformError as error:
            raise _explained(error) from error
        (index,) = struct.unpack_from("=Q", argument, 8)
        grefs = struct.unpack_from(f"={count}I", argument, 16)
        try:
            memory = mmap.mmap(self._gntalloc, count * PAGE_SIZE, offset=index)
        except OSError as error:
            self._forget(index, count)
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
        """Linux ends the grant of a page that is mapped elsewhere when that is unmapped (XSA-396)."""
        if not pages:
            return
        allocated = self._allocated.pop(pages[0].gref)
        for page in pages:
            page.view.release()
        with suppress(BufferError):  # somebody reads it still: the last view's end unmaps
            allocated.memory.close()
        self._forget(allocated.index, allocated.count)

    def close(self) -> None:
        """Pages that are not taken back live as long as whoever has them. May be called again."""
        self.events.close()
        self._allocated.clear()
        if self._gntalloc >= 0:
            os.close(self._gntalloc)
            self._gntalloc = -1

    def _forget(self, index: int, count: int) -> None:
        # struct ioctl_gntalloc_dealloc_gref: index, count
        argument = bytearray(struct.pack("=QI4x", index, count))
        call(self._gntalloc, _DEALLOC_GREF, argument, f"cannot give {count} pages back")


def _explained(error: PlatformError) -> PlatformError:
    """gntalloc has a limit for all of its users together, which two queues of ours reach."""
    if error.errno != "ENOSPC":
        return error
    limit = _LIMIT.read_text().strip() if _LIMIT.exists() else "?"
    return PlatformError(
        f"{error}: gntalloc's limit is {limit} pages, and a vif takes 514: write a larger number to {_LIMIT}",
        error.errno,
    )
