# SPDX-License-Identifier: Apache-2.0
"""Captures without a backend: what workers write into the memory, and the blocks that the reader makes of it, both
beside an oracle in plain Python.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from netback.abi import netif
from netback.abi.netif import ExtraType, GsoType, RxFlag
from netback.abi.virtio_net import F_NEEDS_CSUM, GSO_TCPV4, HEADER
from netback.dataplane.capture import MIN_RING, CaptureMemory, Sink
from netback.dataplane.capture_reader import CaptureReader
from netback.dataplane.toeplitz import Toeplitz
from tests.capture_oracle import CONTROLS, DEVICE, HASHED, PAGE, RECORD, RX, TAIL, TX, Frame, Producer
from tests.dataplane.harness import TWO_SLOTS_FLAGS, Bench, post, post_gso_frame
from tests.dataplane.offload_frames import build, with_pseudo
from tests.offload_oracle import TCP

WHOLE = 65553


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


@pytest.fixture
def producer() -> Iterator[Producer]:
    producer = Producer(devices=("vif3.0", "vif4.0"))
    yield producer
    producer.close()


def sink(memory: CaptureMemory, *, directions: int = 3, snaplen: int = WHOLE, queue: int = 0) -> Sink:
    return Sink(memory, "vif7.0", queue, ring=0, directions=directions, snaplen=snaplen)


def frames(reader: CaptureReader) -> list[Frame]:
    """The records that are there, as the oracle has them; their padding is not read."""
    found, data, at = [], reader.records(), 0
    while at < len(data):
        (size, captured, when, length, gref, index, lost, device, queue, flags, offset, slots, status, gso_size,
         gso_type, direction, hashed, hash_type, extras, zero) = RECORD.unpack_from(data, at)  # fmt: skip
        begin = at + RECORD.size
        assert (zero, size) == (0, RECORD.size + captured + 7 & ~7)
        found.append(
            Frame(when, length, gref, index, lost, device, queue, flags, offset, slots, status, gso_size, gso_type,
                  direction, hashed, hash_type, extras, data[begin : begin + captured])
        )  # fmt: skip
        at += size
    return found


def send(bench: Bench, count: int, first: int = 0, size: int = 60) -> None:
    """Let the guest send frames of one slot, 64 at most, so that the socket takes them."""
    bench.grant(8, 10)
    post(bench, 1, [netif.TX_REQUEST.pack(8, 0, 0, number % 256, size) for number in range(count)], first)
    bench.run()
    assert bench.peer_end is not None
    while True:
        try:
            bench.peer_end.recv(1 << 17)
        except BlockingIOError:
            return


def test_what_a_guest_sent(bench: Bench) -> None:
    whole = build(4, TCP, bytes(range(256)) * 20)
    memory = CaptureMemory(1, MIN_RING)
    bench.queue.watch(traced=False, sinks=[sink(memory, queue=3)])
    post_gso_frame(bench, whole)
    before = time.time_ns()
    bench.run()
    reader = CaptureReader(memory.fd)
    (frame,) = frames(reader)
    assert before <= frame.time <= time.time_ns()
    at = 14 + 20 + 16  # its checksum field: the sum of the pseudo header by now
    assert frame.data[:at] + frame.data[at + 2 :] == whole[:at] + whole[at + 2 :]
    assert replace(frame, time=0, data=b"") == Frame(
        time=0, length=len(whole), gref=8, index=0, queue=3, flags=int(TWO_SLOTS_FLAGS), offset=96, slots=3,
        gso_size=1448, gso_type=GsoType.TCPV4, direction=TX, extras=1 << ExtraType.GSO,
    )  # fmt: skip
    assert reader.devices() == ["vif7.0"]
    assert reader.counts(0) == (1, 0, 0, 0)


def test_what_a_guest_received(bench: Bench) -> None:
    for n in range(8):
        bench.grant(8 + n, 20 + n)
    hash = Toeplitz(bytes(range(40)), 0xF)
    bench.queue.set_hash(hash)
    memory = CaptureMemory(1, MIN_RING)
    bench.queue.watch(traced=False, sinks=[sink(memory)])
    post(bench, 2, [netif.RX_REQUEST.pack(n, 0, 8 + n) for n in range(8)])
    whole = build(4, TCP, bytes(5000))
    header = HEADER.pack(F_NEEDS_CSUM, GSO_TCPV4, 54, 1400, 34, 16)
    assert bench.peer_end is not None
    bench.peer_end.send(header + with_pseudo(whole, 34, TCP, whole[26:34]))
    bench.run()
    (frame,) = frames(CaptureReader(memory.fd))
    assert frame.data == with_pseudo(whole, 34, TCP, whole[26:34])
    assert frame.hash != bytes(4)
    flags = RxFlag.CSUM_BLANK | RxFlag.DATA_VALIDATED | RxFlag.MORE_DATA | RxFlag.EXTRA_INFO
    assert replace(frame, time=0, data=b"", hash=b"") == Frame(
        time=0, length=len(whole), gref=8, index=0, flags=int(flags), slots=4, gso_size=1400, hash=b"", hash_type=1,
        gso_type=GsoType.TCPV4, direction=RX, extras=1 << ExtraType.GSO | HASHED,
    )  # fmt: skip


def test_a_frame_that_is_answered_error_has_no_bytes(bench: Bench) -> None:
    memory = CaptureMemory(1, MIN_RING)
    bench.queue.watch(traced=False, sinks=[sink(memory)])
    post(bench, 1, [netif.TX_REQUEST.pack(8, 4000, 0, 1, 1000)])
    bench.run()
    (frame,) = frames(CaptureReader(memory.fd))
    assert (frame.status, frame.length, frame.data) == (-1, 1000, b"")


def test_each_capture_takes_its_part(bench: Bench) -> None:
    """Of its direction, and as much of a frame as it wants; without a capture nothing is copied."""
    short, other, gone = (CaptureMemory(1, MIN_RING) for _ in range(3))
    bench.queue.watch(traced=False, sinks=[sink(gone)])
    bench.queue.watch(
        traced=False, sinks=[sink(short, snaplen=16, directions=TX), sink(other, directions=RX)]
    )
    send(bench, 3)
    bench.queue.watch(traced=False)
    send(bench, 3, 3)
    assert [(len(frame.data), frame.length) for frame in frames(CaptureReader(short.fd))] == [(16, 60)] * 3
    assert frames(CaptureReader(other.fd)) == frames(CaptureReader(gone.fd)) == []


def test_a_reader_that_does_not_read_loses_frames_and_learns_how_many(bench: Bench) -> None:
    """The guest is answered as fast as before; afterwards the next frame tells how many are missing before it."""
    memory = CaptureMemory(1, MIN_RING)
    bench.queue.watch(traced=False, sinks=[sink(memory)])
    size = RECORD.size + 64
    room, total = MIN_RING // size, 64 * 64
    for first in range(0, total, 64):
        send(bench, 64, first)
    assert bench.queue.counters["tx_frames"] == total
    reader = CaptureReader(memory.fd)
    assert len(frames(reader)) == room
    assert reader.counts(0) == (room, 0, total - room, 0)
    send(bench, 2, total)
    assert [(frame.lost, frame.index) for frame in frames(reader)] == [(total - room, total), (0, total + 1)]
    assert reader.counts(0) == (room + 2, 0, total - room, 0)


@pytest.mark.parametrize("tail", [1, 8, 1 << 40, (1 << 64) - 1])
def test_a_reader_that_lies_harms_itself(bench: Bench, tail: int) -> None:
    """It writes an impossible tail, and garbage over everything: the worker writes within its ring, or counts."""
    memory = CaptureMemory(1, MIN_RING)
    bench.queue.watch(traced=False, sinks=[sink(memory)])
    with mmap.mmap(memory.fd, 0) as shared:
        shared[0 : len(shared)] = b"\xa5" * len(shared)
        struct.pack_into("<Q", shared, CONTROLS + TAIL, tail)
    for first in range(0, 64 * 64, 64):
        send(bench, 64, first)
    assert bench.queue.counters["tx_frames"] == 64 * 64
    with pytest.raises(ValueError, match="unknown form"):
        CaptureReader(memory.fd)


def test_a_reader_cannot_take_the_memory_away(bench: Bench) -> None:
    memory = CaptureMemory(2, MIN_RING)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, 4096)
    with pytest.raises(PermissionError):
        fcntl.fcntl(memory.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    bench.queue.watch(traced=False, sinks=[sink(memory)])
    send(bench, 64)
    memory.release()
    with pytest.raises(ValueError, match="damaged"):  # zeros
        frames(CaptureReader(memory.fd))


def test_the_reader_is_woken_once(bench: Bench) -> None:
    memory = CaptureMemory(1, MIN_RING)
    reader = CaptureReader(memory.fd)
    bench.queue.watch(traced=False, sinks=[sink(memory)])
    assert reader.sleep()
    send(bench, 5)
    assert os.read(memory.pipe, 100) == b"\0"
    assert not reader.sleep()
    assert len(frames(reader)) == 5
    send(bench, 5, 5)
    with pytest.raises(BlockingIOError):
        os.read(memory.pipe, 100)


def test_names_and_the_end_of_the_table() -> None:
    memory = CaptureMemory(1, MIN_RING)
    reader = CaptureReader(memory.fd)
    names = [f"vif{number}.0" for number in range(4096)]
    assert [memory.device(name) for name in names] == [*range(4096)]
    assert memory.device("vif7.0") == 7
    with pytest.raises(KeyError):
        memory.device("vif4096.0")
    assert reader.devices() == names
    assert reader.devices(4094) == names[4094:]


def arbitrary(random: random.Random, when: int) -> Frame:
    """Any record, most of them short."""
    bits = random.getrandbits
    data = random.randbytes(random.choice([0, 1, 2, 3, 14, 60, 64, 1514, random.randrange(WHOLE)]))
    return Frame(
        when, max(len(data), bits(16)), bits(32), bits(32), random.choice([0, 0, bits(32)]), bits(1), bits(16),
        random.choice([0, bits(4), bits(5), bits(16)]), bits(12), random.choice([1, bits(16)]),
        random.choice([0, 0, -1, -2]), bits(16), random.choice([0, 1, 2, bits(8)]), random.choice([TX, RX]),
        random.randbytes(4), random.choice([0, 1, 2, 3, bits(8)]), random.choice([0, HASHED, bits(6)]), data,
    )  # fmt: skip


@pytest.mark.parametrize("interfaces", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_blocks_are_the_oracles(producer: Producer, seed: int, interfaces: int) -> None:
    """Every flag, length, extra and status, around the ring many times."""
    source = random.Random(seed)
    reader = CaptureReader(producer.fd)
    for now in range(400):
        given = [arbitrary(source, now) for _ in range(source.randrange(1, 4))]
        for frame in given:
            producer.put(frame)
        assert reader.blocks(interfaces=interfaces) == b"".join(frame.block(interfaces) for frame in given)
        assert producer.tail() == producer.heads[0]


@pytest.mark.parametrize("seed", range(3))
def test_rings_are_read_in_order_of_time(seed: int) -> None:
    producer = Producer(rings=3)
    source = random.Random(seed)
    frames_by_ring = [sorted(source.sample(range(1000), 50)) for _ in range(3)]
    for ring, times in enumerate(frames_by_ring):
        for when in times:
            producer.put(Frame(time=when), ring)
    found = [frame.time for frame in frames(CaptureReader(producer.fd))]
    assert found == sorted(chain(*frames_by_ring))
    producer.close()


def test_as_many_as_are_wanted(producer: Producer) -> None:
    reader = CaptureReader(producer.fd)
    for index in range(10):
        producer.put(Frame(index=index))
    assert reader.blocks(most=3) == b"".join(Frame(index=index).block() for index in range(3))
    assert [frame.index for frame in frames(reader)] == [*range(3, 10)]
    assert reader.taken == 10


@pytest.mark.parametrize(
    "record",
    [
        bytes(RECORD.size),
        Frame().pack()[:8],
        Frame(device=4096).pack(),
        Frame(direction=0).pack(),
        Frame(direction=3).pack(),
        struct.pack("<II", 1 << 20, 0) + Frame().pack()[8:],
        struct.pack("<II", RECORD.size, 1) + Frame().pack()[8:],
        struct.pack("<II", RECORD.size + 4, 0) + Frame().pack()[8:],
    ],
)
def test_a_record_that_is_none(producer: Producer, record: bytes) -> None:
    """What came before it is read."""
    producer.put(Frame())
    producer.put_bytes(record)
    reader = CaptureReader(producer.fd)
    with pytest.raises(ValueError, match="damaged"):
        reader.blocks()
    assert reader.taken == 1


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [(0, 1, "form"), (4, 2, "form"), (8, 0, "sizes"), (8, 2, "sizes"), (8, 5000, "sizes"), (12, 4095, "sizes"),
     (12, 0, "sizes"), (12, 1 << 31, "sizes")],
)  # fmt: skip
def test_a_memory_that_is_none(producer: Producer, at: int, value: int, said: str) -> None:
    struct.pack_into("<I", producer.memory, at, value)
    with pytest.raises(ValueError, match=said):
        CaptureReader(producer.fd)
    with Path(os.devnull).open() as empty, pytest.raises(ValueError, match="short"):
        CaptureReader(empty.fileno())


def test_the_table_is_where_the_oracle_has_it(producer: Producer) -> None:
    DEVICE.pack_into(producer.memory, PAGE + DEVICE.size, b"vif9.9", 5, 6)
    reader = CaptureReader(producer.fd)
    assert reader.devices() == ["vif3.0", "vif9.9"]
    assert reader.counts(1) == (0, 0, 5, 6)
