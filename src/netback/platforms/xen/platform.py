# SPDX-License-Identifier: Apache-2.0
"""A backend's side of real Xen, in dom0 or a driver domain.

Implements platforms.base.Platform over /dev/xen/{xenbus,evtchn,gntdev}, and gntalloc if it exists.
"""

import logging
import mmap
import os
import struct
import time
from functools import cached_property
from types import TracebackType
from typing import Self

from netback.abi.ring import PAGE_SIZE
from netback.dataplane.arena import Arena
from netback.dataplane.own_grants import OwnGrants
from netback.dataplane.platform.xen_memory import XenMemory
from netback.dataplane.shared_words import address_of
from netback.errors import ConfigError, PlatformError
from netback.platforms.xen import gntalloc
from netback.platforms.xen.devices import call, open_device
from netback.platforms.xen.events import XenEventChannels
from netback.platforms.xen.store import find_store, open_store, own_domid
from netback.xenstore.aio import Store

log = logging.getLogger("netback.xen")

_NAMED_PAGES = 80
"""Pages of each worker's arena, as many as a burst fills. gntalloc has 1024 by default."""
_MAP_GRANT_REF = 0x00184700
_UNMAP_GRANT_REF = 0x00104701
_MAP_TRIES = 1000
_MAP_DELAY = 0.001
"""Seconds between attempts of mmap, which fails with EAGAIN while the guest's page is paged out: one second in all."""


class XenMappedPage:
    """A guest's granted page in this process."""

    def __init__(self, gntdev: int, domid: int, gref: int, readonly: bool) -> None:
        self._gntdev = gntdev
        # a mapping without PROT_WRITE maps the grant read-only (Linux, gntdev_mmap)
        self._access = mmap.ACCESS_READ if readonly else mmap.ACCESS_WRITE
        self._what = f"grant {gref} of domain {domid}"
        # struct ioctl_gntdev_map_grant_ref: count, pad, index (out), one {domid, ref}
        argument = bytearray(struct.pack("=IIQII", 1, 0, 0, domid, gref))
        call(gntdev, _MAP_GRANT_REF, argument, f"cannot map {self._what}")
        self._index = struct.unpack_from("=Q", argument, 8)[0]
        try:
            self._page: mmap.mmap | None = self._map()
        except BaseException:
            self._forget()
            raise
        self.address = address_of(self._page)

    def view(self) -> memoryview:
        """The page's bytes, for tests and tools."""
        if self._page is None:
            raise ValueError("the page was unmapped")
        return memoryview(self._page)

    def unmap(self) -> None:
        if self._page is not None:
            self._page.close()
            self._page = None
            self._forget()

    def _map(self) -> mmap.mmap:
        for _ in range(_MAP_TRIES):
            try:
                return mmap.mmap(self._gntdev, PAGE_SIZE, access=self._access, offset=self._index)
            except BlockingIOError:
                time.sleep(_MAP_DELAY)
            except OSError as error:
                raise PlatformError(f"cannot map {self._what}: {error.strerror}", "EINVAL") from error
        raise PlatformError(f"cannot map {self._what}: its page stays paged out", "EAGAIN")

    def _forget(self) -> None:
        argument = bytearray(struct.pack("=QII", self._index, 1, 0))
        call(self._gntdev, _UNMAP_GRANT_REF, argument, f"cannot unmap {self._what}")


class XenPlatform:
    """The domain that this process runs in, for a backend.

    It reaches the store through xenstored's socket if that exists, which is in dom0, else through /dev/xen/xenbus.
    """

    name = "xen"
    prefix = ""

    def __init__(self) -> None:
        self._store = find_store()
        self.domid = own_domid(self._store)
        self._gntdev = open_device("gntdev")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def environment(self) -> dict[str, str]:
        return {} if self._store is None else {"XENSTORED_PATH": str(self._store)}

    async def open_store(self) -> Store:
        return await open_store(self._store)

    def open_events(self) -> XenEventChannels:
        return XenEventChannels()

    def open_memory(self, domid: int) -> XenMemory:
        """For a missing domain the first copy fails."""
        return XenMemory(self._gntdev, domid)

    def open_arena(self) -> Arena:
        """Uses granted pages if gntalloc has them: a copy between two grants costs a quarter less."""
        arena = Arena()
        try:
            device = open_device("gntalloc")
            try:
                offset, grefs = gntalloc.allocate(device, self.domid, _NAMED_PAGES)
                arena.name(device, offset, self.domid, grefs)
            finally:
                os.close(device)  # the grants last as long as the arena
        except (ConfigError, PlatformError, OSError) as error:
            log.info("copies use addresses, which costs more: %s", error)
        return arena

    @cached_property
    def own_grants(self) -> OwnGrants | None:
        try:
            device = open_device("gntalloc")
        except ConfigError as error:
            log.info("peers' memory has addresses, from which copies cost more: %s", error)
            return None
        try:
            return OwnGrants(device, self.domid)
        finally:
            os.close(device)

    def map_grant(self, domid: int, gref: int, *, readonly: bool = False) -> XenMappedPage:
        return XenMappedPage(self._gntdev, domid, gref, readonly)

    def close(self) -> None:
        """Close gntdev. A mapped page stays until it is unmapped or this process ends."""
        if self._gntdev >= 0:
            os.close(self._gntdev)
            self._gntdev = -1
