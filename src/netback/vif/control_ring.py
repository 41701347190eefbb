# SPDX-License-Identifier: Apache-2.0
"""A connection's control ring, served in the event loop: one request at a time, each answered once.

This module handles the ring, its port and its file; `control_messages` decides the answers, and the caller applies a
new state to the queues. The loop serves the rings of all vifs, so each has an allowance of requests, and rings without
one share a slow lane (`xenbus/pace.py`): a guest that never rests delays no other. Its port stays masked meanwhile.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

from netback.abi.grant_table import GrantStatus
from netback.abi.netif_control import CtrlStatus
from netback.abi.netif_keys import Key
from netback.dataplane.control_ring import ControlRing
from netback.dataplane.platform.memory import GuestMemory
from netback.errors import GuestError, NetbackError, PlatformError
from netback.observe.rings import decode_control
from netback.observe.slots import Ring
from netback.platforms.base import EventChannels, Platform
from netback.vif.control_messages import Answer, ControlState, Request, Scope, handle, state_bytes
from netback.vif.control_ports import ControlPorts
from netback.vif.features import ControlConfig
from netback.vif.queue import Channel, bind_ports, map_ring
from netback.xenbus.pace import Allowance

Apply = Callable[[ControlState, bool], Awaitable[ControlState]]

log = logging.getLogger("netback.vif")

_FREE_EVENTS = 4
_DELAYS = (0.001, 0.002, 0.004, 0.008, 0.016)
"""Seconds that a port stays masked after the fifth event in a row that brought no request, as in a worker (XSA-332)."""


class Control:
    """The control ring of one connection: `open`, `start`, `close`, each once and in this order; `close` at any time.

    `apply(state)` gives a new state to the queues, before its request is answered; PlatformError refuses it. With
    `restored` it leaves out what cannot be had any more, and returns what is left. `on_broken` is called when the
    guest broke the protocol; `broken` has the reason. `note` takes a format and its values, for each request. The file
    at `path` holds the state and outlives this process.
    """

    def __init__(
        self,
        platform: Platform,
        ports: ControlPorts,
        domid: int,
        path: Path,
        *,
        queues: int,
        apply: Apply,
        on_broken: Callable[[], object],
        note: Callable[..., object],
    ) -> None:
        self.state = ControlState()
        self.broken: str | None = None
        self.counters: Counter[str] = Counter()
        self._platform, self._ports, self._domid, self._path = platform, ports, domid, path
        self._apply, self._on_broken, self._note = apply, on_broken, note
        self._queues = queues
        self._allowance = Allowance()
        self._due = asyncio.Event()
        self._empty_events = 0
        self._undo = ExitStack()
        self._tasks = AsyncExitStack()
        self._port = 0
        self._encoded = b""
        self._ring: ControlRing
        self._events: EventChannels

    async def open(self, config: ControlConfig, *, adopt: bool) -> None:
        """Bind the port, map the ring, and apply what an earlier process committed if `adopt`, before a frame passes.

        Its response is completed if it was not published yet. GuestError: an index is impossible. PlatformError: the
        port cannot be bound or the page not mapped. NetbackError: the file cannot be opened.
        """
        self._events = self._ports.open(self._undo)
        key = Key.EVENT_CHANNEL_CTRL
        channel = Channel(self._events, config.event_channel, key)
        (self._port,) = await bind_ports([channel], self._domid, self._undo)
        page = map_ring(self._platform, self._domid, config.ring_ref, Key.CTRL_RING_REF, self._undo)
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = config.ring_ref << 32 | config.event_channel
        try:
            self._ring = ControlRing(
                page.address, name, state_bytes(self._queues), str(self._path), adopt=adopt
            )
        except OSError as error:
            raise NetbackError(f"cannot open the journal {self._path}: {error.strerror}") from error
        self.state = await self._apply(ControlState.decode(self._ring.state), True)
        self._encoded = self.state.encode(self._queues)

    async def start(self) -> None:
        """Serve the ring; the guest is notified once, as a predecessor may owe it that."""
        self._ports.follow(self._port, self._due.set, self._undo)
        self._events.native.notify(self._port)
        task = asyncio.create_task(self._run())
        self._tasks.push_async_callback(_cancel, task)
        self._due.set()
        self._ports.unmask(self._port)

    async def close(self) -> None:
        """Stop serving, then release ring and port. Can be called at any time, any number of times."""
        try:
            await self._tasks.aclose()
        finally:
            self._undo.close()

    @property
    def indices(self) -> dict[str, int]:
        """The ring's indices."""
        return self._ring.indices

    def dump(self) -> Ring:
        """The ring with its slots."""
        return decode_control(self._ring.snapshot())

    async def _run(self) -> None:
        try:
            while True:
                await self._due.wait()
                self._due.clear()
                self._schedule_unmask(await self._drain())
        except GuestError as error:
            self.broken = str(error)
            self._on_broken()
        except Exception:  # a bug here must end this ring alone
            log.exception("control ring of domain %d: unexpected; it is not served any more", self._domid)

    async def _drain(self) -> int:
        """Answer every request, each when its turn comes; returns their number."""
        served = 0
        while self._ring.pending() or self._ring.arm():
            await self._ports.pace.admit(self._allowance)
            await self._answer()
            await asyncio.sleep(0)  # other vifs' requests and states come between two of this one
            served += 1
        return served

    async def _answer(self) -> None:
        request = Request.decode(self._ring.take())
        answer, state = handle(self.state, request, Scope(self._queues, self._read, self._write))
        if state != self.state:
            try:
                self.state = await self._apply(state, False)
                self._encoded = self.state.encode(self._queues)
            except PlatformError:  # a page that cannot be mapped
                answer = Answer(CtrlStatus.INVALID_PARAMETER)
        if self._ring.commit(answer.encode(request), self._encoded):
            self._events.native.notify(self._port)
        self._note("control request {}{}: {}", request.type, request.data, answer.status.name)
        self.counters["ctrl_requests"] += 1
        self.counters["ctrl_refused"] += answer.status != CtrlStatus.SUCCESS

    def _schedule_unmask(self, served: int) -> None:
        """Unmask the port now, or later after events that brought nothing."""
        self._empty_events = 0 if served else self._empty_events + 1
        excess = self._empty_events - _FREE_EVENTS
        if excess <= 0:
            self._ports.unmask(self._port)
            return
        delay = _DELAYS[min(excess, len(_DELAYS)) - 1]
        asyncio.get_running_loop().call_later(delay, self._ports.unmask, self._port)

    def _read(self, gref: int, size: int) -> bytes | None:
        memory = self._memory()
        status, data = memory.read(gref, 0, size) if memory else (GrantStatus.BAD_DOMAIN, b"")
        return data if status == GrantStatus.OKAY else None

    def _write(self, gref: int, data: bytes) -> bool:
        memory = self._memory()
        return memory is not None and memory.write(gref, 0, data) == GrantStatus.OKAY

    def _memory(self) -> GuestMemory | None:
        """The guest's memory, for one copy: requests that need it are rare. None if the guest is gone."""
        try:
            return self._platform.open_memory(self._domid)
        except PlatformError:
            return None


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])
