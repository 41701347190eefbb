# SPDX-License-Identifier: Apache-2.0
"""Hostile rings, end to end: indices, chains, slots and grants that no honest frontend writes."""

import struct
import threading
from collections.abc import Callable

import pytest

from netback.abi.netif import (
    EXTRA_FLAG_MORE,
    EXTRA_GSO,
    FATAL_DATA_SLOTS,
    MAX_DATA_SLOTS,
    RX_REQUEST,
    TX_REQUEST,
    ExtraType,
    Status,
    TxFlag,
)
from netback.frontend import GrantedPage
from tests.dataplane.offload_frames import build
from tests.hostile.topology import Topology, frame, tx
from tests.offload_oracle import TCP

WILD = (257, 1000, 1 << 31, (1 << 32) - 1)


def chain(topology: Topology, data: bytes, lengths: list[int], flags: int = 0) -> list[bytes]:
    """The slots of a frame with these lengths, each in its own page at an odd offset."""
    slots, at = [], 0
    for i, length in enumerate(lengths):
        page = topology.bad.grant()
        page.write(100 + i, data[at : at + length])
        more = TxFlag.MORE_DATA if i + 1 < len(lengths) else 0
        size = length if i else len(data)
        slots.append(tx(page, size, offset=100 + i, flags=(0 if i else flags) | more, number=i))
        at += length
    return slots


def extra(kind: int, size: int = 1400, gso: int = 1, flags: int = 0) -> bytes:
    return EXTRA_GSO.pack(kind, flags, size, gso, 0, 0).ljust(12, b"\0")


async def goes_wild(topology: Topology, which: str, ahead: int) -> None:
    """Publish an impossible index in a connected ring; the vif closes."""
    await topology.connect()
    await topology.works()
    ring = topology.bad.tx if which == "tx" else topology.bad.rx
    ring.push((ring.rsp_prod + ahead) % 2**32)
    topology.bad.notify()
    if which == "rx":
        await topology.far.send(frame(1))
    await topology.closes(f"{which.upper()} req_prod is impossible")


@pytest.mark.parametrize("ahead", WILD)
@pytest.mark.parametrize("which", ["tx", "rx"])
async def test_wild_req_prod(topology: Topology, which: str, ahead: int) -> None:
    """XSA-39: an impossible index ends this vif, after the earlier requests were answered."""
    await goes_wild(topology, which, ahead)
    await topology.others_pass()
    await topology.comes_back()


async def test_multicast_lists_without_end(topology: Topology) -> None:
    """A guest fills its list again and again, with any bytes, by dummies that could be no frame."""
    await topology.connect(request_multicast_control="1")
    await topology.works()
    for round_ in range(40):
        slots = []
        for number in range(100):
            address = (round_ << 8 | number).to_bytes(6, "little")
            kind = ExtraType.MCAST_DEL if number % 3 == 2 else ExtraType.MCAST_ADD
            slots.append(TX_REQUEST.pack(0xFFFFFFFF, 0xFFFF, 0xFFFF, number, 0xFFFF))
            slots.append(bytes([kind, 0]) + address + b"\xee" * 4)
        at = topology.bad.tx.req_prod
        topology.bad.post(topology.bad.tx, *slots)
        answers = await topology.answers(at, len(slots))
        assert {status for _, status in answers[1::2]} == {Status.NULL}
        assert {status for _, status in answers[::2]} <= {Status.OKAY, Status.ERROR}
    counted = await topology.counters()
    assert counted["tx_multicast"] == 4000
    assert counted["tx_multicast_full"] > 2000
    assert counted["tx_frames"] == 1
    await topology.works()


@pytest.mark.parametrize("ahead", WILD)
async def test_a_ring_that_is_wild_from_the_start(topology: Topology, ahead: int) -> None:
    """XSA-39: a ring that is invalid at the first read gets no response."""
    await topology.bad.offered()
    topology.bad.tx.req_prod = ahead
    await topology.say()
    await topology.closes("TX req_prod is impossible")
    assert topology.bad.tx.rsp_prod == 0


FATAL: dict[str, tuple[str, Callable[[GrantedPage], list[bytes]]]] = {
    "unfinished": ("TX chain runs past req_prod", lambda page: [tx(page, 60, flags=TxFlag.MORE_DATA)]),
    "no extra": ("TX chain runs past req_prod", lambda page: [tx(page, 60, flags=TxFlag.EXTRA_INFO)]),
    "extra of type 0": (
        "TX extra info of an unknown type",
        lambda page: [tx(page, 60, flags=TxFlag.EXTRA_INFO), extra(0)],
    ),
    "extra of type 9": (
        "TX extra info of an unknown type",
        lambda page: [tx(page, 60, flags=TxFlag.EXTRA_INFO), extra(9)],
    ),
    "an XDP extra, which guests never send": (
        "TX extra info of an unknown type",
        lambda page: [tx(page, 60, flags=TxFlag.EXTRA_INFO), extra(ExtraType.XDP, size=256)],
    ),
    "a change of the multicast list without end": (
        "TX chain runs past req_prod",
        lambda page: [
            tx(page, 60, flags=TxFlag.EXTRA_INFO),
            extra(ExtraType.MCAST_ADD, flags=EXTRA_FLAG_MORE),
        ],
    ),
    "extras without end": (
        "TX chain runs past req_prod",
        lambda page: [
            tx(page, 60, flags=TxFlag.EXTRA_INFO),
            *[extra(ExtraType.HASH, flags=EXTRA_FLAG_MORE)] * 255,
        ],
    ),
    "GSO of size 0": (
        "TX GSO extra with an impossible type or size",
        lambda page: [tx(page, 60, flags=TxFlag.EXTRA_INFO), extra(ExtraType.GSO, size=0)],
    ),
    "GSO of type 7": (
        "TX GSO extra with an impossible type or size",
        lambda page: [tx(page, 60, flags=TxFlag.EXTRA_INFO), extra(ExtraType.GSO, gso=7)],
    ),
    "22 slots": (
        "TX frame has too many slots",
        lambda page: [
            *[tx(page, 22 * 60, flags=TxFlag.MORE_DATA)],
            *[tx(page, 60, flags=TxFlag.MORE_DATA)] * (FATAL_DATA_SLOTS - 2),
            tx(page, 60),
        ],
    ),
}


@pytest.mark.parametrize("what", FATAL)
async def test_impossible_chains(topology: Topology, what: str) -> None:
    """XSA-39, XSA-374: the good frame before it is answered; the vif ends, and is then torn down as usual."""
    reason, slots = FATAL[what]
    await topology.connect()
    page = topology.bad.grant(frame(1))
    good = [] if what == "extras without end" else [tx(page, 60, number=9)]
    topology.bad.post(topology.bad.tx, *good, *slots(page))
    await topology.closes(reason)
    assert topology.bad.answers(topology.bad.tx, 0, len(good)) == [(9, Status.OKAY)] * len(good)
    assert topology.bad.tx.rsp_prod == len(good), "nothing of the chain that broke it is answered"
    assert [await topology.far.recv() for _ in good] == [frame(1)] * len(good)
    await topology.others_pass()
    await topology.comes_back()


@pytest.mark.parametrize("count", [18, 19, MAX_DATA_SLOTS])
async def test_many_slots_behind_a_tiny_head(topology: Topology, count: int) -> None:
    """XSA-432, XSA-423: the head in a few bytes and the maximum number of slots; the frame is sent in one piece."""
    await topology.connect()
    data = frame(5, 1000)
    topology.bad.post(topology.bad.tx, *chain(topology, data, [*[1] * (count - 1), len(data) - count + 1]))
    assert await topology.answers(0, count) == [(i, Status.OKAY) for i in range(count)]
    assert await topology.far.recv() == data


async def test_one_slot_too_many(topology: Topology) -> None:
    """XSA-432: 21 data slots are all answered ERROR; the vif and the frame after them continue."""
    await topology.connect()
    data, count = frame(5, 1000), MAX_DATA_SLOTS + 1
    topology.bad.post(topology.bad.tx, *chain(topology, data, [*[1] * (count - 1), len(data) - count + 1]))
    assert await topology.answers(0, count) == [(i, Status.ERROR) for i in range(count)]
    await topology.works()


@pytest.mark.parametrize("version", [4, 6])
async def test_headers_split_byte_by_byte(topology: Topology, version: int) -> None:
    """XSA-423: Ethernet, IP and TCP headers over 20 slots; the network gets one frame with its checksum completed."""
    await topology.connect()
    data = build(version, TCP, bytes(range(200)))
    slots = chain(
        topology, data, [*[3] * (MAX_DATA_SLOTS - 1), len(data) - 3 * (MAX_DATA_SLOTS - 1)], TxFlag.CSUM_BLANK
    )
    topology.bad.post(topology.bad.tx, *slots)
    assert {status for _, status in await topology.answers(0, MAX_DATA_SLOTS)} == {Status.OKAY}
    sent = await topology.far.recv()
    at = 14 + (20 if version == 4 else 40) + 16
    assert (sent[:at], sent[at + 2 :]) == (data[:at], data[at + 2 :])
    assert sent[at : at + 2] != b"\0\0"


async def test_zero_length_slots(topology: Topology) -> None:
    """XSA-448: slots of length 0 are answered OKAY, contribute nothing, and their grants are never used."""
    await topology.connect()
    data = frame(3, 400)
    slots = chain(topology, data, [100, 0, 0, 200, 0, 100, 0])
    nowhere = struct.pack("<I", 0xFFFFFFFF)
    slots[1], slots[6] = nowhere + slots[1][4:], nowhere + slots[6][4:]
    topology.bad.post(topology.bad.tx, *slots)
    assert await topology.answers(0, 7) == [(i, Status.OKAY) for i in range(7)]
    assert await topology.far.recv() == data
    page = topology.bad.grant()
    topology.bad.post(topology.bad.tx, tx(page, 0, number=7))
    assert await topology.answers(7, 1) == [(7, Status.ERROR)]
    await topology.works()


async def test_slots_beyond_their_page(topology: Topology) -> None:
    """Offset and size are checked together in wide integers: every slot of that frame is answered ERROR."""
    await topology.connect()
    page = topology.bad.grant(frame(1))
    for at, (offset, size) in enumerate(((4095, 60), (65535, 60), (4096, 14), (65535, 65535))):
        topology.bad.post(topology.bad.tx, tx(page, size, offset=offset, number=at))
        assert await topology.answers(at, 1) == [(at, Status.ERROR)]
    await topology.works()


async def test_no_stale_byte_in_a_response(topology: Topology) -> None:
    """XSA-216: a response fills its whole slot; it contains no bytes of the request or of netback's memory."""
    await topology.connect()
    page, into = topology.bad.grant(frame(1)), topology.bad.grant()
    topology.bad.post(topology.bad.tx, tx(page, 60, number=3), tx(page, 60, offset=5000, number=4))
    await topology.answers(0, 2)
    assert topology.bad.tx.get(0) == struct.pack("<Hh8x", 3, Status.OKAY)
    assert topology.bad.tx.get(1) == struct.pack("<Hh8x", 4, Status.ERROR)
    gso = [tx(page, 60, flags=TxFlag.EXTRA_INFO, number=5), extra(ExtraType.HASH, size=0xFFFF, gso=0xFF)]
    topology.bad.post(topology.bad.tx, *gso)
    await topology.answers(2, 2)
    assert topology.bad.tx.get(3) == struct.pack("<Hh8x", 0, Status.NULL)
    topology.bad.post(topology.bad.rx, RX_REQUEST.pack(77, 0xFFFF, into.gref))
    await topology.far.send(frame(2))
    await topology.answers(0, 1, topology.bad.rx)
    assert topology.bad.rx.get(0) == struct.pack("<HHHh", 77, 0, 0, 60)
    assert into.read(0, 60) == frame(2)
    assert into.read(60) == bytes(4096 - 60), "nothing is written behind the frame"


def bad_grefs(topology: Topology) -> dict[str, int]:
    """A revoked grant, another domain's, one whose frame is outside its memory, one outside the table."""
    domain = topology.bad.guest.domain
    revoked, foreign, outside = (topology.bad.grant(b"secret") for _ in range(3))
    domain.revoke(revoked.gref)
    domain.put_entry(foreign.gref, (foreign.address - domain.memory.address) // 4096, 99)
    domain.put_entry(outside.gref, 0xFFFFFF, 0)
    return {"revoked": revoked.gref, "foreign": foreign.gref, "outside": outside.gref, "none": 0xFFFFFFFF}


async def test_bad_grants_are_answered_error(topology: Topology) -> None:
    """XSA-361, -362, -365, -367: each copy's status counts, no byte of a failed frame is sent, the vif continues."""
    await topology.connect()
    good = topology.bad.grant(frame(1, 200))
    grefs = bad_grefs(topology)
    for gref in grefs.values():
        at = topology.bad.tx.req_prod
        first = tx(good, 160, flags=TxFlag.MORE_DATA, number=at)
        topology.bad.post(topology.bad.tx, first, tx(good, 60, gref=gref, number=at + 1))
        assert await topology.answers(at, 2) == [(at, Status.ERROR), (at + 1, Status.ERROR)]
    await topology.works()
    await topology.others_pass()
    readonly = topology.bad.grant(readonly=True)
    for gref in (*grefs.values(), readonly.gref):
        at = topology.bad.rx.req_prod
        topology.bad.post(topology.bad.rx, RX_REQUEST.pack(at, 0, gref))
        await topology.far.send(frame(at))
        (answer,) = await topology.answers(at, 1, topology.bad.rx)
        assert (answer[0], answer[-1]) == (at, Status.ERROR)
    assert readonly.read() == bytes(4096)
    into = topology.bad.grant()
    at = topology.bad.rx.req_prod
    topology.bad.post(topology.bad.rx, RX_REQUEST.pack(1, 0, into.gref))
    await topology.far.send(frame(9))
    assert (await topology.answers(at, 1, topology.bad.rx))[0][-1] == 60
    assert into.read(0, 60) == frame(9)


class Flipper:
    """A thread of the guest that rewrites a request while the backend reads it, as fast as it can."""

    def __init__(self, *flips: tuple[GrantedPage, int, bytes, bytes]) -> None:
        self._flips = flips
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            for page, offset, one, _ in self._flips:
                page.write(offset, one)
            for page, offset, _, other in self._flips:
                page.write(offset, other)


async def test_requests_that_change_under_the_backend(topology: Topology) -> None:
    """XSA-155, XSA-197: the values that were checked are the values used. A size and an offset that are never valid
    together change while they are read; a torn pair is judged as copied, and nothing beyond the page leaves."""
    await topology.connect()
    page, beside = topology.bad.grant(b"A" * 4096), topology.bad.grant(b"SECRET" * 600)
    assert beside.address == page.address + 4096
    tame, wild = tx(page, 100, number=1), tx(page, 2000, offset=4000, number=2)
    slots = [(topology.bad.rings.tx, 64 + 12 * at, tame, wild) for at in range(32)]
    rounds, sent = 200, 0
    with Flipper(*slots):
        for number in range(rounds):
            base = number * 32
            topology.bad.tx.push(base + 32)
            topology.bad.notify()
            await topology.answers(base, 32)
            sent += await allowed(topology)
    counted = await topology.counters()
    assert counted["tx_frames"] == sent > 0
    assert counted["tx_frames"] + counted["tx_errors"] == rounds * 32
    topology.bad.tx.push(rounds * 32)
    await topology.works()


async def allowed(topology: Topology) -> int:
    """Check that each frame on the network matches one consistent request and the granted page; return their number."""
    count = 0
    while True:
        try:
            data = topology.far.socket.recv(1 << 17)
        except BlockingIOError:
            return count
        assert data in (b"A" * 100, b"A" * 2000)
        count += 1


async def test_headers_that_change_under_the_backend(topology: Topology) -> None:
    """XSA-155: lengths in headers change while a checksum is completed; netback parses and sends its own copy."""
    await topology.connect()
    data = build(4, TCP, bytes(400))
    page = topology.bad.grant(data)
    request = tx(page, len(data), flags=TxFlag.CSUM_BLANK | TxFlag.DATA_VALIDATED, number=1)
    with Flipper((page, 14, data[14:40], b"\x4f" + b"\xff" * 25)):
        for base in range(0, 6400, 32):
            topology.bad.post(topology.bad.tx, *[request] * 32, notify=True)
            assert {status for _, status in await topology.answers(base, 32)} == {Status.OKAY}
            while True:
                try:
                    assert len(topology.far.socket.recv(1 << 17)) == len(data)
                except BlockingIOError:
                    break
    await topology.works()
