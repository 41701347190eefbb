# SPDX-License-Identifier: Apache-2.0
"""A guest's control ring: sends requests, one at a time, and waits for their responses.

It has its own handle of event channels, since the worker takes those of the queues.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from netback.abi.netif_control import (
    CTRL_REQUEST,
    CTRL_RESPONSE,
    CTRL_SLOT,
    GREF_ENTRY,
    GREF_READONLY,
    MAPPING_ENTRY,
    MAX_GREFS,
    CtrlStatus,
    CtrlType,
    HashAlgorithm,
    HashType,
)
from netback.abi.netif_keys import Key
from netback.abi.ring import SRING
from netback.dataplane.front.queue import RingPage
from netback.errors import NetbackError, PlatformError
from netback.platforms.base import Domain, GrantedPage

_WRAP = 1 << 32


class ControlError(NetbackError):
    """The backend refused a control request, or its response belongs to no request."""


class FrontControl:
    """The control ring of one connection, granted to the domain `backend`.

    `ring` is its page, where a test may write anything. PlatformError: the guest has too few pages or ports.
    """

    def __init__(self, domain: Domain, backend: int) -> None:
        self._domain, self._backend = domain, backend
        self._news = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self.notifications = 0
        with ExitStack() as undo:
            self._events = domain.open_events()
            undo.callback(self._events.close)
            loop = asyncio.get_running_loop()
            loop.add_reader(self._events.native.fd, self._fired)
            undo.callback(loop.remove_reader, self._events.native.fd)
            self._undo = undo
            self.page = self.grant()
            self.page.write(0, SRING.pack(0, 1, 0, 1))
            self.ring = RingPage(self.page.address, CTRL_SLOT, keep=self.page)
            self.port = self._events.alloc_unbound(backend)
            self._undo = undo.pop_all()

    def nodes(self) -> dict[str, str]:
        """The keys with which the backend finds the ring and its port."""
        return {str(Key.CTRL_RING_REF): str(self.page.gref), str(Key.EVENT_CHANNEL_CTRL): str(self.port)}

    def grant(self, data: bytes = b"", readonly: bool = False) -> GrantedPage:
        """Grant one more page to the backend, until `close`; `data` is written at its beginning."""
        pages = self._domain.grant_pages(self._backend, 1, readonly)
        self._undo.callback(self._take_back, pages)
        pages[0].write(0, data)
        return pages[0]

    @contextmanager
    def lend(self, data: bytes, *, readonly: bool = True) -> Iterator[GrantedPage]:
        """A granted page with this data for one request: the backend may use it until it answers (netif.h)."""
        pages = self._domain.grant_pages(self._backend, 1, readonly)
        try:
            pages[0].write(0, data)
            yield pages[0]
        finally:
            self._take_back(pages)

    def notify(self) -> None:
        """Send an event, whatever req_event says."""
        self._events.native.notify(self.port)

    async def request(self, kind: int, *data: int) -> tuple[int, int]:
        """Send a request and return its response's status and data. ControlError: another request's response."""
        async with self._one_at_a_time:
            index = self.ring.req_prod
            numbers = (*data, 0, 0, 0)[:3]
            self.ring.put(index, CTRL_REQUEST.pack(index % 0x10000, kind, *numbers))
            if self.ring.push((index + 1) % _WRAP):
                self.notify()
            await self.answered((index + 1) % _WRAP)
            ident, answered, status, value = CTRL_RESPONSE.unpack(self.ring.get(index))
            if (ident, answered) != (index % 0x10000, kind):
                raise ControlError(
                    f"control ring: the response to {kind} is of request {ident}, type {answered}"
                )
            return status, value

    async def answered(self, rsp_prod: int) -> None:
        """Ask for an event at this rsp_prod, and wait until it is reached."""
        self.ring.rsp_event = rsp_prod
        while (self.ring.rsp_prod - rsp_prod) % _WRAP >= _WRAP // 2:
            self._news.clear()
            await self._news.wait()

    async def require(self, kind: CtrlType, *data: int) -> int:
        """Send a request that must succeed; returns its response's data. ControlError: it was refused."""
        status, value = await self.request(kind, *data)
        if status != CtrlStatus.SUCCESS:
            raise ControlError(f"control ring: {kind.name}{data} was answered {status}")
        return value

    async def set_hash(self, types: HashType, key: bytes, mapping: Sequence[int] = ()) -> None:
        """Have the backend send the Toeplitz hash of each frame of these types, and steer frames by `mapping`.

        The order is that of Windows' xenvif (frontend.c, __FrontendUpdateHash).
        """
        await self.require(CtrlType.SET_HASH_ALGORITHM, HashAlgorithm.TOEPLITZ)
        await self.require(CtrlType.SET_HASH_MAPPING_SIZE, len(mapping))
        if mapping:
            with self.lend(b"".join(map(MAPPING_ENTRY.pack, mapping))) as page:
                await self.require(CtrlType.SET_HASH_MAPPING, page.gref, len(mapping), 0)
        with self.lend(key) as page:
            await self.require(CtrlType.SET_HASH_KEY, page.gref, len(key))
        await self.require(CtrlType.SET_HASH_FLAGS, types)

    async def stage(self, queue: int, pages: Sequence[GrantedPage], *, readonly: bool) -> None:
        """Have the backend keep these pages mapped for a queue: copies from and to them take no grant operation."""
        for first in range(0, len(pages), MAX_GREFS):
            grefs = [page.gref for page in pages[first : first + MAX_GREFS]]
            entries = [GREF_ENTRY.pack(gref, GREF_READONLY * readonly, 0) for gref in grefs]
            with self.lend(b"".join(entries), readonly=False) as page:
                await self.require(CtrlType.ADD_GREF_MAPPING, queue, page.gref, len(entries))

    async def unstage(self, queue: int, grefs: Sequence[int]) -> list[int]:
        """Have the backend unmap pages, at most 512; returns the status of each."""
        with self.lend(b"".join(GREF_ENTRY.pack(gref, 0, 0) for gref in grefs), readonly=False) as page:
            await self.require(CtrlType.DEL_GREF_MAPPING, queue, page.gref, len(grefs))
            answered = page.read(0, len(grefs) * GREF_ENTRY.size)
        return [status for _, _, status in GREF_ENTRY.iter_unpack(answered)]

    def close(self) -> None:
        """Release everything."""
        self._undo.close()

    def _take_back(self, pages: list[GrantedPage]) -> None:
        with suppress(PlatformError):  # the hypervisor is gone, and every grant with it
            self._domain.take_back(pages)

    def _fired(self) -> None:
        for port in self._events.native.take():
            self.notifications += 1
            self._events.native.unmask(port)
        self._news.set()
