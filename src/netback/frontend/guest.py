# SPDX-License-Identifier: Apache-2.0
"""A guest domain as its frontends share it: memory, ports, one store connection, one worker.

Knows no device.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from netback.dataplane.link import Link
from netback.dataplane.notices import Notice
from netback.dataplane.thread import WorkerThread
from netback.dataplane.worker import Worker
from netback.platforms.base import Domain
from netback.platforms.emulated import EmulatedDomain
from netback.xenstore.aio import Store

T = TypeVar("T")


class Guest:
    """A guest of an emulated Xen, from joining it to its end; or the domain that is handed over, `XenDomain()`.

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
        self._broken: dict[Link, Callable[[], None]] = {}

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as undo:
            self._loop = asyncio.get_running_loop()
            self.domain = self._join()
            undo.callback(self.domain.close)
            self.store = await undo.enter_async_context(await self.domain.open_store())
            self._thread = WorkerThread(
                Worker(self.domain.events.native),
                on_notice=self._tell,
                on_records=lambda _data, _lost: None,
                name="netback-guest",
                cpu=self._cpu,
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

    async def serve(self, link: Link, on_broken: Callable[[], None]) -> None:
        """Have the worker serve a queue; `on_broken` is called in this loop if its backend lies."""
        self._broken[link] = on_broken
        await self.submit(lambda worker: worker.add(link))

    async def release(self, link: Link) -> None:
        """Serve it no more; one that is not served is a normal state.

        The loop waits, between two bursts: a task cancelled here would leave queue and peer with the worker for good.
        """
        self._broken.pop(link, None)
        self._thread.submit(lambda worker: worker.remove(link)).result()

    async def submit(self, call: Callable[[Worker], T]) -> T:
        """Run `call(worker)` where nothing else touches the queues."""
        return await asyncio.wrap_future(self._thread.submit(call))

    def _tell(self, link: Link, notice: Notice) -> None:
        """In the worker's thread."""
        if notice is Notice.BROKEN:
            self._loop.call_soon_threadsafe(self._on_broken, link)

    def _on_broken(self, link: Link) -> None:
        told = self._broken.get(link)
        if told is not None:
            told()
