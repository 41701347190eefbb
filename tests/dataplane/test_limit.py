# SPDX-License-Identifier: Apache-2.0
"""A rate-limited queue on a fixed clock: exact in both directions by its own byte counter, and nothing lost or repeated
while frames wait.
"""

from __future__ import annotations

import ctypes
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from netback.abi.netif import EXTRA_GSO, RX_REQUEST, TX_REQUEST, ExtraType, TxFlag
from netback.abi.ring import PAGE_SIZE, slot_offset
from netback.abi.virtio_net import HEADER
from netback.dataplane import clock
from netback.dataplane.credit import Credit
from netback.dataplane.peers.null import NullPeer
from netback.dataplane.states import Event, State
from netback.dataplane.thread import Listener, WorkerThread
from tests.dataplane.harness import RING_PAGES, Bench
from tests.dataplane.offload_frames import build
from tests.dataplane.test_credit import MIN_BURST, SECOND, within
from tests.offload_oracle import TCP

TX_PAGE, RX_PAGE = RING_PAGES
BEGIN = 1_000_000_000_000
MS = 1_000_000
RATE = (62_500, 50 * MS)
"""xl's 10Mb/s."""


class Limited(Bench):
    """A queue whose guest posts as fast as it is served, with a clock that the test sets."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.posted = {TX_PAGE: 0, RX_PAGE: 0}
        self.rng = random.Random(1)
        for gref in range(10, 510):
            self.grant(gref, gref)

    def publish(self, page: int) -> None:
        ctypes.c_uint32.from_buffer(self.memory, page * PAGE_SIZE).value = self.posted[page]

    def post_tx(self, count: int, length: int = 0) -> None:
        """Frames of one slot, of random lengths unless one is given."""
        for at in range(self.posted[TX_PAGE], self.posted[TX_PAGE] + count):
            request = TX_REQUEST.pack(10 + at % 250, 0, 0, at % 256, length or self.rng.randint(14, 4096))
            self.write(TX_PAGE, slot_offset(at, 12), request)
        self.posted[TX_PAGE] += count
        self.publish(TX_PAGE)

    def post_rx(self, count: int) -> None:
        for at in range(self.posted[RX_PAGE], self.posted[RX_PAGE] + count):
            self.write(RX_PAGE, slot_offset(at, 8), RX_REQUEST.pack(at % 256, 0, 260 + at % 250))
        self.posted[RX_PAGE] += count
        self.publish(RX_PAGE)

    def refill(self, way: str) -> None:
        page, post = (TX_PAGE, self.post_tx) if way == "tx" else (RX_PAGE, self.post_rx)
        post(250 - self.posted[page] + self.queue.rings[way]["rsp_prod"])

    def serve(self, refilled: str = "") -> None:
        """What a worker does when it wakes, until it would sleep; the guest fills the ring `refilled` meanwhile."""
        self.worker.apply(self.queue, Event.TIMER)
        for _ in range(10_000):
            before = self.queue.rings
            if refilled:
                self.refill(refilled)
            more = self.worker.apply(self.queue, Event.RING if refilled else Event.POLL)
            if not more and (not refilled or self.queue.rings == before):
                return
        raise AssertionError(f"it never came to rest: {self.queue.states}")

    def limit(self, tx: tuple[int, int] | None = None, rx: tuple[int, int] | None = None) -> None:
        self.worker.limit(
            self.queue, *(None if rate is None else Credit(*rate, now=clock.now()) for rate in (tx, rx))
        )


@contextmanager
def limited(**options: Any) -> Iterator[Limited]:
    clock.fix(BEGIN)
    made = Limited(**options)
    try:
        yield made
    finally:
        made.close()
        clock.fix(0)


def frames_for_the_guest(length: int, gso: int = 0) -> bytes:
    header = HEADER.pack(1, 1, 54, gso, 34, 16) if gso else bytes(10)
    return header + build(4, TCP, bytes(length - 54))


def serve_for(bench: Limited, way: str, ns: int, step: Callable[[], int]) -> list[tuple[int, int]]:
    """Let the time pass; returns [(time, bytes counted then)]."""
    log, before, end = [], 0, clock.now() + ns
    while clock.now() < end:
        bench.serve(way)
        now = bench.queue.counters[f"{way}_bytes"]
        log.append((clock.now(), now - before))
        before = now
        clock.fix(clock.now() + step())
    return log


@pytest.mark.parametrize("step", ["a worker's millisecond", "late"])
@pytest.mark.parametrize(
    ("way", "options"),
    [
        ("tx", {"peer": NullPeer(caps=15)}),
        ("rx", {"peer": NullPeer(caps=15, template=frames_for_the_guest(1514))}),
        ("rx", {"peer": NullPeer(caps=15, template=frames_for_the_guest(60_000, 1448))}),
        ("rx", {"peer": NullPeer(caps=15, template=frames_for_the_guest(60_000, 1448)), "caps": 0}),
        ("rx", {"peer": NullPeer(caps=15, template=frames_for_the_guest(3000, 40)), "caps": 0}),
    ],
    ids=["tx", "rx", "rx-gso", "rx-segmented", "rx-tiny-segments"],
)
def test_ten_seconds_of_10_mbit(way: str, options: dict[str, Any], step: str) -> None:
    """No window has more than rate * T + burst, and after the burst at most 2 % are lost."""
    rng = random.Random(2)
    with limited(**options) as bench:
        bench.limit(**{way: RATE})
        log = serve_for(bench, way, 10 * SECOND, lambda: rng.randint(0, 40 * MS) if step == "late" else MS)
        total = sum(count for _, count in log)
        assert within(log, *RATE)
        assert 0.98 * 12_500_000 <= total <= 12_500_000 + MIN_BURST
        assert bench.queue.counters[f"{way}_throttled"] > 0
        assert bench.queue.counters[f"{way}_errors"] == bench.queue.counters[f"{way}_dropped"] == 0


def test_the_other_direction_is_not_limited() -> None:
    with limited(peer=NullPeer(caps=15)) as bench:
        bench.limit(tx=(1, SECOND))
        bench.post_tx(3)
        bench.serve()
        assert bench.queue.states == (State.NO_CREDIT, State.NO_SLOTS)
        bench.limit(rx=(1, SECOND))
        bench.serve()
        assert bench.queue.states[0] is State.RING_IDLE
        assert bench.queue.counters["tx_frames"] == 3


def test_a_limit_ends_at_once() -> None:
    """Without a clock that moves and without an event of the guest."""
    with limited() as bench:
        bench.limit((1, SECOND), (1, SECOND))
        bench.post_tx(5, 1000)
        bench.post_rx(5)
        assert bench.peer_end is not None
        for _ in range(5):
            bench.peer_end.send(bytes(10 + 60))
        bench.serve()
        assert bench.queue.states == (State.NO_CREDIT, State.NO_CREDIT)
        bench.limit()
        bench.worker.apply(bench.queue, 0)
        bench.serve()
        assert (bench.queue.counters["tx_frames"], bench.queue.counters["rx_frames"]) == (5, 5)


def test_frames_arrive_in_order_and_once() -> None:
    """Frames of one read that lack credit wait in the backlog; the ring keeps those of the guest."""
    with limited() as bench:
        bench.limit((1000, 10 * MS), (1000, 10 * MS))
        assert bench.peer_end is not None
        for number in range(100):
            bench.peer_end.send(bytes(10) + number.to_bytes(2, "big") * 300)
            bench.write(10 + number, 0, number.to_bytes(2, "big") * 300)
        bench.post_tx(100, 600)
        bench.post_rx(100)
        sent = []
        for _ in range(700):
            bench.serve()
            sent += bench.sent()
            clock.fix(clock.now() + MS)
        assert [frame[10:] for frame in sent] == [number.to_bytes(2, "big") * 300 for number in range(100)]
        assert bench.queue.counters["rx_frames"] == 100
        for number in range(100):
            assert bench.read(260 + number, 0, 600) == number.to_bytes(2, "big") * 300


def test_a_frame_whose_segments_wait_for_credit_is_not_sent_twice() -> None:
    """The peer takes some segments; the next poll finds no credit, since another queue has it."""
    frame = build(4, TCP, bytes(3000))
    with limited(peer_caps=0) as bench:
        assert bench.our_end is not None
        bench.our_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        bench.write(10, 0, frame)
        bench.write(
            TX_PAGE,
            slot_offset(0, 12),
            TX_REQUEST.pack(10, 0, TxFlag.CSUM_BLANK | TxFlag.EXTRA_INFO, 0, len(frame)),
        )
        extra = EXTRA_GSO.pack(ExtraType.GSO, 0, 100, 1, 0, 0).ljust(12, b"\0")
        bench.write(TX_PAGE, slot_offset(1, 12), extra)
        bench.posted[TX_PAGE] = 2
        bench.publish(TX_PAGE)
        bench.serve()
        sent = bench.sent()
        assert 0 < len(sent) < 30
        bench.limit(tx=(1000, SECOND))
        bench.worker.apply(bench.queue, Event.ROOM)
        assert bench.queue.states[0] is State.NO_CREDIT
        clock.fix(clock.now() + 10 * SECOND)
        for _ in range(30):
            bench.serve()
            bench.worker.apply(bench.queue, Event.ROOM)
            sent += bench.sent()
        assert len({segment[48:52] for segment in sent}) == len(sent) == 30


def test_what_the_peer_refuses_for_now_keeps_its_credit() -> None:
    with limited() as bench:
        assert bench.our_end is not None
        bench.our_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        bench.limit(tx=(100_000, 1 << 60))
        bench.post_tx(100, 1000)
        bench.serve()
        assert bench.queue.states[0] is State.PEER_FULL
        frames = bench.sent()
        while bench.queue.states[0] is State.PEER_FULL:
            bench.worker.apply(bench.queue, Event.ROOM)
            frames += bench.sent()
        assert len(frames) == 100


def test_a_malformed_frame_costs_nothing() -> None:
    with limited() as bench:
        bench.limit(tx=(100, 1 << 60))
        for _ in range(50):
            bench.post_tx(1, 13)
            bench.serve()
        bench.post_tx(1, 100)
        bench.serve()
        assert (bench.queue.counters["tx_errors"], bench.queue.counters["tx_frames"]) == (50, 1)


def test_queues_of_two_workers_share_one_credit() -> None:
    """While the clock stands, both together send what one may: the credit, to the byte."""
    with ExitStack() as stack:
        benches = [stack.enter_context(limited(peer=NullPeer(caps=15))) for _ in range(2)]
        credit = Credit(2_000_000, SECOND, now=clock.now())
        threads = []
        for bench in benches:
            bench.worker.limit(bench.queue, credit, None)
            bench.worker.remove(bench.queue)
            thread = WorkerThread(bench.worker)
            stack.callback(thread.stop)
            threads.append(thread)
            thread.add(bench.queue, Listener(lambda _: None)).result(20)
        waiting = 0
        while waiting < 2:
            for bench in benches:
                bench.refill("tx")
                bench.ring_the_bell()
            waiting = sum(bench.queue.states[0] is State.NO_CREDIT for bench in benches)
        for bench, thread in zip(benches, threads, strict=True):
            thread.remove(bench.queue).result(20)
        assert 2_000_000 - 4096 < sum(bench.queue.counters["tx_bytes"] for bench in benches) <= 2_000_000
        assert credit.idle
