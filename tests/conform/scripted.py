# SPDX-License-Identifier: Apache-2.0
"""A frontend of netback.frontend.Script that is right about everything, with a place for each way to be wrong.

It returns every frame in the form in which it came. What a misdeed changes is one of its hooks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from netback.abi.netif import EXTRA_GSO, RX_REQUEST, RX_RESPONSE, TX_REQUEST, ExtraType, RxFlag, TxFlag
from netback.abi.netif_keys import Key
from netback.abi.ring import PAGE_SIZE
from netback.abi.xenbus import XenbusState as State
from netback.errors import NetbackError
from netback.frontend import FrontConfig, Script
from netback.platforms.base import GrantedPage

MAC = bytes.fromhex("00163e5e0002")
BUFFERS = 40
TICK = 0.01
WRAP = 1 << 32
NO_FLAGS = TxFlag(0)
Slots = list[bytes]


def _same_nodes(nodes: dict[str, str]) -> dict[str, str]:
    return nodes


def _same_slots(_guest: Honest, slots: Slots, _frame: bytes) -> Slots:
    return slots


def _same_frame(frame: bytes) -> bytes:
    return frame


def _same_request(_guest: Honest, _number: int, slot: bytes) -> bytes:
    return slot


async def _nothing(_guest: Honest) -> None:
    pass


async def _offered(guest: Honest) -> None:
    await guest.script.offered()


def _never(_guest: Honest, _first: tuple[int, int, int, int], _frames: int) -> bool:
    return False


@dataclass(frozen=True)
class Deed:
    """How a frontend differs from an honest one."""

    profile: str = "strict"
    forms: tuple[str, ...] | None = None
    """The forms of frames of the run; None: those of the profile."""
    offer: Mapping[str, str] = field(default_factory=dict)
    """Keys that the backend offers beside the profile's."""
    config: FrontConfig = FrontConfig(split=False)  # noqa: RUF009 (frozen)
    answer: float = 10.0
    """Seconds that the drive waits for its states and buffers."""
    event: float = 0.1
    """Seconds after which a notification is missed, and of the backend before InitWait."""
    also: frozenset[str] = frozenset()
    """Other rules that cannot hold then, by their meaning."""
    offered: Callable[[Honest], Awaitable[None]] = _offered
    """Waits for the offer and makes the rings."""
    nodes: Callable[[dict[str, str]], dict[str, str]] = _same_nodes
    publish: Callable[[Honest], Awaitable[None]] | None = None
    """In place of the transaction with the keys and Connected."""
    connected: Callable[[Honest], Awaitable[None]] = _nothing
    """When the backend is Connected."""
    length: int = 1514
    """The frame whose answer `frame` and `tx` change is of this length, and the last with another ethertype."""
    frame: Callable[[bytes], bytes] = _same_frame
    tx: Callable[[Honest, Slots, bytes], Slots] = _same_slots
    always: bool = False
    """They change every frame of that length, not the first one alone."""
    readonly: bool = True
    tx_notify: bool | None = None
    rx_notify: bool | None = None
    reflects: bool = True
    everything: bool = False
    """It returns frames whose form the backend does not take."""
    buffers: int = BUFFERS
    most: int = 0
    """Buffers that it posts in all; 0: without an end."""
    stops: bool = False
    """It sends nothing once a frame was refused."""
    rx: Callable[[Honest, int, bytes], bytes] = _same_request
    stuck: Callable[[Honest, tuple[int, int, int, int], int], bool] = _never
    """Whether it leaves responses alone, by the first of them and the number of frames taken."""
    asks: bool = True
    """It sets the RX ring's rsp_event."""
    tick: Callable[[Honest], None] = lambda _guest: None
    closes: Callable[[Honest], Awaitable[None]] | None = None
    """In place of the answer to Closing."""
    ends: Callable[[Honest], Awaitable[None]] | None = None
    """In place of the release of its grants and ports."""


class Honest:
    """The frontend; `deed` changes it."""

    def __init__(self, script: Script, deed: Deed) -> None:
        self.script, self.deed = script, deed
        self.requests: deque[tuple[int, GrantedPage]] = deque()
        self.posted = 0
        self.taken = 0
        """RX responses."""
        self.frames = 0
        self.echoes = 0
        self.next_id = 0
        self.sent: list[GrantedPage] = []
        """The TX pages since the last tick."""
        self.refused = False
        """A TX frame was answered with an error."""
        self.tx_taken = 0
        self.done = False
        self.changed = False
        self.gone = asyncio.Event()

    async def live(self) -> None:
        script, deed = self.script, self.deed
        await deed.offered(self)
        features = script.backend_path
        self.offer = {
            key: await script.guest.store.read_or(f"{features}/{key}", "0") or "0"
            for key in (Key.RX_COPY, Key.GSO_TCPV4, Key.GSO_TCPV6, Key.NO_CSUM, Key.IPV6_CSUM, Key.SG)
        }
        if self.offer[Key.RX_COPY] != "1" and not deed.everything:
            return
        self.pages = [script.grant() for _ in range(BUFFERS)]
        self.post(deed.buffers)
        watching = asyncio.ensure_future(self._until_closing())
        try:
            if deed.publish is None:
                await self.publish()
            else:
                await deed.publish(self)
            await script.backend(State.CONNECTED, State.CLOSING)
            await deed.connected(self)
            while not watching.done() and not self.done:
                self.step()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._news(), TICK)
                deed.tick(self)
        finally:
            watching.cancel()
        if deed.closes is not None:
            await deed.closes(self)
            return
        await script.set_state(State.CLOSED)
        if deed.ends is not None:
            await deed.ends(self)
        else:
            script.rings.close()

    async def publish(self) -> None:
        """The keys in one transaction, then Connected."""
        nodes = self.deed.nodes(self.script.nodes)

        async def write(tx: int) -> None:
            for key, value in nodes.items():
                await self.script.guest.store.write(f"{self.script.path}/{key}", value, tx)

        await self.script.guest.store.transact(write)
        await self.script.set_state(State.CONNECTED)

    async def _until_closing(self) -> None:
        await self.script.backend(State.CLOSING, State.CLOSED, State.UNKNOWN)
        self.script._news.set()

    async def _news(self) -> None:
        self.script._news.clear()
        await self.script._news.wait()

    # ---- rings

    def post(self, count: int) -> None:
        """Post so many buffers, each in the next slot."""
        slots = []
        for _ in range(count):
            page = self.pages[self.posted % len(self.pages)]
            request = RX_REQUEST.pack(self.posted % 256, 0, page.gref)
            slots.append(self.deed.rx(self, self.posted, request))
            self.requests.append((self.posted, page))
            self.posted += 1
        if slots:
            self.script.post(self.script.rx, *slots, notify=self.deed.rx_notify)

    def step(self) -> None:
        """Take the responses of both rings."""
        tx, rx = self.script.tx, self.script.rx
        while self.tx_taken != tx.rsp_prod:
            ((_, status),) = self.script.answers(tx, self.tx_taken, 1)
            self.refused |= status < 0
            self.tx_taken += 1
        tx.rsp_event = (self.tx_taken + 1) % WRAP
        while (waiting := (rx.rsp_prod - self.taken) % WRAP) != 0:
            first = RX_RESPONSE.unpack(rx.get(self.taken))
            if self.deed.stuck(self, first, waiting):
                return
            self._take_frame(first)
        if self.deed.asks:
            rx.rsp_event = (self.taken + 1) % WRAP

    def _take_frame(self, first: tuple[int, int, int, int]) -> None:
        rx = self.script.rx
        parts: list[bytes] = []
        extra, slot, response = b"", 0, first
        while True:
            number, page = self.requests.popleft()
            assert number == self.taken
            _, offset, flags, status = response
            if status > 0:
                parts.append(page.read(offset, status))
            self.taken += 1
            slot += 1
            if slot == 1 and flags & RxFlag.EXTRA_INFO:
                extra = rx.get(self.taken) if rx.get(self.taken)[0] == ExtraType.GSO else b""
                self.requests.popleft()
                self.taken += 1
                slot += 1
            if not flags & RxFlag.MORE_DATA:
                break
            response = RX_RESPONSE.unpack(rx.get(self.taken))
        if not self.deed.most or self.posted < self.deed.most:
            self.post(slot)
        self.frames += 1
        frame = b"".join(parts)
        self.echoes += frame[12:14] == b"\x08\x00" and len(frame) == 98
        if len(frame) == 60 and self.frames % 64:
            return  # of the burst
        if frame and self.deed.reflects and not self._reflects(frame, RxFlag(first[2]), extra):
            self.send(bytes.fromhex("02000 05e0001".replace(" ", "")) + MAC + b"\x88\xb6" + bytes(46))
        elif frame and self.deed.reflects:
            self.send(
                self._turn(frame), self._tx_flags(RxFlag(first[2])), extra, [len(part) for part in parts]
            )

    def _reflects(self, frame: bytes, flags: RxFlag, extra: bytes) -> bool:
        if self.deed.everything:
            return True
        six = frame[12:14] == b"\x86\xdd"
        if extra and self.offer[Key.GSO_TCPV6 if six else Key.GSO_TCPV4] != "1":
            return False
        blank = (self.offer[Key.IPV6_CSUM] == "1") if six else (self.offer[Key.NO_CSUM] != "1")
        return blank or not flags & RxFlag.CSUM_BLANK

    @staticmethod
    def _turn(frame: bytes) -> bytes:
        return frame[6:12] + (MAC if frame[0] & 1 else frame[:6]) + frame[12:]

    @staticmethod
    def _tx_flags(flags: RxFlag) -> TxFlag:
        blank = TxFlag.CSUM_BLANK | TxFlag.DATA_VALIDATED if flags & RxFlag.CSUM_BLANK else TxFlag(0)
        return blank | (TxFlag.DATA_VALIDATED if flags & RxFlag.DATA_VALIDATED else 0)

    def send(
        self, frame: bytes, flags: TxFlag = NO_FLAGS, extra: bytes = b"", sizes: list[int] | None = None
    ) -> None:
        """Send a frame in slots of these sizes, changed by the deed."""
        deed = self.deed
        if deed.stops and self.refused:
            return
        mine = len(frame) == deed.length and (deed.always or not self.changed)
        if self.offer[Key.SG] != "1":
            sizes = None
        if mine:
            self.changed = True
            frame = deed.frame(frame)
            sizes = sizes if sizes is None or sum(sizes) == len(frame) else None
        slots: Slots = []
        for number, (at, size) in enumerate(_cut(len(frame), sizes)):
            page = self.script.grant(frame[at : at + size], readonly=deed.readonly)
            self.sent.append(page)
            more = TxFlag.MORE_DATA if at + size < len(frame) else TxFlag(0)
            head = flags | (TxFlag.EXTRA_INFO if extra else 0) if number == 0 else TxFlag(0)
            slots.append(self.request(page.gref, int(more | head), len(frame) if number == 0 else size))
            if number == 0 and extra:
                _, _, size_, kind, _, _ = EXTRA_GSO.unpack(extra[:8])
                slots.append(EXTRA_GSO.pack(1, 0, size_, kind, 0, 0).ljust(12, b"\0"))
        if mine:
            slots = deed.tx(self, slots, frame)
        if slots and (self.script.tx.req_prod - self.tx_taken) % WRAP + len(slots) <= 256:
            self.script.post(self.script.tx, *slots, notify=deed.tx_notify)

    def request(self, gref: int, flags: int, size: int, offset: int = 0) -> bytes:
        """A TX request with an id of its own."""
        self.next_id = (self.next_id + 1) % 65536
        return TX_REQUEST.pack(gref, offset, flags, self.next_id, size)


def _cut(length: int, sizes: list[int] | None) -> list[tuple[int, int]]:
    parts = sizes or [min(PAGE_SIZE, length - at) for at in range(0, length, PAGE_SIZE)]
    found, at = [], 0
    for size in parts:
        found.append((at, size))
        at += size
    return found


@asynccontextmanager
async def suppress_released() -> AsyncIterator[None]:
    """For a frontend whose domain ended before its rings did."""
    with suppress(ValueError):
        yield


@asynccontextmanager
async def living(directory: Path, deed: Deed) -> AsyncIterator[asyncio.Event]:
    """The frontend as a domain of the emulated Xen in `directory`; the event is set when it has done what it does."""
    gone = asyncio.Event()
    async with suppress_released(), Script(directory, config=deed.config, name="scripted") as script:
        honest = Honest(script, deed)
        task = asyncio.ensure_future(honest.live())
        try:
            yield gone
        finally:
            task.cancel()
            await asyncio.wait([task])
            if (
                not task.cancelled()
                and (error := task.exception()) is not None
                and not isinstance(error, NetbackError)
            ):
                raise error
