# SPDX-License-Identifier: Apache-2.0
"""The oracle: one queue's data plane in plain Python, which the native code must agree with on every input.

Written from netif.h and docs/decisions.md alone. It imports nothing of netback, and has no budget, no offload and
no time: a burst runs until its ring is drained, until slots run out, or until the guest broke the
protocol. TX is what the guest sends.

What the two pages leave open, and how it is settled here (netif.h, and what guests see of Linux'
netback):
- An extra's answer has no id: id 0, status NULL, zeros. Frontends skip NULL before they read an id.
- HASH extras (type 4) are known but never offered by us: answered NULL, else ignored.
- A request with an extra of type MCAST_ADD or MCAST_DEL is no frame: its other fields, MORE_DATA too, mean
  nothing, and the slot after its extras begins the next chain. ADD wins over DEL; of several the last counts.
  The list is a set of at most 64 addresses of any kind: ADD of a 65th is ERROR, everything else OKAY. It may
  be changed at any time, and filters only where the guest asked for that: multicast frames of other addresses
  are not delivered, broadcast frames are.
- Any number of extras may be chained by MORE, up to req_prod; of several GSO extras the last counts, and
  each must be valid. GSO type NONE is as fatal as an unknown one.
- A fatal cause anywhere in a chain wins over any cause for ERROR. Chains wholly before it are sent and
  answered, then nothing more happens on either ring of the queue: no answer, no arming.
- The first request's length is the total less all others; less than nothing is ERROR on every data slot,
  exactly nothing is a zero-length slot. A zero-length slot is not copied, so its grant is not looked at,
  but its offset is.
- One failed grant copy: nothing is sent and every data slot of that frame says ERROR. Extras are always
  NULL.
- extra_info on any but the first request, and flag bits that netif.h does not name, mean nothing.
- RX: a slot whose grant fails says ERROR and keeps its id, offset and flags, so that the frontend still
  walks the chain; the frame's other slots are written and reported. Only the first has an offset and
  checksum flags.
- RX: where the guest asked for XDP headroom every frame begins there, in its first slot alone, and carries the
  extra of type 5 that says so, behind the GSO extra. TX extras of type 5 are unknown.
- RX: no slot left: req_event asks for the next slot, or for all that the next frame needs. Slots left but
  too few: it asks for exactly those that the waiting frame needs. Slots left and no frame waits: not
  armed.
"""

import itertools
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.hash_oracle import TOEPLITZ, flow_hash

PAGE, RING_HEADER, SLOTS = 4096, 64, 256
REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT = 0, 4, 8, 12
TX_REQUEST, TX_RESPONSE = struct.Struct("<IHHHH"), struct.Struct("<Hh8x")
RX_REQUEST, RX_RESPONSE = struct.Struct("<HHI"), struct.Struct("<HHHh")
EXTRA, GRANT, INDEX = struct.Struct("<BBHBBH"), struct.Struct("<HHI"), struct.Struct("<I")
HASH_EXTRA = struct.Struct("<BBBBI")

TX_CSUM_BLANK, TX_DATA_VALIDATED = 1, 2
RX_DATA_VALIDATED, RX_CSUM_BLANK = 1, 2
MORE_DATA, EXTRA_INFO = 4, 8
NULL, OKAY, ERROR = 1, 0, -1
GSO, MCAST_ADD, MCAST_DEL, HASH, XDP, EXTRA_MORE = 1, 2, 3, 4, 5, 1
BROADCAST, MULTICAST_MAX = b"\xff" * 6, 64
PERMIT_ACCESS, TYPE_MASK, READONLY = 1, 3, 4
MIN_FRAME, SERVED, ANSWERED = 14, 20, 21


Memory = bytearray | memoryview | mmap.mmap


class Fatal(Exception):
    """The guest broke the protocol in a way that closes its vif."""


class Frame(NamedTuple):
    """A frame and what it says of itself, on either ring."""

    data: bytes
    csum_blank: bool = False
    data_validated: bool = False
    gso_type: int = 0
    gso_size: int = 0


class Request(NamedTuple):
    gref: int
    offset: int
    flags: int
    id: int
    size: int


class Extra(NamedTuple):
    type: int
    flags: int
    size: int
    gso_type: int
    pad: int
    features: int

    @property
    def address(self) -> bytes:
        """Of a MCAST extra."""
        return EXTRA.pack(*self)[2:]


@dataclass(frozen=True, slots=True)
class Config:
    """Where a queue lies in its guest's memory, and what the guest agreed to."""

    grant_pages: int = 1
    backend_domid: int = 0
    tx_page: int = 1
    rx_page: int = 2
    sg: bool = True
    rx_offset: int = 0
    multicast_control: bool = False
    xdp: bool = False
    """`rx_offset` is the XDP headroom."""
    hash_types: int = 0
    hash_key: bytes = b""
    staged: tuple[tuple[int, int, bool], ...] = ()
    """gref, frame, and whether it is read-only, of pages that stay mapped whatever becomes of their grants."""


@dataclass(slots=True)
class Burst:
    """What one burst did beside its marks in the guest's memory. `wanted`: req_event asks for so many requests."""

    sent: list[Frame] = field(default_factory=list)
    taken: int = 0
    dropped: int = 0
    damaged: int = 0
    wanted: int = 0
    notify: bool = False
    fatal: str = ""


@dataclass(slots=True)
class Chain:
    """One frame's slots on the TX ring: data requests, and the extras behind the first of them."""

    data: list[Request]
    extras: list[Extra]

    def lengths(self) -> list[int]:
        """Bytes in each data slot: the first request's size is the total."""
        rest = [request.size for request in self.data[1:]]
        return [self.data[0].size - sum(rest), *rest]

    def valid(self) -> bool:
        lengths = self.lengths()
        inside = all(r.offset + n <= PAGE for r, n in zip(self.data, lengths, strict=True))
        return len(self.data) <= SERVED and self.data[0].size >= MIN_FRAME and lengths[0] >= 0 and inside

    def frame(self, data: bytes) -> Frame:
        flags = self.data[0].flags
        gso = [extra for extra in self.extras if extra.type == GSO]
        segments = (gso[-1].gso_type, gso[-1].size) if gso else (0, 0)
        return Frame(data, bool(flags & TX_CSUM_BLANK), bool(flags & TX_DATA_VALIDATED), *segments)

    def change(self) -> Extra | None:
        """The extra by which this is no frame, but a change of the multicast list."""
        kinds = {extra.type: extra for extra in self.extras}
        return kinds.get(MCAST_ADD) or kinds.get(MCAST_DEL)

    def answers(self, status: int) -> list[bytes]:
        first, *rest = [TX_RESPONSE.pack(request.id, status) for request in self.data]
        return [first, *[TX_RESPONSE.pack(0, NULL)] * len(self.extras), *rest]


def following(slots: Iterator[bytes]) -> bytes:
    slot = next(slots, None)
    if slot is None:
        raise Fatal("a chain runs past req_prod")
    return slot


def checked(extra: Extra) -> Extra:
    if not GSO <= extra.type <= HASH:
        raise Fatal(f"extra of type {extra.type}")
    if extra.type == GSO and (extra.size == 0 or extra.gso_type not in (1, 2)):
        raise Fatal(f"GSO of size {extra.size} and type {extra.gso_type}")
    return extra


def chains(slots: Iterator[bytes]) -> Iterator[Chain]:
    """Cut private copies of TX slots into chains; Fatal at the first impossible one."""
    for slot in slots:
        chain = Chain([Request(*TX_REQUEST.unpack(slot))], [])
        more = chain.data[0].flags & EXTRA_INFO
        while more:
            chain.extras.append(checked(Extra(*EXTRA.unpack_from(following(slots)))))
            more = chain.extras[-1].flags & EXTRA_MORE
        while chain.change() is None and chain.data[-1].flags & MORE_DATA:
            if len(chain.data) == ANSWERED:
                raise Fatal(f"more than {ANSWERED} data slots")
            chain.data.append(Request(*TX_REQUEST.unpack(following(slots))))
        yield chain


class Ring:
    """The backend's end of a ring. A burst answers all that it takes, so one index is enough."""

    def __init__(self, memory: Memory, page: int, slot_size: int) -> None:
        self.memory, self.base, self.slot_size = memory, page * PAGE, slot_size
        self.next = self.load(RSP_PROD)

    def load(self, at: int) -> int:
        return int(INDEX.unpack_from(self.memory, self.base + at)[0])

    def store(self, at: int, value: int) -> None:
        INDEX.pack_into(self.memory, self.base + at, value % 2**32)

    def at(self, index: int) -> slice:
        start = self.base + RING_HEADER + index % SLOTS * self.slot_size
        return slice(start, start + self.slot_size)

    def requests(self) -> list[bytes]:
        """Private copies of all that wait."""
        waiting = (self.load(REQ_PROD) - self.next) % 2**32
        if waiting > SLOTS:
            raise Fatal(f"req_prod is {waiting} requests ahead")
        return [bytes(self.memory[self.at(self.next + i)]) for i in range(waiting)]

    def answer(self, responses: list[bytes]) -> bool:
        """Write and publish responses; returns whether the frontend asked for an event."""
        if not responses:
            return False
        for i, response in enumerate(responses):
            self.memory[self.at(self.next + i)] = response
        self.next = (self.next + len(responses)) % 2**32
        self.store(RSP_PROD, self.next)
        return (self.next - self.load(RSP_EVENT)) % 2**32 < len(responses)

    def arm(self, wanted: int) -> int:
        """Ask for an event once `wanted` more requests wait; 0: leave it as it is."""
        if wanted:
            self.store(REQ_EVENT, self.next + wanted)
        return wanted


def split(data: bytes, offset: int) -> list[bytes]:
    """A frame's bytes by RX data slot, the first of which begins at `offset`."""
    cuts = [0, *range(PAGE - offset, len(data), PAGE), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(cuts)]


class Oracle:
    """One queue, attached where its rings' rsp_prod stand. `memory` is the guest's, its grant table first."""

    def __init__(self, memory: Memory, config: Config) -> None:
        self.memory, self.config = memory, config
        self.tx_ring = Ring(memory, config.tx_page, TX_REQUEST.size)
        self.rx_ring = Ring(memory, config.rx_page, RX_REQUEST.size)
        self.multicast = set[bytes]()
        self.fatal = ""

    def granted(self, gref: int, writing: bool) -> int | None:
        """Where the page begins that `gref` grants to us for this use, or that is staged for it."""
        for staged, frame, readonly in self.config.staged:
            if staged == gref and not (writing and readonly):
                return frame * PAGE
        if gref >= self.config.grant_pages * PAGE // GRANT.size:
            return None
        flags, domid, frame = GRANT.unpack_from(self.memory, gref * GRANT.size)
        allowed = flags & TYPE_MASK == PERMIT_ACCESS and domid == self.config.backend_domid
        if not allowed or (writing and flags & READONLY) or frame >= len(self.memory) // PAGE:
            return None
        return int(frame * PAGE)

    def read(self, gref: int, offset: int, length: int) -> bytes | None:
        page = self.granted(gref, writing=False) if length else 0
        return None if page is None else bytes(self.memory[page + offset : page + offset + length])

    def write(self, gref: int, offset: int, data: bytes) -> bool:
        page = self.granted(gref, writing=True)
        if page is not None:
            self.memory[page + offset : page + offset + len(data)] = data
        return page is not None

    def assemble(self, chain: Chain) -> Frame | None:
        """The frame behind a chain; None where every slot must say ERROR."""
        if not chain.valid():
            return None
        pieces = [self.read(r.gref, r.offset, n) for r, n in zip(chain.data, chain.lengths(), strict=True)]
        return None if None in pieces else chain.frame(b"".join(piece or b"" for piece in pieces))

    def listed(self, extra: Extra) -> int:
        """Change the multicast list; returns the status."""
        if extra.type == MCAST_DEL:
            self.multicast.discard(extra.address)
        elif extra.address not in self.multicast and len(self.multicast) == MULTICAST_MAX:
            return ERROR
        else:
            self.multicast.add(extra.address)
        return OKAY

    def wanted(self, frame: Frame) -> bool:
        """Whether the guest's multicast list lets a frame pass."""
        address = frame.data[:6]
        multicast = self.config.multicast_control and address[0] & 1 and address != BROADCAST
        return not multicast or address in self.multicast

    def tx(self) -> Burst:
        """Send all that the guest posted."""
        burst, answers = Burst(fatal=self.fatal), list[bytes]()
        if self.fatal:
            return burst
        try:
            for chain in chains(iter(self.tx_ring.requests())):
                if change := chain.change():
                    answers += chain.answers(self.listed(change))
                    continue
                frame = self.assemble(chain)
                answers += chain.answers(ERROR if frame is None else OKAY)
                burst.sent += [] if frame is None else [frame]
        except Fatal as cause:
            burst.fatal = self.fatal = str(cause)
        burst.notify = self.tx_ring.answer(answers)
        burst.wanted = self.tx_ring.arm(int(not burst.fatal))
        return burst

    def extras(self, frame: Frame) -> list[bytes]:
        """The extra infos of an RX frame in ascending order of their types, each but the last with MORE."""
        infos = [EXTRA.pack(GSO, 0, frame.gso_size, frame.gso_type, 0, 0)] if frame.gso_type else []
        if flow := flow_hash(frame.data, self.config.hash_types, self.config.hash_key):
            infos.append(HASH_EXTRA.pack(HASH, 0, flow[0], TOEPLITZ, flow[1]))
        infos += [EXTRA.pack(XDP, 0, self.config.rx_offset, 0, 0, 0)] if self.config.xdp else []
        return [bytes([info[0], EXTRA_MORE]) + info[2:] for info in infos[:-1]] + infos[-1:]

    def needed(self, frame: Frame) -> int:
        """The RX slots of a frame."""
        return len(split(frame.data, self.config.rx_offset)) + len(self.extras(frame))

    def fits(self, frame: Frame) -> bool:
        """Whether any number of slots suffices."""
        several = len(split(frame.data, self.config.rx_offset)) > 1 or frame.gso_type
        return self.needed(frame) <= SLOTS and (self.config.sg or not several)

    def fill(self, frame: Frame, pieces: list[bytes], slots: list[bytes]) -> tuple[list[bytes], bool]:
        """Put one frame into its RX slots: a response for each, and whether every copy was allowed."""
        extras = self.extras(frame)
        first = RX_CSUM_BLANK * frame.csum_blank | RX_DATA_VALIDATED * frame.data_validated
        first |= EXTRA_INFO * bool(extras)
        answers, whole = list[bytes](), True
        for i, (slot, piece) in enumerate(zip(slots[:1] + slots[1 + len(extras) :], pieces, strict=True)):
            id_, _, gref = RX_REQUEST.unpack(slot)
            offset = 0 if i else self.config.rx_offset
            flags = (0 if i else first) | (MORE_DATA if i + 1 < len(pieces) else 0)
            written = self.write(gref, offset, piece)
            answers.append(RX_RESPONSE.pack(id_, offset, flags, len(piece) if written else ERROR))
            whole &= written
        return answers[:1] + extras + answers[1:], whole

    def place(self, frames: list[Frame], slots: list[bytes], burst: Burst) -> tuple[list[bytes], int]:
        """Frames into slots while they last: the responses, and how many slots to wait for (0: none)."""
        answers = list[bytes]()
        for frame in frames:
            pieces, left = split(frame.data, self.config.rx_offset), slots[len(answers) :]
            needed = self.needed(frame)
            if not left:
                break
            if not self.wanted(frame):
                burst.taken += 1
                continue
            if not self.fits(frame):
                burst.dropped += 1
            elif needed > len(left):
                return answers, needed
            else:
                done, whole = self.fill(frame, pieces, left[:needed])
                answers += done
                burst.damaged += not whole
            burst.taken += 1
        return answers, int(len(answers) == len(slots))

    def rx(self, frames: list[Frame]) -> Burst:
        """Put frames into posted slots, in order; `taken` counts those delivered or dropped."""
        burst = Burst(fatal=self.fatal)
        if self.fatal:
            return burst
        try:
            slots = self.rx_ring.requests()
        except Fatal as cause:
            burst.fatal = self.fatal = str(cause)
            return burst
        answers, wanted = self.place(frames, slots, burst)
        burst.notify = self.rx_ring.answer(answers)
        burst.wanted = self.rx_ring.arm(wanted)
        return burst
