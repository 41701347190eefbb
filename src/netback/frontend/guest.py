# SPDX-License-Identifier: Apache-2.0
"""The parts that all frontends of a guest domain share: memory, ports, a store connection, a worker's thread."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from netback.dataplane.link import Link
from netback.dataplane.notices import Notice
from netback.dataplane.thread import Listener, WorkerThread
from netback.dataplane.worker import Worker
from netback.platforms.base import Domain
from netback.platforms.emulated import EmulatedDomain
from netback.vif.workers import finished
from netback.xenstore.aio import Store

T = TypeVar("T")


class Guest:
    """A guest of an emulated Xen, whose directory is `where`, or the domain `where`, such as `XenDomain()`.

    `domid`, `name` and `pages` (of memory, 4 KiB each) are those of a guest that joins an emulated Xen; `cpu` pins the
    worker's thread. PlatformError: it cannot join.

    async with Guest(directory, name="guest") as guest:
        async with Frontend(guest, index=0) as eth0, Frontend(guest, index=1) as eth1:
            ...
    """

    domain: Domain
    store: Store

    def __init__(
        self,
        where: Domain | Path | str,
        *,
        domid: int | None = None,
        name: str = "",
        pages: int = 4096,
        cpu: int | None = None,
    ) -> None:
        self._join: Callable[[], Domain] = lambda: (
            EmulatedDomain.join(Path(where), domid=domid, name=name, pages=pages)
            if isinstance(where, Path | str)
            else where
        )
        self._cpu = cpu
        self._undo = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as undo:
            self._loop = asyncio.get_running_loop()
            self.domain = self._join()
            undo.callback(self.domain.close)
            self.store = await undo.enter_async_context(await self.domain.open_store())
            self._thread = WorkerThread(
                Worker(self.domain.events.native), name="netback-guest", cpu=self._cpu
            )
            undo.callback(self._thread.stop)
            self._undo = undo.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the domain. May be called again."""
        await self._undo.aclose()

    @property
    def domid(self) -> int:
        return self.domain.domid

    async def serve(self, link: Link, on_notice: Callable[[Notice], None], *, receives: bool = True) -> None:
        """Have the worker serve a queue; `on_notice` is called in this loop when the queue's condition changes.

        `receives`: it takes frames from its peer.
        """

        def report(notice: Notice) -> None:
            self._loop.call_soon_threadsafe(on_notice, notice)

        await asyncio.wrap_future(self._thread.add(link, Listener(report), receives=receives))

    async def release(self, link: Link) -> None:
        """Stop serving a queue, even if this call is cancelled. A queue that is not served is a normal state."""
        await finished([self._thread.remove(link)])

    async def submit(self, call: Callable[[Worker], T]) -> T:
        """Run `call(worker)` in the worker's thread between two bursts and return its result."""
        return await asyncio.wrap_future(self._thread.submit(call))
