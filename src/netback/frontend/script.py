# SPDX-License-Identifier: Apache-2.0
"""A frontend that a test drives: it can write any slot, index and key in any order, and read everything back.

It checks nothing that it writes.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from netback.abi.netif import RX_RESPONSE, RX_SLOT, TX_RESPONSE, TX_SLOT
from netback.abi.xenbus import XenbusState
from netback.dataplane.front.queue import RingPage
from netback.frontend.config import FrontConfig, Handshake
from netback.frontend.guest import Guest
from netback.frontend.rings import Rings
from netback.platforms.base import Domain, GrantedPage

_RESPONSE = {TX_SLOT: TX_RESPONSE, RX_SLOT: RX_RESPONSE}
_WRAP = 1 << 32


class Script:
    """One vif of a guest, driven by hand.

    async with Script(directory) as script:
        await script.offered()
        await script.connect()
        page = script.grant(frame)
        script.post(script.tx, TX_REQUEST.pack(page.gref, 0, 0, 7, len(frame)))
        await script.answered(script.tx, 1)
        assert script.answers(script.tx, 0, 1) == [(7, Status.OKAY)]

    `offered` waits for the backend and makes empty rings: `tx` and `rx` are their pages, every index writable.
    `connect` writes the keys of an honest frontend, of `config` and in the order of `handshake`; `write` and
    `set_state` write anything. No worker takes the event channel, so `event` sees each notification.
    """

    guest: Guest
    rings: Rings
    tx: RingPage
    rx: RingPage

    def __init__(
        self,
        where: Guest | Domain | Path | str,
        *,
        index: int = 0,
        name: str = "",
        config: FrontConfig = FrontConfig(split=False),  # noqa: B008 (frozen)
        handshake: Handshake = Handshake(),  # noqa: B008 (frozen)
    ) -> None:
        self.config, self.handshake = config, handshake
        self._own = None if isinstance(where, Guest) else Guest(where, name=name)
        if isinstance(where, Guest):
            self.guest = where
        self.path = f"device/vif/{index}"
        self.backend_path = ""
        self.notifications = 0
        self._news = asyncio.Event()
        self._undo = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as undo:
            if self._own is not None:
                self.guest = await undo.enter_async_context(self._own)
            self.guest.domain.claim(self.path)
            self.events = self.guest.domain.open_events()
            undo.callback(self.events.close)
            loop = asyncio.get_running_loop()
            loop.add_reader(self.events.native.fd, self._fired)
            undo.callback(loop.remove_reader, self.events.native.fd)
            self._undo = undo.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._undo.aclose()

    # ---- xenstore

    async def offered(self) -> None:
        """Wait for the device and its backend's InitWait, and create rings; their keys are not written yet."""
        async with await self.guest.store.watch(f"{self.path}/backend") as watch:
            async for _ in watch:
                self.backend_path = await self.guest.store.read_or(f"{self.path}/backend", "") or ""
                if self.backend_path:
                    break
        await self.backend(XenbusState.INIT_WAIT)
        await self.open_rings()

    async def open_rings(self) -> None:
        """Create new rings and a new port, or one for each ring; earlier ones stay granted."""
        backend = int(await self.guest.store.read(f"{self.path}/backend-id"))
        self.rings = Rings(self.guest.domain, self.events, backend, buffers=0, split=self.config.split)
        self._undo.callback(self.rings.close)
        self.tx = RingPage(self.rings.tx.address, TX_SLOT, keep=self.rings)
        self.rx = RingPage(self.rings.rx.address, RX_SLOT, keep=self.rings)

    @property
    def nodes(self) -> dict[str, str]:
        """The keys of an honest frontend with these rings, in their order."""
        return self.handshake.sort(self.rings.nodes() | self.config.nodes())

    async def connect(self, **keys: str) -> None:
        """Connect as an honest frontend does. `keys`, with underscores for dashes, replace or add keys."""
        nodes = self.nodes | {k.replace("_", "-"): v for k, v in keys.items()}
        for key, value in nodes.items():
            await self.write(key, value)
        await self.set_state(XenbusState.CONNECTED)
        await self.backend(XenbusState.CONNECTED)

    async def write(self, key: str, value: str) -> None:
        """Write any key of the frontend's directory."""
        await self.guest.store.write(f"{self.path}/{key}", value)

    async def read(self, key: str) -> str | None:
        """A key of the frontend's directory; None if it does not exist."""
        return await self.guest.store.read_or(f"{self.path}/{key}")

    async def remove(self, key: str) -> None:
        """Remove a key."""
        await self.guest.store.rm(f"{self.path}/{key}", missing_ok=True)

    async def set_state(self, state: XenbusState | int) -> None:
        """Write any state, including values that xenbus.h does not define."""
        await self.write("state", str(int(state)))

    async def backend(self, *wanted: XenbusState) -> XenbusState:
        """Wait until the backend's state is one of these; UNKNOWN means that its directory is gone."""
        path = f"{self.backend_path}/state"
        async with await self.guest.store.watch(path) as watch:
            async for _ in watch:
                text = await self.guest.store.read_or(path, "0") or "0"
                if text in {str(state.value) for state in wanted}:
                    break
        return XenbusState.parse(text)

    # ---- rings

    def grant(self, data: bytes = b"", readonly: bool = False) -> GrantedPage:
        """Grant a page to the backend; `data` is written at its beginning."""
        granted = self.rings.grant(readonly)
        granted.write(0, data)
        return granted

    def post(self, ring: RingPage, *slots: bytes, at: int | None = None, notify: bool | None = None) -> int:
        """Put slots at req_prod, or from index `at`, and publish them. Returns the new req_prod.

        Sends an event if req_event asks for it; `notify` overrides that.
        """
        index = ring.req_prod if at is None else at
        for slot in slots:
            ring.put(index % _WRAP, slot)
            index += 1
        asked = ring.push(index % _WRAP)
        if asked if notify is None else notify:
            self.notify(ring)
        return index % _WRAP

    def closes(self, end: Callable[[], object]) -> None:
        """Call `end` when this script ends."""
        self._undo.callback(end)

    def notify(self, ring: RingPage | None = None) -> None:
        """Send an event for a ring, by default TX, whatever req_event says."""
        self.events.native.notify(self.rings.rx_port if ring is self.rx else self.rings.tx_port)

    async def event(self) -> None:
        """Wait for the next notification."""
        before = self.notifications
        await self.until(lambda: self.notifications != before)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` is true; it is checked now and after each notification."""
        while not condition():
            self._news.clear()
            await self._news.wait()

    async def answered(self, ring: RingPage, rsp_prod: int) -> None:
        """Ask for an event at this rsp_prod, and wait until it is reached."""
        ring.rsp_event = rsp_prod % _WRAP
        await self.until(lambda: (ring.rsp_prod - rsp_prod) % _WRAP < _WRAP // 2)

    def answers(self, ring: RingPage, first: int, count: int) -> list[tuple[Any, ...]]:
        """The `count` slots from index `first`, read as responses: (id, status), or (id, offset, flags, status)."""
        return [_RESPONSE[ring.slot_size].unpack(ring.get((first + i) % _WRAP)) for i in range(count)]

    def _fired(self) -> None:
        for port in self.events.native.take():
            self.notifications += 1
            self.events.native.unmask(port)
        self._news.set()
