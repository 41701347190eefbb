# SPDX-License-Identifier: Apache-2.0
"""Lists of ring operations, honest and hostile: a guest's writes to its memory, and the backend's polls.

A case is plain data made from one `random.Random`, seeded or hypothesis', and can be played on any memory: the oracle
and the native code see the same bytes. It uses netif's rings as a frontend does, and nothing of netback.
"""

import functools
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.oracle import EXTRA, GRANT, INDEX, PAGE, RX_REQUEST, SLOTS, TX_REQUEST, Config, Frame, Memory

PAGES = 44
"""Of the guest: grant table, two rings, then data."""
HEADER_PAGES, TX_PAGES, RX_PAGES = range(3, 15), range(15, 28), range(28, 44)
"""Frames with parsable headers, other frames that the guest sends, buffers that it posts: apart, so that none
is overwritten before it is sent."""
FIRST_GREF = 8
READONLY_GREF, FOREIGN_GREF, REVOKED_GREF, TRANSFER_GREF, TRANSITIVE_GREF, BEYOND_GREF = range(400, 406)
BAD_TX_GREFS = (
    FOREIGN_GREF,
    REVOKED_GREF,
    TRANSFER_GREF,
    TRANSITIVE_GREF,
    BEYOND_GREF,
    511,
    512,
    2**31,
    2**32 - 1,
)
BAD_RX_GREFS = (READONLY_GREF, *BAD_TX_GREFS)
SPECIAL_GRANTS = (
    (READONLY_GREF, 5, 0, TX_PAGES[0]),
    (FOREIGN_GREF, 1, 1, TX_PAGES[0]),
    (REVOKED_GREF, 0, 0, TX_PAGES[0]),
    (TRANSFER_GREF, 2, 0, TX_PAGES[0]),
    (TRANSITIVE_GREF, 3, 0, TX_PAGES[0]),
    (BEYOND_GREF, 1, 0, PAGES),
)

TX, RX = "tx", "rx"
SLOT = {TX: TX_REQUEST.size, RX: RX_REQUEST.size}
CSUM_BLANK, DATA_VALIDATED, MORE_DATA, EXTRA_INFO = 1, 2, 4, 8
EXTRA_MORE = 1
GSO, MCAST_ADD, MCAST_DEL, HASH = 1, 2, 3, 4
MARK = b"\x02tcp/4", b"\x02tcp/6"
"""Sources of frames with correct headers: only in these can a checksum be completed."""
HEADS = 54, 74
TO = b"\x02\0\0\0\0\1", *(b"\x01\0\x5e\0\0" + bytes([i]) for i in range(8)), b"\xff" * 6
"""Where frames from the network go: to one guest, to eight groups, to all."""
OTHER = tuple(b"\x33\x33\0\0\0" + bytes([i]) for i in range(80))
"""Addresses that a guest puts into its list, and that no frame has."""
WRAPS = (0, 2**31 - 3, 2**31 - 200, 2**32 - 2, 2**32 - 7, 2**32 - 100, 2**32 - 256, 12345)


def gref_of(page: int) -> int:
    return FIRST_GREF + page


@dataclass(frozen=True, slots=True)
class Grant:
    """An entry of the grant table is written."""

    gref: int
    flags: int
    domid: int
    frame: int


@dataclass(frozen=True, slots=True)
class Fill:
    """A page gets new bytes, `head` first."""

    frame: int
    seed: int
    head: bytes = b""


@dataclass(frozen=True, slots=True)
class Post:
    """Requests go to a ring, whole chains or none, if it has room; req_prod is off by `ahead`."""

    ring: str
    slots: tuple[bytes, ...]
    ahead: int = 0


@dataclass(frozen=True, slots=True)
class Listen:
    """rsp_event asks for a notification `ahead` responses from now."""

    ring: str
    ahead: int


@dataclass(frozen=True, slots=True)
class Scribble:
    """One of the backend's own words gets a random value."""

    ring: str
    at: int
    value: int


@dataclass(frozen=True, slots=True)
class Send:
    """The backend handles the TX ring."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A frame from the network: its bytes follow from these. `ip` 4 or 6 makes it TCP, `mss` GSO; `to` is in TO."""

    length: int
    seed: int
    ip: int = 0
    validated: bool = False
    mss: int = 0
    to: int = 0

    def frame(self) -> Frame:
        return frame_of(self)


@dataclass(frozen=True, slots=True)
class Deliver:
    """The backend finds frames at its peer."""

    specs: tuple[Spec, ...]


Op = Grant | Fill | Post | Listen | Scribble | Send | Deliver


@dataclass(frozen=True, slots=True)
class Case:
    config: Config
    start: int
    ops: tuple[Op, ...]
    limited: bool = False
    """The vif has a rate, which frames wait for; what happens to them is the same."""
    split: bool = False
    """Each ring has an event channel of its own."""
    polled: bool = False
    """No event follows RX slots, as from mini-os and Unikraft; what happens to the slots is the same."""


def tcp_head(ip: int, length: int) -> bytes:
    """Ethernet, IP and TCP headers that are true of a frame of `length` bytes, checksums blank."""
    tcp = struct.pack(">HHIIBBHHH", 40000, 5201, 1, 2, 5 << 4, 0x10, 512, 0, 0)
    if ip == 4:
        inner = struct.pack(">BBHHHBBHII", 0x45, 0, length - 14, 7, 0x4000, 64, 6, 0, 0x0A000001, 0x0A000002)
        return b"\x02\0\0\0\0\1" + MARK[0] + b"\x08\x00" + inner + tcp
    inner = struct.pack(
        ">IHBB16s16s", 6 << 28, length - 54, 6, 64, b"\xfd" + bytes(14) + b"\1", b"\xfd" + bytes(15)
    )
    return b"\x02\0\0\0\0\1" + MARK[1] + b"\x86\xdd" + inner + tcp


def truthful(data: bytes) -> bool:
    """Whether the frame is one of ours with headers that state its real length."""
    return any(
        mark == data[6:12] and data[: HEADS[i]] == tcp_head((4, 6)[i], len(data))
        for i, mark in enumerate(MARK)
    )


@functools.lru_cache(maxsize=512)
def frame_of(spec: Spec) -> Frame:
    head = tcp_head(spec.ip, spec.length) if spec.ip else TO[spec.to] + b"\x02plain\x88\xb5"
    data = (head + random.Random(spec.seed).randbytes(max(spec.length - len(head), 0)))[: spec.length]
    if not spec.ip:
        return Frame(data, data_validated=spec.validated)
    return Frame(data, True, True, (1 if spec.ip == 4 else 2) if spec.mss else 0, spec.mss)


@functools.lru_cache(maxsize=512)
def page_of(seed: int) -> bytes:
    return random.Random(seed).randbytes(PAGE)


class Guest:
    """A frontend: it plays operations on its memory, and waits for nothing."""

    def __init__(self, memory: Memory, case: Case) -> None:
        self.memory = memory
        self.base = {TX: case.config.tx_page * PAGE, RX: case.config.rx_page * PAGE}
        self.prod = {TX: case.start, RX: case.start}
        for ring, start in self.prod.items():
            for at, index in enumerate((start, start + 1, start, start + 1)):
                self.store(ring, 4 * at, index)
        for page in (*HEADER_PAGES, *TX_PAGES, *RX_PAGES):
            self.apply(Grant(gref_of(page), 1, case.config.backend_domid, page))
            self.apply(Fill(page, page))
        for gref, flags, domid, frame in SPECIAL_GRANTS:
            self.apply(Grant(gref, flags, case.config.backend_domid + domid, frame))

    def store(self, ring: str, at: int, value: int) -> None:
        INDEX.pack_into(self.memory, self.base[ring] + at, value % 2**32)

    def load(self, ring: str, at: int) -> int:
        return int(INDEX.unpack_from(self.memory, self.base[ring] + at)[0])

    def apply(self, op: Op) -> None:
        match op:
            case Grant(gref, flags, domid, frame):
                GRANT.pack_into(self.memory, gref * GRANT.size, flags, domid, frame)
            case Fill(frame, seed, head):
                self.memory[frame * PAGE : (frame + 1) * PAGE] = head + page_of(seed)[len(head) :]
            case Post():
                self.post(op)
            case Listen(ring, ahead):
                self.store(ring, 12, self.load(ring, 8) + ahead)
            case Scribble(ring, at, value):
                self.store(ring, at, value)
            case Send() | Deliver():
                raise TypeError("a backend's part")

    def post(self, op: Post) -> None:
        waiting = (self.prod[op.ring] - self.load(op.ring, 8)) % 2**32
        if waiting + len(op.slots) > SLOTS:
            return
        size = SLOT[op.ring]
        for i, slot in enumerate(op.slots):
            at = self.base[op.ring] + 64 + (self.prod[op.ring] + i) % SLOTS * size
            self.memory[at : at + size] = slot
        self.prod[op.ring] = (self.prod[op.ring] + len(op.slots)) % 2**32
        self.store(op.ring, 0, self.prod[op.ring] + op.ahead)


# --- chains

Piece = tuple[int, int, int]
"""gref, offset, length of one data slot."""


def chain(
    rng: random.Random, pieces: Sequence[Piece], flags: int = 0, extras: Sequence[bytes] = (), **odd: int
) -> tuple[bytes, ...]:
    """One frame's slots. `odd` overrides the total, or the last slot's flags."""
    total = odd.get("total", sum(length for _, _, length in pieces)) & 0xFFFF
    slots = []
    for i, (gref, offset, length) in enumerate(pieces):
        more = MORE_DATA if i + 1 < len(pieces) else odd.get("last", 0)
        first = (flags | (EXTRA_INFO if extras else 0)) if i == 0 else 0
        slots.append(
            TX_REQUEST.pack(gref, offset, first | more, rng.randrange(SLOTS), length if i else total)
        )
    return (*slots[:1], *extras, *slots[1:])


def extra(kind: int, size: int = 0, gso: int = 0, more: int = 0, rest: int = 0) -> bytes:
    return EXTRA.pack(kind, more, size, gso, 0, rest & 0xFFFF) + struct.pack("<I", rest)


def cut(rng: random.Random, total: int, slots: int) -> list[int]:
    """`total` bytes in `slots` pieces of at most a page; some may be empty."""
    lengths = []
    for left in range(slots - 1, -1, -1):
        least, most = max(0, total - left * PAGE), min(total, PAGE)
        lengths.append(rng.choice((least, most, rng.randint(least, most))) if left else total)
        total -= lengths[-1]
    return lengths


def pieces_of(rng: random.Random, lengths: Sequence[int], pages: Sequence[int] = TX_PAGES) -> list[Piece]:
    offsets = [rng.choice((0, PAGE - n, rng.randint(0, PAGE - n))) for n in lengths]
    return [(gref_of(rng.choice(pages)), offset, n) for offset, n in zip(offsets, lengths, strict=True)]


def some_total(rng: random.Random) -> int:
    return rng.choice((14, 15, 60, 1514, PAGE, PAGE + 1, 65535, rng.randint(14, 200), rng.randint(14, 65535)))


def good_pieces(rng: random.Random, most: int = 20) -> list[Piece]:
    total = some_total(rng)
    least = -(-total // PAGE)
    slots = rng.choice((least, least, rng.randint(least, max(most, least)), max(most, least)))
    return pieces_of(rng, cut(rng, total, slots))


def good_extras(rng: random.Random, known: Sequence[int] = (GSO, MCAST_ADD, MCAST_DEL, HASH)) -> list[bytes]:
    """Up to four that a backend must accept. With a MCAST extra the request is no frame."""
    kinds = [rng.choice(known) for _ in range(rng.choice((1, 1, 2, 4)))]
    return [
        extra(kind, rng.randint(1, 65535), rng.choice((1, 2)), int(i + 1 < len(kinds)), rng.getrandbits(32))
        for i, kind in enumerate(kinds)
    ]


Slots = tuple[bytes, ...]


def plain(rng: random.Random) -> Slots:
    return chain(rng, good_pieces(rng), rng.choice((0, 0, DATA_VALIDATED)))


def small(rng: random.Random) -> Slots:
    return chain(rng, pieces_of(rng, [rng.randint(14, 200)]))


def flagged(rng: random.Random) -> Slots:
    """Flags and extras over bytes that are not TCP: answered like any frame, whatever its fate."""
    return chain(rng, good_pieces(rng), rng.getrandbits(2) | rng.choice((0, 0xFFF0)), good_extras(rng))


def short(rng: random.Random) -> Slots:
    return chain(
        rng, pieces_of(rng, cut(rng, rng.randint(0, 13), rng.randint(1, 3))), extras=good_extras(rng)[-1:]
    )


def empty_slots(rng: random.Random) -> Slots:
    """Zero-length slots inside a valid chain, their grants good or not."""
    pieces = good_pieces(rng, 12)
    for _ in range(rng.randint(1, 20 - len(pieces))):
        at = rng.randint(1, len(pieces))
        pieces.insert(at, (rng.choice((gref_of(TX_PAGES[0]), *BAD_TX_GREFS)), rng.randint(0, PAGE), 0))
    return chain(rng, pieces)


def twenty_one(rng: random.Random) -> Slots:
    extras = rng.choice(([], good_extras(rng)))
    return chain(rng, pieces_of(rng, cut(rng, some_total(rng), 21)), extras=extras)


def beyond_page(rng: random.Random) -> Slots:
    pieces = good_pieces(rng)
    at = rng.randrange(len(pieces))
    gref, _, length = pieces[at]
    pieces[at] = (gref, rng.choice((PAGE - length + 1, 65535, rng.randint(PAGE - length + 1, 65535))), length)
    return chain(rng, pieces)


def lying_total(rng: random.Random) -> Slots:
    """The total is too small for the other slots, or leaves the first one more than a page."""
    pieces = good_pieces(rng)
    others = sum(length for _, _, length in pieces[1:])
    total = rng.choice((others - 1, others + PAGE + 1, rng.randint(0, 65535)))
    return chain(rng, pieces, total=min(max(total, 0), 65535))


def bad_grants(rng: random.Random) -> Slots:
    pieces = good_pieces(rng)
    for at in rng.sample(range(len(pieces)), rng.randint(1, min(3, len(pieces)))):
        pieces[at] = (rng.choice((READONLY_GREF, *BAD_TX_GREFS)), *pieces[at][1:])
    return chain(rng, pieces)


def anything(rng: random.Random) -> Slots:
    """Random bytes; flags mostly tamed, or nearly all would be fatal."""
    words = [rng.getrandbits(32), rng.getrandbits(12), rng.choice((0, 1, 2, 3, 7)) & 3, rng.getrandbits(16)]
    return (TX_REQUEST.pack(*words, rng.choice((rng.getrandbits(12), rng.getrandbits(16)))),)


def many_extras(rng: random.Random) -> Slots:
    count = rng.choice((30, 100, 255))
    extras = [extra(HASH, more=int(i + 1 < count)) for i in range(count)]
    return chain(rng, pieces_of(rng, [100]), extras=extras)


ANSWERED: tuple[Callable[[random.Random], Slots], ...] = (
    *(plain,) * 6,
    *(small,) * 4,
    *(flagged,) * 3,
    short,
    *(empty_slots,) * 2,
    twenty_one,
    beyond_page,
    lying_total,
    *(bad_grants,) * 2,
    anything,
    many_extras,
)


def too_many(rng: random.Random) -> Slots:
    slots = rng.choice((22, 23, 100))
    return chain(rng, pieces_of(rng, cut(rng, some_total(rng), slots)))


def unfinished(rng: random.Random) -> Slots:
    extras = rng.choice(([], good_extras(rng, (GSO, HASH))))
    return chain(rng, good_pieces(rng), extras=extras, last=MORE_DATA)


def missing_extra(rng: random.Random) -> Slots:
    extras = rng.choice(([], [extra(HASH, more=EXTRA_MORE)]))
    head = chain(rng, pieces_of(rng, [100]), EXTRA_INFO)
    return (*head, *extras)


def unknown_extra(rng: random.Random) -> Slots:
    extras = [extra(HASH, more=EXTRA_MORE)] * rng.randint(0, 2) + [extra(rng.choice((0, 5, 6, 255)))]
    return chain(rng, good_pieces(rng), extras=extras)


def impossible_gso(rng: random.Random) -> Slots:
    size, kind = rng.choice(((0, 1), (0, 2), (1400, 0), (1400, 3), (1400, 255)))
    valid = [extra(GSO, 1400, 1, EXTRA_MORE)] * rng.randint(0, 1)
    return chain(rng, good_pieces(rng), CSUM_BLANK, [*valid, extra(GSO, size, kind)])


FATAL: tuple[Callable[[random.Random], Slots], ...] = (
    too_many,
    unfinished,
    missing_extra,
    unknown_extra,
    impossible_gso,
)


# --- scenes: a few operations that belong together

Scene = Iterator[Op]


def offloaded(rng: random.Random, page: int) -> Scene:
    """A TCP frame that asks for its checksum and perhaps to be cut: its headers fill the page they begin."""
    ip = rng.choice((4, 6))
    head = HEADS[ip == 6]
    mss = rng.choice((0, 536, 1400))
    total = rng.randint(head + mss + 1, 65535) if mss else rng.randint(head, 1514)
    slots = rng.randint(max(1, -(-total // PAGE)), 20)
    lengths = [min(total, PAGE), *cut(rng, total - min(total, PAGE), slots - 1)] if slots > 1 else [total]
    pieces = [(gref_of(page), 0, lengths[0]), *pieces_of(rng, lengths[1:])]
    yield Fill(page, rng.getrandbits(8), tcp_head(ip, total))
    flags = rng.choice((CSUM_BLANK, CSUM_BLANK | DATA_VALIDATED, 0 if mss else CSUM_BLANK))
    yield Post(TX, chain(rng, pieces, flags, [extra(GSO, mss, 1 if ip == 4 else 2)] if mss else []))


def sending(rng: random.Random) -> Scene:
    pages = list(HEADER_PAGES)
    for _ in range(rng.choice((1, 2, 5, rng.randint(1, 40)))):
        if pages and rng.random() < 0.3:
            yield from offloaded(rng, pages.pop())
        else:
            yield Post(TX, rng.choice(ANSWERED)(rng))
    yield Send()


def listing(rng: random.Random, addresses: Sequence[bytes] = OTHER) -> Scene:
    """Changes of the multicast list: a few, or so many new addresses that it is full. The dummy request may have any
    other field.
    """
    add, remove, both = (MCAST_ADD,), (MCAST_DEL,), (MCAST_DEL, MCAST_ADD)
    few = [
        (rng.choice((add, add, remove, both)), rng.choice(addresses)) for _ in range(rng.choice((1, 3, 20)))
    ]
    many = [(add, address) for address in rng.sample(addresses, len(addresses))]
    for kinds, address in rng.choice((few, many)):
        infos = [bytes([kind, int(i + 1 < len(kinds))]) + address + bytes(4) for i, kind in enumerate(kinds)]
        yield Post(TX, chain(rng, [(rng.choice(BAD_TX_GREFS), rng.getrandbits(16), 0)], extras=infos))
    yield Send()


def full_ring(rng: random.Random) -> Scene:
    for _ in range(SLOTS):
        yield Post(TX, small(rng))
    yield Send()


def request(rng: random.Random) -> bytes:
    gref = rng.choice(BAD_RX_GREFS) if rng.random() < 0.05 else gref_of(rng.choice(RX_PAGES))
    return RX_REQUEST.pack(rng.getrandbits(16), rng.getrandbits(16), gref)


def posting(rng: random.Random) -> Scene:
    count = rng.choice((1, 8, 20, rng.randint(1, 64), rng.randint(1, SLOTS)))
    yield Post(RX, tuple(request(rng) for _ in range(count)))


def spec(rng: random.Random) -> Spec:
    ip, seed = rng.choice((0, 0, 4, 6)), rng.getrandbits(8)
    if not ip:
        length = rng.choice((rng.randint(14, 200), 1514, 4094, 4095, 4096, 4097, rng.randint(14, 65553)))
        return Spec(length, seed, validated=rng.random() < 0.2, to=rng.choice((0, rng.randrange(len(TO)))))
    mss = rng.choice((0, 1400))
    return Spec(rng.randint(1600, 65535) if mss else rng.randint(HEADS[1], 1514), seed, ip, mss=mss)


def receiving(rng: random.Random) -> Scene:
    yield Deliver(tuple(spec(rng) for _ in range(rng.choice((0, 1, 2, rng.randint(1, 12))))))


def listening(rng: random.Random) -> Scene:
    for ring in (TX, RX):
        yield Listen(ring, rng.choice((1, 1, 2, 10, 256, 0, -1, rng.getrandbits(32))))


def scribbling(rng: random.Random) -> Scene:
    yield Scribble(rng.choice((TX, RX)), 4, rng.getrandbits(32))


def regranting(rng: random.Random) -> Scene:
    """A grant in use is revoked, turned read-only or foreign, or restored."""
    page = rng.choice((*TX_PAGES, *RX_PAGES))
    flags, domid = rng.choice(((0, 0), (5, 0), (1, 7), (2, 0), (1 | 8 | 16, 0), (1, 0), (1, 0)))
    yield Grant(gref_of(page), flags, domid, rng.choice((page, page, PAGES, 2**32 - 1)))


SCENES: tuple[Callable[[random.Random], Scene], ...] = (
    *(sending,) * 5,
    full_ring,
    *(posting,) * 5,
    *(receiving,) * 6,
    *(listening,) * 2,
    listing,
    scribbling,
    regranting,
)


def breaking(rng: random.Random) -> Scene:
    """The last scene of a hostile guest: after some good frames, one fatal write."""
    for _ in range(rng.randint(0, 3)):
        yield Post(TX, rng.choice((plain, small, bad_grants))(rng))
    wild = rng.choice((SLOTS + 1, 1000, 2**31, 2**32 - 1000, -1000))
    how = rng.randrange(6)
    if how == 0:
        yield Send()
        yield Post(RX, (), wild)
        yield Deliver((Spec(60, 1),))
    elif how == 1:
        yield Post(TX, (), wild)
    else:
        yield Post(TX, rng.choice(FATAL)(rng))
    yield Send()


def case(rng: random.Random, scenes: int = 12) -> Case:
    """A guest's life: its rings begin near a wrap as often as not, and one in three ends as an attack."""
    filtered = rng.random() < 0.3
    headroom = rng.choice((0, 0, 256, 4082, rng.randint(1, 4082)))
    hashed = {"hash_types": rng.randrange(1, 16), "hash_key": rng.randbytes(40)} if rng.random() < 0.3 else {}
    pages = rng.sample(range(HEADER_PAGES[0], PAGES), rng.randrange(PAGES - 2)) if rng.random() < 0.3 else ()
    staged = tuple((gref_of(page), page, rng.random() < 0.3) for page in pages)
    config = Config(
        rx_offset=headroom or rng.choice((0, 2)),
        sg=rng.random() < 0.8,
        multicast_control=filtered,
        xdp=bool(headroom),
        staged=staged,
        **hashed,
    )
    ops = list[Op]()
    if filtered:  # before any frame comes: how a list that changes meanwhile splits a burst is not compared
        ops += listing(rng, TO[1:-1])
    for _ in range(rng.randint(1, scenes)):
        ops += rng.choice(SCENES)(rng)
    if rng.random() < 0.35:
        ops += breaking(rng)
    limited, split, polled = (rng.random() < chance for chance in (0.3, 0.5, 0.3))
    return Case(config, rng.choice(WRAPS), tuple(ops), limited, split, polled)
