# SPDX-License-Identifier: Apache-2.0
"""Drives a backend as the frontend of one of its devices, and records its answers: `netback conform --backend`.

It imports little, since it also runs in a guest of the lab.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Self

from netback.abi.netif import (
    EXTRA_GSO,
    RX_REQUEST,
    RX_RESPONSE,
    TX_REQUEST,
    TX_SLOT,
    ExtraType,
    GsoType,
    RxFlag,
    TxFlag,
)
from netback.abi.netif_control import CTRL_REQUEST, CtrlType
from netback.abi.netif_keys import Key
from netback.abi.ring import PAGE_SIZE
from netback.abi.xenbus import XenbusState as State
from netback.conform.answers import BackendSeen, Case, Question, Received
from netback.conform.frames import Addresses, arp_request, echo_request, local
from netback.errors import PlatformError, printable
from netback.frontend.config import FrontConfig
from netback.frontend.control import FrontControl
from netback.frontend.script import Script
from netback.platforms.base import Domain, GrantedPage
from netback.vif.features import parse_mac
from netback.xenstore.aio import StoreError

Say = Callable[[str], object]
WRAP = 1 << 32
BUFFERS = 64
NEVER = 0x7FFFFFFF
"""A grant reference that names nothing."""
ARP, ARP_REPLY = b"\x08\x06", b"\x02"
FAR = 1 << 20
"""An rsp_event that no response of a run reaches."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds that the frontend waits at most."""

    device: float = 60.0
    """For its device, and the backend's InitWait."""
    answer: float = 5.0
    """For a state, for responses and for the event that they come with."""
    settle: float = 0.3
    """To see that nothing comes: no event, no frame."""

    @classmethod
    def of_limit(cls, limit: float) -> Self:
        """That of `--limit`, which says how slow the backend's machine is."""
        return cls(device=max(60.0, 12 * limit), answer=limit, settle=0.06 * limit)


class Asking:
    """One connection after the other to a backend, through a scripted frontend."""

    def __init__(self, script: Script, ends: Addresses, patience: Patience, say: Say) -> None:
        """`ends` as the frontend sees them: its own are the host's, the guest's are those of the network's host."""
        self.script, self.ends, self.patience, self._say = script, ends, patience, say
        self.states: list[str] = []
        self.cases: list[Case] = []
        self.received: list[Received] = []
        self.questions: list[Question] = []
        self.posted: list[tuple[bytes, GrantedPage]] = []
        self._control: FrontControl | None = None
        self._pages: list[GrantedPage] = []
        self._next = 0
        self._missed: set[str] = set()
        """What the backend once did not do in time."""
        self._rx_ahead = 0
        self._rx_asked_at: int | None = None
        """Notifications before the last question, if the next RX frame was to come with one."""

    async def run(self) -> BackendSeen:
        """Every question. TimeoutError: no device, or a backend that offers none, within the patience. PlatformError:
        the device has no MAC address.
        """
        script = self.script
        async with asyncio.timeout(self.patience.device):
            await script.offered()
        try:
            mac = bytes.fromhex(parse_mac(await script.read("mac")).replace(":", ""))
        except ValueError as error:
            raise PlatformError(f"{script.path}/mac: {error}") from error
        self.ends = self.ends._replace(guest_mac=b"\xff" * 6, host_mac=mac)
        following = asyncio.ensure_future(self._follow())
        try:
            offer = await self._keys(script.backend_path)
            self._say("connect")
            connected = await self._connect(offer)
            if connected:
                await self._ask(offer)
            later = {
                key: value for key, value in (await self._keys(script.backend_path)).items() if key in offer
            }
            keys = await self._keys(script.path)
            self._say("close")
            closed = await self._close()
            in_use = self._in_use([script.rings.tx, script.rings.rx])
            self._say("return")
            again = closed and await self._return()
            returned = again and "InitWait" not in self._missed
            fatal = await self._fatal() if again else []
        finally:
            following.cancel()
            await asyncio.wait([following])
        return BackendSeen(
            "emulated" if hasattr(script.guest.domain, "still_in_use") else "xen",
            offer,
            later,
            self.states,
            connected,
            keys,
            self.cases,
            self.received,
            self._rx_ahead,
            self.questions,
            closed,
            in_use,
            returned,
            fatal,
        )

    async def _follow(self) -> None:
        path = f"{self.script.backend_path}/state"
        async with await self.script.guest.store.watch(path) as watch:
            async for _ in watch:
                with suppress(StoreError):
                    value = await self.script.guest.store.read_or(path)
                    if value is not None and self.states[-1:] != [value]:
                        self.states.append(value)

    async def _keys(self, path: str) -> dict[str, str]:
        store, found = self.script.guest.store, {}
        for name in await store.children(path):
            with suppress(StoreError):
                found[name] = printable(await store.read(f"{path}/{name}"))
        return {key: value for key, value in found.items() if key.startswith(_NAMES)}

    async def _reaches(self, *states: State, seconds: float | None = None) -> bool:
        """Whether the backend gets to one of these states in time, by default in that for an answer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.patience.answer if seconds is None else seconds):
                await self.script.backend(*states)
                return True
        return False

    async def _connect(self, offer: dict[str, str]) -> bool:
        script = self.script
        nodes = {}
        if offer.get(Key.CTRL_RING) == "1":
            self._control = FrontControl(script.guest.domain, script.rings.backend)
            script.closes(self._control.close)
            nodes = self._control.nodes()
        for key, value in (script.nodes | nodes).items():
            await script.write(key, value)
        self._post(BUFFERS)
        await script.set_state(State.CONNECTED)
        return await self._reaches(State.CONNECTED)

    def _post(self, count: int) -> None:
        """Post so many new RX buffers."""
        slots = []
        for _ in range(count):
            page = self.script.grant()
            request = RX_REQUEST.pack((7 * len(self.posted) + 3) % 65536, 0, page.gref)
            self.posted.append((request, page))
            slots.append(request)
        self.script.post(self.script.rx, *slots)

    # ---- questions

    async def _ask(self, offer: dict[str, str]) -> None:
        for name, needs, build in CASES:
            if not needs or offer.get(needs) == "1":
                await self._case(name, build(self))
        await self._case("unasked", [self.request(self.page())], "")
        for _ in range(3):
            await self._case("one after the other", [self.request(self.page())])
        await self._receive()
        for size in (0, 56, 1400, 1400):
            frame = echo_request(self.ends, size, 1) if size else arp_request(self.ends)
            await self._case("question", [self.request(self.page(frame), size=len(frame))], "rx")
            await self._receive()
        if self._control is not None:
            for kind in (CtrlType.GET_HASH_MAPPING_SIZE, 99):
                await self._question(self._control, int(kind))

    async def _question(self, control: FrontControl, kind: int) -> None:
        self._say(f"control request {kind}")
        index = control.ring.req_prod
        request = CTRL_REQUEST.pack(index + 5, kind, 0, 0, 0)
        control.ring.put(index, request)
        if control.ring.push((index + 1) % WRAP):
            control.notify()
        response = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.patience.answer):
                await control.answered((index + 1) % WRAP)
                response = control.ring.get(index)
        self.questions.append(Question(request, response))

    def page(self, data: bytes | None = None) -> GrantedPage:
        """A granted page with a frame."""
        page = self.script.grant(
            local(self.ends, 60, len(self._pages)) if data is None else data, readonly=True
        )
        self._pages.append(page)
        return page

    def request(self, page: GrantedPage | int, flags: int = 0, size: int = 60, offset: int = 0) -> bytes:
        """A TX request with an id of its own."""
        self._next = (self._next + 257) % 65536
        gref = page if isinstance(page, int) else page.gref
        return TX_REQUEST.pack(gref, offset, flags, self._next, size)

    async def _case(
        self, name: str, slots: Sequence[bytes], event_of: Literal["tx", "rx", ""] = "tx"
    ) -> None:
        """Post TX slots, and see what comes. The rings share an event channel, so one of them asks for an event."""
        self._say(name)
        script, tx, rx = self.script, self.script.tx, self.script.rx
        first = tx.req_prod
        last = (first + len(slots)) % WRAP
        tx.rsp_event = last if event_of == "tx" else (first + FAR) % WRAP
        rx.rsp_event = (self._taken + (1 if event_of == "rx" else FAR)) % WRAP
        # an earlier event may be on its way
        await asyncio.sleep(0 if event_of == "tx" else self.patience.settle)
        before = script.notifications
        self._rx_asked_at = before if event_of == "rx" and rx.rsp_prod == self._taken % WRAP else None
        script.post(tx, *slots)
        await self._until(
            "responses", lambda: (tx.rsp_prod - last) % WRAP < WRAP // 2 or not self._connected()
        )
        count = (tx.rsp_prod - first) % WRAP
        in_use = self._in_use(self._pages)
        if event_of == "tx" and count == len(slots):
            await self._until("event", lambda: script.notifications != before)
        elif event_of != "rx":
            await asyncio.sleep(self.patience.settle)
        if count == len(slots):
            await self._until("arming", lambda: self._armed(tx.req_event, tx.req_prod) == 1)
        taken = count if count <= len(slots) else len(slots)
        self.cases.append(
            Case(
                name,
                list(slots),
                [tx.get((first + i) % WRAP) for i in range(taken)],
                max(0, count - len(slots)) if count < WRAP // 2 else 0,
                event_of == "tx",
                script.notifications != before,
                in_use,
                self._armed(tx.req_event, tx.req_prod),
                self._connected(),
            )
        )

    async def _until(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait until `condition` is true. A backend that once did not do `what` in time gets less of it afterwards."""
        end = time.monotonic() + (self.patience.settle if what in self._missed else self.patience.answer)
        while not condition():
            if time.monotonic() >= end:
                self._missed.add(what)
                return
            await self._tick()

    @property
    def _taken(self) -> int:
        """RX responses that were taken."""
        return sum(len(frame.requests) for frame in self.received)

    async def _tick(self) -> None:
        await asyncio.sleep(0.002)

    def _connected(self) -> bool:
        return self.states[-1:] in ([], [str(int(State.CONNECTED))], [str(int(State.INIT_WAIT))])

    @staticmethod
    def _armed(event: int, prod: int) -> int:
        ahead = (event - prod) % WRAP
        return ahead if ahead < WRAP // 2 else ahead - WRAP

    def _in_use(self, pages: Sequence[GrantedPage]) -> int:
        still = getattr(self.script.guest.domain, "still_in_use", None)
        return -1 if still is None else sum(still(page.gref) for page in pages)

    async def _receive(self) -> None:
        """Take the frames that come within the time to settle; an ARP reply tells the host's address."""
        script, rx, asked_at, taken = self.script, self.script.rx, self._rx_asked_at, self._taken
        end = time.monotonic() + self.patience.settle
        while time.monotonic() < end and rx.rsp_prod == taken % WRAP:
            await self._tick()
        ahead = (rx.rsp_prod - len(self.posted)) % WRAP
        self._rx_ahead = max(self._rx_ahead, ahead if ahead < WRAP // 2 else 0)
        produced = min(rx.rsp_prod, len(self.posted))
        if asked_at is not None and produced > taken:
            await self._until("RX event", lambda: script.notifications != asked_at)
        while taken < produced:
            count, more = 0, True
            extras = False
            while more and taken + count < produced:
                flags = RX_RESPONSE.unpack(rx.get(taken + count))[2]
                count += 1
                if extras is False and flags & RxFlag.EXTRA_INFO:
                    extras = True
                    while taken + count < produced:
                        count += 1
                        if not rx.get(taken + count - 1)[1] & 1:
                            break
                more = bool(flags & RxFlag.MORE_DATA)
            slots = self.posted[taken : taken + count]
            self.received.append(
                Received(
                    [request for request, _ in slots],
                    [rx.get(taken + i) for i in range(count)],
                    self._in_use([page for _, page in slots]),
                    asked_at is not None,
                    script.notifications != asked_at,
                )
            )
            asked_at = None
            _, offset, _, status = RX_RESPONSE.unpack(rx.get(taken))
            frame = slots[0][1].read(offset, max(status, 0)) if offset + max(status, 0) <= PAGE_SIZE else b""
            if frame[12:14] == ARP and frame[21:22] == ARP_REPLY:
                self.ends = self.ends._replace(guest_mac=frame[6:12])
            taken += count
            self._post(count)

    # ---- ends

    async def _close(self) -> bool:
        await self.script.set_state(State.CLOSING)
        if not await self._reaches(State.CLOSING, State.CLOSED):
            return False
        await self.script.set_state(State.CLOSED)
        return await self._reaches(State.CLOSED)

    async def _return(self) -> bool:
        """Initialising, and a new connection on new rings; also to a backend that is not in InitWait before."""
        await self.script.set_state(State.INITIALISING)
        seconds = self.patience.settle if "InitWait" in self._missed else self.patience.answer
        if not await self._reaches(State.INIT_WAIT, seconds=seconds):
            self._missed.add("InitWait")
        await self.script.open_rings()
        for key, value in self.script.nodes.items():
            await self.script.write(key, value)
        for key in (Key.CTRL_RING_REF, Key.EVENT_CHANNEL_CTRL):
            with suppress(PlatformError):
                await self.script.remove(key)
        await self.script.set_state(State.CONNECTED)
        return await self._reaches(State.CONNECTED)

    async def _fatal(self) -> list[str]:
        """What the backend does at each chain that it cannot serve, a new connection for each; the last one is closed.
        A device that cannot be connected again is asked nothing more.
        """
        found: list[str] = []
        for name, build in FATAL.items():
            self._say(name)
            slots = build(self)
            if slots:
                self.script.post(self.script.tx, *slots, notify=True)
            else:
                self.script.tx.push((self.script.tx.req_prod + 1000) % WRAP)
                self.script.notify(self.script.tx)
            if await self._reaches(State.CLOSING, State.CLOSED, seconds=3 * self.patience.settle):
                outcome = "closed"
                await self.script.set_state(State.CLOSED)
                await self._reaches(State.CLOSED)
            else:
                outcome = "alive"
                await self._close()
            if not await self._return():
                return [*found, f"{name}: {outcome}, and did not return"]
            found.append(f"{name}: {outcome}")
        await self._close()
        return found


_NAMES = (
    "feature-",
    "request-",
    "multi-queue-",
    "carrier",
    "xdp-",
    "tx-",
    "rx-",
    "ctrl-",
    "event-channel",
    "mtu",
)


def _chain(asking: Asking, count: int) -> list[bytes]:
    """A frame in so many slots of 60 bytes."""
    more = [
        asking.request(asking.page(), TxFlag.MORE_DATA, size=60 * count if i == 0 else 60)
        for i in range(count - 1)
    ]
    return [*more, asking.request(asking.page(), size=60)]


def _gso(asking: Asking) -> list[bytes]:
    flags = TxFlag.EXTRA_INFO | TxFlag.CSUM_BLANK | TxFlag.DATA_VALIDATED
    gso = EXTRA_GSO.pack(ExtraType.GSO, 0, 1400, GsoType.TCPV4, 0, 0).ljust(TX_SLOT, b"\0")
    return [asking.request(asking.page(), flags), gso]


def _multicast(asking: Asking) -> list[bytes]:
    extra = bytes([ExtraType.MCAST_ADD, 0]) + bytes.fromhex("01005e000001")
    return [asking.request(asking.page(), TxFlag.EXTRA_INFO), extra.ljust(TX_SLOT, b"\0")]


def _empty(asking: Asking) -> list[bytes]:
    return [
        asking.request(asking.page(), TxFlag.MORE_DATA, size=120),
        asking.request(asking.page(), TxFlag.MORE_DATA, size=0),
        asking.request(asking.page(), size=60),
    ]


CASES: Sequence[tuple[str, str, Callable[[Asking], list[bytes]]]] = (
    ("frame", "", lambda asking: [asking.request(asking.page())]),
    ("burst", "", lambda asking: [asking.request(asking.page()) for _ in range(32)]),
    ("short", "", lambda asking: [asking.request(asking.page(), size=13)]),
    ("no grant", "", lambda asking: [asking.request(NEVER)]),
    ("two slots", Key.SG, lambda asking: _chain(asking, 2)),
    ("eighteen slots", Key.SG, lambda asking: _chain(asking, 18)),
    ("empty slot", Key.SG, _empty),
    ("segments", Key.GSO_TCPV4, _gso),
    ("multicast", Key.MULTICAST, _multicast),
    ("after all", "", lambda asking: [asking.request(asking.page())]),
)
FATAL: "dict[str, Callable[[Asking], list[bytes]]]" = {
    "beyond its page": lambda asking: [asking.request(asking.page(), offset=4000, size=1000)],
    "40 slots": lambda asking: [asking.request(asking.page(), TxFlag.MORE_DATA) for _ in range(40)],
    "extra of type 0": lambda asking: [asking.request(asking.page(), TxFlag.EXTRA_INFO), bytes(TX_SLOT)],
    "req_prod 1000 ahead": lambda _asking: [],
}
"""Chains that may end the connection, and must end nothing else; no slots: req_prod alone moves."""


async def ask_backend(
    where: Domain, ends: Addresses, patience: Patience, *, index: int = 0, say: Say = lambda _: None
) -> BackendSeen:
    """Be the guest `where` until its device `index` was asked everything; `say` is called with each question's name.

    TimeoutError: no backend offers the device.
    """
    async with Script(where, index=index, config=FrontConfig(split=False)) as script:
        return await Asking(script, ends, patience, say).run()
