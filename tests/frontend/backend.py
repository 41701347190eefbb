# SPDX-License-Identifier: Apache-2.0
"""A simple backend for tests: it makes any offer that a test wants, and serves with the real native queue.

It takes the daemon's place, so that a test can have a backend without scatter-gather, or one that closes or lies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from netback.abi.xenbus import XenbusState
from netback.dataplane.back.queue import BackQueue
from netback.dataplane.front.queue import RingPage
from netback.dataplane.journal import Journal
from netback.dataplane.thread import WorkerThread
from netback.dataplane.worker import Worker
from netback.net.base import Network
from netback.net.python import PythonNetwork
from netback.platforms.emulated import EmulatedPlatform
from netback.vif import features
from netback.vif.features import agree

FRONTEND_KEYS = ("state", "backend", "backend-id", "mac")


class HandBackend:
    """Serves one vif of one guest."""

    def __init__(
        self,
        directory: Path,
        domid: int,
        *,
        index: int = 0,
        offer: dict[str, str] | None = None,
        network: Network | None = None,
        serve: bool = True,
        adopt: bool = False,
        leave: bool = True,
    ) -> None:
        """`adopt` goes on with a device that a backend with `leave=False` was killed on."""
        self.directory = directory
        self.domid = domid
        self.offer = features.offer(features.Limits()) if offer is None else offer
        self._made = PythonNetwork("host", vnet_hdr=True) if network is None else None
        self.network = network or self._made
        self.path = f"backend/vif/{domid}/{index}"
        self.frontend = f"/local/domain/{domid}/device/vif/{index}"
        self.serve = serve
        self.adopt = adopt
        self.leave = leave
        self.queue: BackQueue | None = None
        self.tx: RingPage | None = None
        self.rx: RingPage | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as undo:
            if self._made is not None:
                undo.callback(self._made.remove)
            self.platform = undo.enter_context(EmulatedPlatform(self.directory))
            self.store = await undo.enter_async_context(await self.platform.open_store())
            self.events = self.platform.open_events()
            undo.callback(self.events.close)
            self.worker = WorkerThread(Worker(self.events.native))
            undo.callback(self.worker.stop)
            if not self.adopt:
                await self._offer()
            self._task = asyncio.create_task(self._follow())
            undo.push_async_callback(self._cancel)
            self._undo = undo.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._undo.aclose()

    async def set_state(self, state: XenbusState) -> None:
        await self.store.write(f"/local/domain/0/{self.path}/state", str(state.value))

    async def frontend_state(self, *wanted: XenbusState) -> XenbusState:
        """Wait until the frontend is in one of these states."""
        return await self._state_at(f"{self.frontend}/state", wanted)

    async def _state_at(self, path: str, wanted: tuple[XenbusState, ...]) -> XenbusState:
        async with await self.store.watch(path) as watch:
            async for _ in watch:
                state = XenbusState.parse(await self.store.read_or(path))
                if state in wanted:
                    return state
        raise AssertionError("the store is gone")

    async def submit(self, call: Callable[[Worker], object]) -> None:
        await asyncio.wrap_future(self.worker.submit(call))

    def notify(self) -> None:
        """Send an event for each ring."""
        for port in {self.tx_port, self.rx_port}:
            self.events.native.notify(port)

    async def close_device(self) -> None:
        """Close as a backend does: Closing, then Closed once the frontend is."""
        await self._disconnect()
        await self.set_state(XenbusState.CLOSING)
        await self.state(XenbusState.CLOSED)

    async def state(self, *wanted: XenbusState) -> None:
        """Wait until the backend's own state is one of these."""
        await self._state_at(f"/local/domain/0/{self.path}/state", wanted)

    async def remove_device(self) -> None:
        """Remove the device as a toolstack does."""
        await self._disconnect()
        await self.store.rm(f"/local/domain/0/{self.path}")
        await self.store.rm(self.frontend)

    async def _offer(self) -> None:
        base = f"/local/domain/0/{self.path}"
        nodes = {
            f"{base}/frontend": self.frontend,
            f"{base}/frontend-id": str(self.domid),
            f"{base}/online": "1",
            f"{self.frontend}/backend": base,
            f"{self.frontend}/backend-id": "0",
            f"{self.frontend}/state": "1",
            f"{self.frontend}/mac": "00:16:3e:00:00:01",
        } | {f"{base}/{key}": value for key, value in self.offer.items()}

        async def write(tx: int) -> None:
            for path, value in nodes.items():
                await self.store.write(path, value, tx)
            await self.store.write(f"{base}/state", "2", tx)
            for path in (base, *(f"{base}/{key}" for key in (*self.offer, "state"))):
                await self.store.set_perms(path, ["n0", f"r{self.domid}"], tx)
            for path in (self.frontend, *(f"{self.frontend}/{key}" for key in FRONTEND_KEYS)):
                await self.store.set_perms(path, [f"n{self.domid}", "r0"], tx)

        await self.store.transact(write)

    async def _follow(self) -> None:
        async with await self.store.watch(f"{self.frontend}/state") as watch:
            async for _ in watch:
                state = await self.store.read_or(f"{self.frontend}/state", "0")
                if state == str(XenbusState.CONNECTED.value) and self.tx is None:
                    await self._connect()
                elif state == str(XenbusState.CLOSING.value):
                    await self._disconnect()
                    await self.set_state(XenbusState.CLOSING)
                elif state in ("0", str(XenbusState.CLOSED.value)):
                    await self._disconnect()
                    await self.set_state(XenbusState.CLOSED)

    async def _connect(self) -> None:
        names = await self.store.directory(self.frontend)
        keys = {name: await self.store.read(f"{self.frontend}/{name}") for name in names}
        config = agree(keys, "vif", features.Limits.offered(self.offer))
        self.config, self.keys = config, keys
        (keys_of_queue,) = config.queues
        bound = {port: self.events.bind_interdomain(self.domid, port) for port in keys_of_queue.channels}
        self.tx_port, self.rx_port = bound[keys_of_queue.tx_channel], bound[keys_of_queue.rx_channel]
        self.pages = tuple(
            self.platform.map_grant(self.domid, gref)
            for gref in (keys_of_queue.tx_ring_ref, keys_of_queue.rx_ring_ref)
        )
        self.tx, self.rx = RingPage(self.pages[0].address, 12), RingPage(self.pages[1].address, 8)
        if self.serve:
            self.queue = BackQueue(
                self.events.native,
                self.platform.open_memory(self.domid),
                self.network.peers[0],
                Journal(),
                tx_page=self.pages[0].address,
                rx_page=self.pages[1].address,
                tx_name=1,
                rx_name=2,
                tx_port=self.tx_port,
                rx_port=self.rx_port,
                caps=config.caps,
                sg=config.sg,
                rx_unannounced=config.rx_unannounced,
            )
            queue = self.queue
            await self.submit(lambda worker: worker.add(queue))
        await self.set_state(XenbusState.CONNECTED)

    async def _disconnect(self) -> None:
        if self.tx is None:
            return
        self.tx = self.rx = None
        queue, self.queue = self.queue, None
        if queue is not None:
            await self.submit(lambda worker: worker.remove(queue))
        for port in {self.tx_port, self.rx_port}:
            self.events.unbind(port)
        for page in self.pages:
            page.unmap()

    async def _cancel(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()
        if self.leave:
            await self._disconnect()
