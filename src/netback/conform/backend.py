# SPDX-License-Identifier: Apache-2.0
"""The backend that is played for a frontend under judgement: it serves one vif slot by slot and records all it sees.

It is slow and patient where netback is fast and strict: whatever the frontend does is recorded, and the run goes on as
long as it can. drive.py decides what happens when; rules.py judges the record.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from netback.abi.netif import (
    EXTRA_GSO,
    RX_REQUEST,
    RX_RESPONSE,
    RX_SLOT,
    TX_RESPONSE,
    TX_SLOT,
    ExtraType,
    RxFlag,
    Status,
)
from netback.abi.netif_control import CTRL_SLOT, HashAlgorithm, HashType
from netback.abi.netif_keys import Key
from netback.abi.ring import PAGE_SIZE, SRING, slots
from netback.abi.xenbus import XenbusState as State
from netback.conform.chains import WRAP, Chain, Gso, read_chains
from netback.conform.frames import toeplitz
from netback.conform.observation import (
    Changed,
    Control,
    Events,
    Frame,
    Indices,
    Missed,
    Opened,
    Page,
    Requests,
    Responses,
    Ring,
    Step,
)
from netback.conform.profiles import BackendProfile
from netback.conform.recorder import Recorder
from netback.dataplane.front.queue import RingPage
from netback.errors import PlatformError
from netback.platforms.base import MappedPage, Platform
from netback.vif.control_messages import ControlState, Request, Scope, handle
from netback.vif.features import MAX_QUEUES
from netback.xenbus.names import DeviceName
from netback.xenbus.nodes import write_device
from netback.xenstore.aio import Store, StoreError

_SLOT = {"tx": TX_SLOT, "rx": RX_SLOT, "ctrl": CTRL_SLOT}
_TRIED_PAGES = 8
"""Pages of each ring of which the backend tries whether it may write to them."""
_OVERDUE = 2
"""Looks, `Limits.event` apart, at which a notification may still be on its way."""
_ROUNDS = 4
"""Times that a ring is emptied before the drive goes on."""
_TICK = 0.005
"""Seconds between two looks for something that no event announces."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that the drive waits at most."""

    join: float = 10.0
    """For the frontend's domain."""
    answer: float = 5.0
    """For a state, for buffers."""
    settle: float = 0.3
    """After a frame, for its effects."""
    event: float = 0.25
    """For a notification that is due."""
    end: float = 3.0
    """For the process to end by itself, and again after SIGTERM."""


@dataclass(slots=True, eq=False)
class _Ring:
    """One ring of the connection."""

    kind: Ring
    queue: int
    page: RingPage
    mapped: MappedPage
    port: int
    seen: int = 0
    """Requests up to here were taken."""
    rsp: int = 0
    gref: int = 0
    armed: int = 1
    broken: bool = False
    pages: int = 0
    """Pages that were tried."""
    waiting: deque[bytes] = field(default_factory=deque)
    """RX requests without a frame."""
    chains: deque[tuple[Chain, dict[int, bytes]]] = field(default_factory=deque)
    """TX frames without a response, and the bytes of their slots by index."""
    arming: asyncio.TimerHandle | None = None
    overdue: int = 0
    """How often an event for its requests was due and had not come."""

    @property
    def size(self) -> int:
        return slots(_SLOT[self.kind])


@dataclass(slots=True)
class _Port:
    rings: list[_Ring]
    count: int = 0
    empty: int = 0
    unasked: int = 0


def _passed(new: int, old: int, event: int) -> bool:
    """Whether moving an index from `old` to `new` passes `event` (io/ring.h)."""
    return (new - event) % WRAP < (new - old) % WRAP


class PlayedBackend:
    """One vif of one frontend."""

    def __init__(
        self,
        platform: Platform,
        name: DeviceName,
        profile: BackendProfile,
        recorder: Recorder,
        limits: Limits,
        mac: str,
    ) -> None:
        self.platform, self.name, self.profile, self.limits, self.mac = platform, name, profile, limits, mac
        self._add = recorder.add
        self.rings: list[_Ring] = []
        self.ports: dict[int, _Port] = {}
        self.frontend_ports: list[int] = []
        self.state = State.INITIALISING
        self.theirs = State.UNKNOWN
        self.announces = False
        """The frontend notifies of RX buffers."""
        self.gone = False
        """The frontend closes or is gone; the drive ends."""
        self.frames = 0
        """Frames that the guest sent."""
        self.on_frame: Callable[[bytes], None] = lambda _frame: None
        self._answered = 0
        self._control = ControlState()
        self._news = asyncio.Event()
        self._held = False
        self._undo = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as undo:
            self.store: Store = await undo.enter_async_context(await self.platform.open_store())
            self.events = self.platform.open_events()
            undo.callback(self.events.close)
            self.memory = self.platform.open_memory(self.name.domid)
            loop = asyncio.get_running_loop()
            loop.add_reader(self.events.native.fd, self._fired)
            undo.callback(loop.remove_reader, self.events.native.fd)
            undo.callback(self.close_rings)
            for task in (loop.create_task(self._follow()), loop.create_task(self._watch_rings())):
                undo.push_async_callback(_end, task)
            self._undo = undo.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._undo.aclose()

    # ---- xenstore

    async def offer(self) -> None:
        """Write both directories as a toolstack does, then the offer, then InitWait."""
        frontend = {
            "backend": self.name.backend,
            "backend-id": str(self.name.backend_domid),
            "handle": self.name.number,
            "mac": self.mac,
            "state": str(int(State.INITIALISING)),
        }
        backend = {
            "frontend": self.name.frontend,
            "frontend-id": str(self.name.domid),
            "online": "1",
            "handle": self.name.number,
            "mac": self.mac,
            **self.profile.offer,
            "state": str(int(State.INITIALISING)),
        }
        await self.store.transact(lambda tx: write_device(self.store, self.name, frontend, backend, tx))
        await asyncio.sleep(self.limits.event)  # a frontend that does not wait for InitWait shows it here
        await self.set_state(State.INIT_WAIT)

    async def set_state(self, state: State | str) -> None:
        """Write the backend's state, of whatever value."""
        if isinstance(state, State):
            self.state = state
        value = str(int(state)) if isinstance(state, State) else state
        await self.store.write(f"{self.name.backend}/state", value)

    async def go_offline(self) -> None:
        """Ask for the device's end: rings down, then online=0 and Closing, as libxl writes them."""
        self.close_rings()
        await self.store.write(f"{self.name.backend}/online", "0")
        await self.set_state(State.CLOSING)
        await self._react()

    async def force(self) -> None:
        """Take the device away from a frontend that does not close, as libxl does: remove its directory."""
        await self.store.rm(self.name.frontend, missing_ok=True)
        await self.until(lambda: self.state is State.CLOSED, self.limits.settle)

    async def keys(self) -> dict[str, str]:
        """The frontend's keys, those of its queues included."""
        found: dict[str, str] = {}
        for name in await self.store.children(self.name.frontend):
            path = f"{self.name.frontend}/{name}"
            with suppress(StoreError):
                found[name] = await self.store.read(path)
                if name.startswith("queue-"):
                    for key in await self.store.children(path):
                        found[f"{name}/{key}"] = await self.store.read(f"{path}/{key}")
        return found

    async def _follow(self) -> None:
        """Follow the frontend's state. Its own way down is answered as xen-netback does."""
        path = f"{self.name.frontend}/state"
        async with await self.store.watch(path) as watch:
            async for _ in watch:
                try:
                    self.theirs = State.parse(await self.store.read_or(path))
                except StoreError:
                    self.theirs = State.UNKNOWN
                await self._react()
                self._news.set()

    async def _react(self) -> None:
        down = self.theirs in (State.CLOSING, State.CLOSED, State.UNKNOWN)
        if self.state is State.CONNECTED and (down or self.theirs is State.INITIALISING):
            self.gone = True
            self.rest(quiet=False)
            self.close_rings()
            await self.set_state(State.CLOSING)
        if self.state is State.CLOSING and self.theirs is not State.CLOSING and down:
            self.close_rings()
            with suppress(StoreError):  # the directory is gone, and the state with it
                await self.set_state(State.CLOSED)
        if self.theirs is State.RECONFIGURING and self.state is State.CONNECTED:
            await self.set_state(State.RECONFIGURED)
        elif self.theirs is State.CONNECTED and self.state is State.RECONFIGURED:
            await self.set_state(State.CONNECTED)

    async def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until `condition` holds; False if it does not in time."""
        end = time.monotonic() + seconds
        while not condition():
            left = end - time.monotonic()
            if left <= 0:
                return False
            self._news.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), min(left, _TICK))
        return True

    # ---- the connection

    async def connect(self, *, resume: bool = False) -> str:
        """Map the rings, bind the ports, Connected unless it resumes. Returns what failed, or ""."""
        keys = await self.keys()
        self.announces = keys.get(Key.RX_NOTIFY) == "1"
        count = _number(keys.get(Key.QUEUES, "1"))
        if not 1 <= count <= MAX_QUEUES:
            return f"{Key.QUEUES} is {keys.get(Key.QUEUES)!r}"
        for queue in range(count):
            at = f"queue-{queue}/" if count > 1 else ""
            split = f"{at}{Key.EVENT_CHANNEL_TX}" in keys and f"{at}{Key.EVENT_CHANNEL_RX}" in keys
            split = split and (
                self.profile.offers(Key.SPLIT_CHANNELS) or f"{at}{Key.EVENT_CHANNEL}" not in keys
            )
            tx = f"{at}{Key.EVENT_CHANNEL_TX if split else Key.EVENT_CHANNEL}"
            rx = f"{at}{Key.EVENT_CHANNEL_RX if split else Key.EVENT_CHANNEL}"
            self._open("tx", queue, keys.get(f"{at}{Key.TX_RING_REF}", ""), keys.get(tx, ""))
            self._open("rx", queue, keys.get(f"{at}{Key.RX_RING_REF}", ""), keys.get(rx, ""))
        control = Key.CTRL_RING_REF in keys and Key.EVENT_CHANNEL_CTRL in keys
        if control and self.profile.offers(Key.CTRL_RING):
            self._open("ctrl", 0, keys[Key.CTRL_RING_REF], keys[Key.EVENT_CHANNEL_CTRL])
        if len(self.rings) < 2 * count:
            self.close_rings()
            return "a ring cannot be used"
        if not resume:
            await self.set_state(State.CONNECTED)
        for ring in self.rings:
            self._look(ring)
        for port in self.ports:
            self.events.native.notify(port)
        return ""

    def _open(self, kind: Ring, queue: int, gref: str, port: str) -> None:
        ref, number = _number(gref), _number(port)
        error, header, bound = "", (0, 1, 0, 1), 0
        mapped: MappedPage | None = None
        try:
            mapped = self.platform.map_grant(self.name.domid, ref)
            bound = self._bind(number)
        except (PlatformError, OverflowError) as fault:
            error = str(fault)
        if mapped is not None and not error:
            page = RingPage(mapped.address, _SLOT[kind])
            req, event, rsp, rsp_event = SRING.unpack(page.raw[: SRING.size])
            header = (req, event, rsp, rsp_event)
            ring = _Ring(kind, queue, page, mapped, bound, seen=rsp, rsp=rsp, gref=ref)
            self.rings.append(ring)
            self.ports.setdefault(bound, _Port([])).rings.append(ring)
        elif mapped is not None:
            mapped.unmap()
        self._add(Opened(kind, queue, max(ref, 0) % WRAP, max(number, 0) % WRAP, error, not error, header))

    def _bind(self, number: int) -> int:
        """Bind the frontend's port, unless another ring has it."""
        if number in self.frontend_ports:
            return [*self.ports][self.frontend_ports.index(number)]
        bound = self.events.bind_interdomain(self.name.domid, number)
        self.frontend_ports.append(number)
        return bound

    def rest(self, *, quiet: bool = True) -> None:
        """Record the indices of all rings, and each port's notifications."""
        for ring in self.rings:
            req, event, rsp, rsp_event = SRING.unpack(ring.page.raw[: SRING.size])
            self._add(
                Indices(
                    ring.kind,
                    ring.queue,
                    (req, event, rsp, rsp_event),
                    ring.armed % WRAP,
                    ring.rsp % WRAP,
                    quiet,
                )
            )
        for port in self.ports.values():
            names = [ring.kind for ring in port.rings]
            self._add(Events([*names], port.rings[0].queue, port.count, port.empty, port.unasked))

    def close_rings(self) -> None:
        """Unbind the ports and unmap the rings. May be called again."""
        rings, ports = self.rings, [*self.ports]
        self.rings, self.ports = [], {}
        for port in ports:
            with suppress(PlatformError):
                self.events.unbind(port)
        for ring in rings:
            with suppress(PlatformError):
                ring.mapped.unmap()

    async def leave_and_return(self) -> str:
        """Unbind and unmap, with no word to the frontend, then return to the same rings at rsp_prod; as netback after a
        kill (docs/decisions.md, Resume). Returns what failed, or "".
        """
        old, self.frontend_ports = self.rings, []
        self.close_rings()
        await asyncio.sleep(self.limits.event)
        error = "left" if self.gone else await self.connect(resume=True)
        for before, ring in zip(old, self.rings, strict=False):
            # what was taken and not answered is in the ring; RX requests are taken again from there
            ring.pages = before.pages
        return error

    # ---- requests

    def _fired(self) -> None:
        for number in self.events.native.take():
            port = self.ports.get(number)
            if port is not None:
                port.count += 1
                moved = [ring for ring in port.rings if ring.page.req_prod != ring.seen]
                asked = [ring for ring in moved if _passed(ring.page.req_prod, ring.seen, ring.armed)]
                port.empty += not moved
                port.unasked += bool(moved) and not asked
                for ring in port.rings:
                    self._look(ring, arm=not self.profile.lazy)
                    if self.profile.lazy:
                        self._arm_later(ring)
            with suppress(PlatformError):
                self.events.native.unmask(number)
        self._news.set()

    def _arm_later(self, ring: _Ring) -> None:
        """Ask for the next event when no further one has come for a while."""
        if ring.arming is not None:
            ring.arming.cancel()
        loop = asyncio.get_running_loop()
        ring.arming = loop.call_later(self.limits.event / 10, self._look, ring)

    async def _watch_rings(self) -> None:
        """Look at rings that no event is due for, and find events that should have come."""
        while True:
            await asyncio.sleep(self.limits.event)
            for ring in self.rings:
                prod = ring.page.req_prod
                if prod == ring.seen or ring.broken:
                    ring.overdue = 0
                elif not _passed(prod, ring.seen, ring.armed):
                    self._look(ring)
                elif ring.overdue < _OVERDUE:
                    ring.overdue += 1
                else:
                    if ring.kind != "rx" or self.announces:
                        self._add(Missed(ring.kind, ring.queue, prod, ring.armed % WRAP))
                    self._look(ring)
            self._news.set()

    def _look(self, ring: _Ring, *, arm: bool = True) -> None:
        """Take new requests, then ask for the next event and look once more (io/ring.h, final check)."""
        ring.overdue = 0
        for _ in range(_ROUNDS):
            if ring.broken or ring not in self.rings:
                return
            prod = ring.page.req_prod
            if prod == ring.seen and not arm:
                return
            if prod == ring.seen:
                ring.armed = ring.seen + 1
                ring.page.req_event = ring.armed % WRAP
                if ring.page.req_prod == ring.seen:
                    return
                continue
            first, count = ring.seen, (prod - ring.seen) % WRAP
            if count > ring.size or (prod - ring.rsp) % WRAP > ring.size:
                ring.broken = True
                self._add(Requests(ring.kind, ring.queue, first, prod, []))
                return
            taken = [ring.page.get((first + i) % WRAP) for i in range(count)]
            ring.seen = prod
            self._add(Requests(ring.kind, ring.queue, first, prod, taken))
            {"tx": self._take_tx, "rx": self._take_rx, "ctrl": self._take_ctrl}[ring.kind](ring, first, taken)
        asyncio.get_running_loop().call_soon(
            self._look, ring
        )  # a frontend that never rests is not all there is

    def _take_rx(self, ring: _Ring, first: int, taken: Sequence[bytes]) -> None:
        for i, slot in enumerate(taken):
            gref = RX_REQUEST.unpack(slot)[2]
            ring.waiting.append(slot)
            if ring.pages < _TRIED_PAGES:
                ring.pages += 1
                status = 0 if self._maps(gref, readonly=False) else -1
                self._add(Page("rx", ring.queue, (first + i) % WRAP, gref, status, status == 0))

    def _take_tx(self, ring: _Ring, first: int, taken: Sequence[bytes]) -> None:
        for chain in read_chains(ring.queue, first, taken):
            copies: dict[int, bytes] = {}
            for request, length in zip(chain.requests, chain.lengths, strict=True):
                if chain.multicast or length <= 0 or request.offset + length > PAGE_SIZE:
                    continue
                status, data = self.memory.read(request.gref, request.offset, length)
                writable = None
                if ring.pages < _TRIED_PAGES:
                    ring.pages += 1
                    writable = self._maps(request.gref, readonly=False)
                if status == 0:
                    copies[request.slot] = data
                self._add(Page("tx", ring.queue, request.slot, request.gref, status, writable, data))
            ring.chains.append((chain, copies))
            if not chain.multicast and len(copies) == len(chain.requests):
                frame = b"".join(copies.values())
                self.frames += 1
                self.on_frame(frame)
        if not self._held:
            self._respond(ring)

    def _maps(self, gref: int, *, readonly: bool) -> bool:
        try:
            self.platform.map_grant(self.name.domid, gref, readonly=readonly).unmap()
        except (PlatformError, OverflowError):
            return False
        return True

    def _respond(self, ring: _Ring) -> None:
        """Answer every TX frame that was taken, in one push."""
        data: list[bytes] = []
        extras: list[int] = []
        first = ring.rsp
        count = 0
        while ring.chains:
            chain, copies = ring.chains.popleft()
            status = Status.OKAY if chain.multicast else self._next_status()
            self._compare(ring, chain, copies)
            for request in chain.requests:
                data.append(TX_RESPONSE.pack(request.id, status))
                if request is chain.requests[0]:
                    extras += range(count + 1, count + 1 + len(chain.extras))
                    count += len(chain.extras)
                count += 1
        if self.profile.reverse:
            data.reverse()
        answers = iter(data)
        out = [TX_RESPONSE.pack(0, Status.NULL) if i in extras else next(answers) for i in range(count)]
        self._publish(ring, first, out)

    def _next_status(self) -> Status:
        status = self.profile.statuses[self._answered % len(self.profile.statuses)]
        self._answered += 1
        return status

    def _compare(self, ring: _Ring, chain: Chain, copies: dict[int, bytes]) -> None:
        """See whether the frame is still what it was when it was taken."""
        for request in chain.requests:
            if request.slot in copies:
                before = copies[request.slot]
                status, now = self.memory.read(request.gref, request.offset, len(before))
                if status:
                    self._add(Changed("tx", ring.queue, request.slot, "grant"))
                elif now != before:
                    self._add(Changed("tx", ring.queue, request.slot, "data"))

    def hold(self, on: bool) -> None:
        """Keep TX responses back, or publish those that were."""
        self._held = on
        for ring in self.rings:
            if ring.kind == "tx" and not on:
                self._respond(ring)

    def _publish(self, ring: _Ring, first: int, out: list[bytes]) -> None:
        if not out:
            return
        for i, slot in enumerate(out):
            ring.page.put((first + i) % WRAP, slot)
        ring.rsp = (first + len(out)) % WRAP
        notified = ring.page.respond(ring.rsp)
        if notified:
            self.events.native.notify(ring.port)
        self._add(Responses(ring.kind, ring.queue, first, out, notified))

    def _take_ctrl(self, ring: _Ring, first: int, taken: Sequence[bytes]) -> None:
        queues = max(1, sum(other.kind == "tx" for other in self.rings))
        scope = Scope(queues, self._read_page, lambda gref, data: self.memory.write(gref, 0, data) == 0)
        out = []
        for slot in taken:
            request = Request.decode(slot)
            answer, self._control = handle(self._control, request, scope)
            self._add(Control(slot, int(answer.status)))
            out.append(answer.encode(request))
        self._publish(ring, first, out)

    def _read_page(self, gref: int, length: int) -> bytes | None:
        if length > PAGE_SIZE:
            return None
        status, data = self.memory.read(gref, 0, length)
        return data if status == 0 else None

    # ---- frames for the guest

    def ring(self, kind: Ring, queue: int = 0) -> _Ring | None:
        """A ring of the connection, None without it."""
        return next((ring for ring in self.rings if (ring.kind, ring.queue) == (kind, queue)), None)

    @property
    def queues(self) -> int:
        return sum(ring.kind == "rx" for ring in self.rings)

    def posted(self, ring: _Ring) -> int:
        """RX buffers that wait for a frame. Only a frontend without feature-rx-notify is polled for them."""
        if not self.announces:
            self._look(ring)
        return len(ring.waiting)

    def caught_up(self) -> bool:
        """Whether the frontend asks for an event behind the last response of every RX ring."""
        return all(
            0 < (ring.page.rsp_event - ring.rsp) % WRAP < WRAP // 2
            for ring in self.rings
            if ring.kind == "rx"
        )

    async def put(
        self,
        form: str,
        queue: int,
        frame: bytes,
        *,
        flags: RxFlag = RxFlag(0),  # noqa: B008 (frozen)
        gso: Gso | None = None,
        split: int = 0,
        hashed: bool = False,
        settle: bool = True,
    ) -> bool:
        """Give the guest a frame, in slots of at most `split` bytes (0: a page); `hashed`: a TCP frame over IPv4 with
        its Toeplitz hash. False: no slots came in time.
        """
        ring = self.ring("rx", queue)
        if ring is None:
            return False
        pieces = _pieces(frame, PAGE_SIZE - self.profile.rx_offset, split)
        extras = [] if gso is None else [EXTRA_GSO.pack(ExtraType.GSO, 0, gso.size, gso.type, 0, 0)]
        extras += [self._hash(frame)] if hashed else []
        need = len(pieces) + len(extras)
        enough = await self.until(lambda: self.gone or self.posted(ring) >= need, self.limits.answer)
        if not enough or self.gone or ring.broken:
            if not self.gone:
                self._add(Frame(form, queue, need, False))
            return False
        self._skip_rings(ring)
        out: list[bytes] = []
        first = ring.rsp
        for number, piece in enumerate(pieces):
            ident, _, gref = RX_REQUEST.unpack(ring.waiting.popleft())
            offset = 0 if number else self.profile.rx_offset
            status = self.memory.write(gref, offset, piece)
            if status:
                self._add(Page("rx", queue, (first + len(out)) % WRAP, gref, status))
            more = RxFlag.MORE_DATA if number + 1 < len(pieces) else 0
            mine = (flags | (RxFlag.EXTRA_INFO if extras else 0)) if number == 0 else 0
            length = Status.ERROR if status else len(piece)
            out.append(RX_RESPONSE.pack(ident, offset, more | mine, length))
            if number == 0:
                for extra in extras:
                    ring.waiting.popleft()
                    out.append(extra)
        before = ring.page.req_prod
        self._publish(ring, first, out)
        consumed = False
        if settle:
            consumed = (
                await self.until(lambda: self.gone or self._consumed(ring, before), self.limits.settle)
                and not self.gone
            )
            if not self.gone:
                self._add(Frame(form, queue, need, True, consumed, frame))
        return True

    @property
    def hashes(self) -> bool:
        """Whether the frontend wants the hash of TCP over IPv4 with its frames."""
        return self._control.active and bool(self._control.types & HashType.IPV4_TCP)

    def _hash(self, frame: bytes) -> bytes:
        """The extra info with a frame's hash: the value's least significant byte comes first."""
        value = toeplitz(self._control.key, frame[26:38])
        kind = HashType.IPV4_TCP.bit_length() - 1
        return bytes([ExtraType.HASH, 0, kind, HashAlgorithm.TOEPLITZ]) + value.to_bytes(4, "little")

    def _skip_rings(self, ring: _Ring) -> None:
        """Return buffers that are a ring's page with ERROR: a frame in them would destroy the ring."""
        taken = {other.gref for other in self.rings}
        while ring.waiting and RX_REQUEST.unpack(ring.waiting[0])[2] in taken:
            ident = RX_REQUEST.unpack(ring.waiting.popleft())[0]
            self._publish(ring, ring.rsp, [RX_RESPONSE.pack(ident, 0, 0, Status.ERROR)])

    def _consumed(self, ring: _Ring, before: int) -> bool:
        """Whether the frontend has looked behind the last response, or posted a buffer since."""
        return ring.page.req_prod != before or 0 < (ring.page.rsp_event - ring.rsp) % WRAP < WRAP // 2

    async def fail_buffer(self, queue: int) -> bool:
        """Return one RX buffer with the status ERROR."""
        ring = self.ring("rx", queue)
        if ring is None or not await self.until(
            lambda: self.gone or self.posted(ring) > 0, self.limits.answer
        ):
            return False
        if self.gone:
            return False
        ident = RX_REQUEST.unpack(ring.waiting.popleft())[0]
        self._publish(ring, ring.rsp, [RX_RESPONSE.pack(ident, 0, 0, Status.ERROR)])
        return True

    def step(self, name: str, outcome: str = "") -> None:
        """Record a step's beginning or end."""
        self._add(Step(name, outcome))


def _pieces(frame: bytes, room: int, split: int) -> list[bytes]:
    """A frame as its slots' bytes: `room` in the first page, a whole page in each other, `split` if that is less."""
    first, other = min(room, split or room), min(PAGE_SIZE, split or PAGE_SIZE)
    rest = frame[first:]
    return [frame[:first], *(rest[i : i + other] for i in range(0, len(rest), other))]


def _number(text: str) -> int:
    """A number as sscanf reads it: blanks and a plus sign may precede it; -1 for any other text."""
    digits = text.strip().removeprefix("+")
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 11 else -1


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error
