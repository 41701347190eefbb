# SPDX-License-Identifier: Apache-2.0
"""Frames that a guest does not take, on a fixed clock: they expire, the guest is declared stalled, and comes back."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from netback.abi.ring import PAGE_SIZE
from netback.dataplane import clock
from netback.dataplane.front.queue import FrontQueue
from netback.dataplane.notices import Notice
from netback.dataplane.peers.null import NullPeer
from netback.dataplane.platform.emulated_events import EmulatedEvents
from netback.dataplane.states import Event, State
from netback.dataplane.worker import Worker
from tests.dataplane.harness import address_of
from tests.dataplane.test_limit import BEGIN, Limited, frames_for_the_guest

MS = 1_000_000
SECOND = 1000 * MS
LARGE = 9000
"""A frame of three slots."""


class Stalling(Limited):
    """A queue whose network offers numbered frames."""

    offered = 0

    def offer(self, count: int, length: int = 60) -> None:
        assert self.peer_end is not None
        for _ in range(count):
            self.peer_end.send(bytes(10) + self.offered.to_bytes(2, "big") * (length // 2))
            self.offered += 1

    @property
    def state(self) -> State:
        return self.queue.states[1]

    @property
    def expired(self) -> int:
        return self.queue.counters["rx_expired"]

    def first_bytes(self, slot: int) -> int:
        """The number of the frame that an RX slot has."""
        return int.from_bytes(self.read(260 + slot, 0, 2), "big")

    def wake(self) -> None:
        """What a worker finds when it wakes: timers that are due, a readable peer, and the guest's event."""
        self.worker.end_timers()
        for event in (Event.POLL, Event.FRAMES, Event.RING):
            for _ in range(1000):
                if not self.worker.apply(self.queue, event):
                    break

    def pass_time(self, ns: int, step: int = 100 * MS) -> None:
        end = clock.now() + ns
        while clock.now() < end:
            clock.fix(min(end, clock.now() + step))
            self.wake()


@contextmanager
def stalling(**options: int) -> Iterator[Stalling]:
    clock.fix(BEGIN)
    made = Stalling()
    made.worker.remove(made.queue)
    made.options.update(options)
    made.attach()
    made.wake()
    try:
        yield made
    finally:
        made.close()
        clock.fix(0)


def test_frames_expire_with_all_that_the_peer_has() -> None:
    with stalling() as b:
        b.offer(20)
        b.pass_time(5 * SECOND)
        b.offer(20)
        b.pass_time(4 * SECOND)
        assert (b.expired, b.state) == (0, State.NO_SLOTS_LONG)
        b.pass_time(2 * SECOND)
        assert (b.expired, b.state) == (40, State.NO_FRAME)
        b.offer(3)
        b.post_rx(5)
        b.wake()
        assert b.queue.counters["rx_frames"] == 3
        assert [b.first_bytes(slot) for slot in range(3)] == [40, 41, 42]


def test_an_age_is_each_read_s_own() -> None:
    """A frame that comes later is not dropped with an earlier wait's age."""
    with stalling() as b:
        b.pass_time(3600 * SECOND, 100 * SECOND)
        b.offer(1)
        b.wake()
        b.pass_time(9 * SECOND)
        assert b.expired == 0
        b.pass_time(2 * SECOND)
        assert b.expired == 1


def test_a_guest_with_a_slot_too_few_is_stalled() -> None:
    """XSA-392: what counts is the slots that the next frame needs, not that there are some."""
    with stalling() as b:
        b.post_rx(2)
        for _ in range(70):
            b.offer(1, LARGE)
            b.pass_time(SECOND)
            if b.state is State.STALLED:
                break
        assert b.queue.condition is Notice.STALLED
        assert b.queue.counters["rx_frames"] == 0
        assert b.expired == b.offered
        b.wake()
        assert b.state is State.STALLED
        b.post_rx(1)
        b.wake()
        assert b.queue.condition is Notice.READY
        b.offer(1, LARGE)
        b.wake()
        assert b.queue.counters["rx_frames"] == 1


def test_what_came_during_the_stall_is_stale() -> None:
    with stalling() as b:
        b.offer(1)
        b.wake()
        for _ in range(70):
            b.pass_time(SECOND)
            b.offer(1)
        assert b.state is State.STALLED
        b.post_rx(20)
        b.wake()
        assert (b.queue.counters["rx_frames"], b.expired) == (0, 71)
        b.offer(2)
        b.wake()
        assert [b.first_bytes(slot) for slot in range(2)] == [71, 72]


def test_an_empty_ring_without_frames_is_no_stall() -> None:
    with stalling() as b:
        b.pass_time(10_000 * SECOND, 10 * SECOND)
        assert b.queue.condition is Notice.READY
        assert b.state is State.NO_FRAME
        b.offer(1)
        b.wake()
        assert b.queue.condition is Notice.READY, "it has had nothing to take"


def test_a_guest_that_takes_a_frame_in_time_is_not_stalled() -> None:
    with stalling() as b:
        for _ in range(10):
            b.offer(5)
            b.pass_time(50 * SECOND, SECOND)
            b.offer(1)
            b.wake()
            b.post_rx(1)
            b.wake()
            assert b.queue.condition is Notice.READY
        assert b.queue.counters["rx_frames"] == 10


@pytest.mark.parametrize("times", [{"stall": 0}, {"stall": 0, "rx_unannounced": True, "drain": 30 * MS}])
def test_no_verdict_without_a_stall_time(times: dict[str, Any]) -> None:
    with stalling(**times) as b:
        for _ in range(200):
            b.offer(1)
            b.pass_time(SECOND)
        assert b.queue.condition is Notice.READY
        assert b.expired > 150


def test_without_feature_rx_notify_frames_expire_after_30_ms() -> None:
    with stalling(stall=0, rx_unannounced=True, drain=30 * MS) as b:
        b.offer(1)
        b.pass_time(25 * MS, MS)
        assert (b.expired, b.state) == (0, State.NO_SLOTS_UNANNOUNCED)
        b.pass_time(10 * MS, MS)
        assert (b.expired, b.state) == (1, State.NO_SLOTS_UNANNOUNCED)
        b.offer(1)
        b.pass_time(10 * MS, MS)
        b.post_rx(1)
        b.pass_time(MS, MS)
        assert b.queue.counters["rx_frames"] == 1


def test_a_trickle_of_slots_does_not_renew_an_age() -> None:
    """A slot now and then keeps every timer from ending; a frame of 60 segments would be held for a minute so."""
    with stalling(caps=0) as b:
        assert b.peer_end is not None
        b.peer_end.send(frames_for_the_guest(54 + 60 * 1000, 1000))
        for _ in range(54):
            b.post_rx(1)
            b.wake()
            b.pass_time(190 * MS, 10 * MS)
        assert b.expired == 1
        delivered = b.queue.counters["rx_frames"]
        assert 50 < delivered <= 54
        b.offer(1)
        b.post_rx(1)
        b.wake()
        assert b.first_bytes(b.queue.counters["rx_frames"] - 1) == 0


def test_a_wait_for_credit_is_not_the_guest_s_fault() -> None:
    with stalling() as b:
        b.limit(rx=(60, 8 * SECOND))
        b.post_rx(2)
        b.offer(3)
        b.wake()
        b.pass_time(16 * SECOND + 100 * MS)
        assert (b.queue.counters["rx_frames"], b.state) == (2, State.NO_SLOTS)
        b.post_rx(1)
        b.wake()
        assert (b.queue.counters["rx_frames"], b.expired) == (3, 0)


def test_a_frontend_reports_a_backend_that_takes_nothing() -> None:
    """Its frames wait, none is dropped; answers end it."""
    memory, pages = mmap.mmap(-1, 514 * PAGE_SIZE), mmap.mmap(-1, PAGE_SIZE)
    at = address_of(memory)
    granted = [(at + (2 + i) * PAGE_SIZE, i) for i in range(512)]
    events = EmulatedEvents(
        os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), address_of(pages), lambda _port: None
    )
    queue = FrontQueue(
        events,
        NullPeer(template=bytes(10) + bytes(60)),
        tx_ring=at,
        rx_ring=at + PAGE_SIZE,
        tx_pages=granted[:256],
        rx_pages=granted[256:],
        tx_port=3,
        rx_port=3,
        caps=0,
        sg=True,
        keep=(memory, pages),
    )
    clock.fix(BEGIN)
    worker = Worker(events)
    worker.add(queue)
    try:
        waits = pass_front(worker, queue, 59 * SECOND)
        assert (queue.condition, queue.states[1]) == (Notice.READY, State.NO_SLOTS_LONG)
        pass_front(worker, queue, 2 * SECOND)
        assert queue.condition is Notice.STALLED
        pass_front(worker, queue, 100 * SECOND)
        assert queue.rings["tx"]["req_prod"] == waits
        struct.pack_into("<I", memory, 8, waits)  # rsp_prod
        pass_front(worker, queue, SECOND, Event.RING)
        assert queue.condition is Notice.READY
        assert queue.counters["tx_dropped"] == 0
    finally:
        worker.remove(queue)
        clock.fix(0)


def pass_front(worker: Worker, queue: FrontQueue, ns: int, event: Event = Event.FRAMES) -> int:
    """Let the time pass, waking by timers, and once by an event; returns the requests made."""
    end = clock.now() + ns
    while clock.now() < end:
        clock.fix(clock.now() + 100 * MS)
        worker.end_timers()
        while worker.apply(queue, event):
            event = Event.POLL
        event = Event.POLL
    return queue.rings["tx"]["req_prod"]


def test_a_frame_in_segments_expires_as_a_whole() -> None:
    with stalling(caps=0) as b:
        assert b.peer_end is not None
        b.post_rx(3)
        b.peer_end.send(frames_for_the_guest(6000, 1000))
        b.pass_time(11 * SECOND)
        assert (b.queue.counters["rx_frames"], b.expired, b.state) == (3, 1, State.NO_FRAME)
        b.offer(1)
        b.post_rx(1)
        b.wake()
        assert (b.queue.counters["rx_frames"], b.first_bytes(3)) == (4, 0)
