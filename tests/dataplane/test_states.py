# SPDX-License-Identifier: Apache-2.0
"""Every event in every state of a served queue: what the worker then waits for is the state's row, and nothing is lost.

The states are reached as a worker reaches them, by what a guest and a network do; time is an event. Each case ends with
room everywhere, and every frame must then arrive by those events alone that the worker waits for.
"""

from __future__ import annotations

import ctypes
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest

from netback.abi.netif import RX_REQUEST, TX_REQUEST
from netback.abi.ring import PAGE_SIZE, slot_offset
from netback.dataplane import clock
from netback.dataplane.credit import Credit
from netback.dataplane.link import REASONS
from netback.dataplane.notices import Notice
from netback.dataplane.peers.socket import SocketPeer
from netback.dataplane.states import PEER_TO_RING, RING_TO_PEER, TABLE, Event, Row, State, render_document
from tests.dataplane.harness import RING_PAGES, Bench
from tests.net.namespace import ip, new_network, veth

TX_PAGE, RX_PAGE = RING_PAGES
ROOT = Path(__file__).parents[2]
SLEEPING = frozenset({State.REFUSED, State.PEER_CLOSED, State.BROKEN})
"""States that only a caller of the worker can leave, or nothing."""
CLOSING, HANG_UP = "closing", "hang-up"
EVENTS = (Event.RING, Event.FRAMES, Event.ROOM, Event.TIMER, CLOSING, HANG_UP)


# ---- the table by itself


def test_every_state_has_a_row_and_the_worker_has_the_same_numbers() -> None:
    assert set(TABLE) == set(State)
    assert [state.value for state in State] == list(range(len(State)))
    assert set(RING_TO_PEER) & set(PEER_TO_RING) == {State.NO_CREDIT, State.BROKEN}


def test_no_state_sleeps_for_ever() -> None:
    """A state that is polled at nothing is final; every other state is polled at an event that can occur."""
    for state, row in TABLE.items():
        if state in SLEEPING:
            assert row == Row(row.means), state
            continue
        assert row.polled, state
        assert row.again or Event.TIMER not in row.polled or Event.POLL in row.polled or row.timer, state
        assert bool(row.timer) <= bool(Event.TIMER & row.polled), state
        wakes = row.again or row.watch or row.timer or row.armed != "no"
        assert wakes, f"{state}: nothing wakes it"


def test_what_is_watched_for_is_polled_at() -> None:
    for state, row in TABLE.items():
        assert row.watch in row.polled or not row.watch, state
        assert row.watch in Event.FRAMES | Event.ROOM or not row.watch, state
        if row.expires is not None:
            assert row.timer, state
            assert row.expires in (PEER_TO_RING if state in PEER_TO_RING else RING_TO_PEER), state


def test_the_document_is_current() -> None:
    """`make docs` writes it."""
    assert (ROOT / "docs/dataplane-states.md").read_text() == render_document()


# ---- a queue in each state


class Rig(Bench):
    """A queue beside a guest that counts its posted slots, and a network that keeps the frames that reached it."""

    def __init__(self, *, unannounced: bool = False, peer: SocketPeer | None = None) -> None:
        super().__init__(peer=peer)
        if unannounced:
            self.worker.remove(self.queue)
            self.options["rx_unannounced"] = True
            self.attach()
        self.posted = {TX_PAGE: 0, RX_PAGE: 0}
        self.offered = 0
        self.arrived = list[bytes]()

    def post_tx(self, count: int, length: int = 60) -> None:
        for at in range(self.posted[TX_PAGE], self.posted[TX_PAGE] + count):
            gref = 10 + at % 250
            self.grant(gref, gref)
            self.write(gref, 0, bytes(12) + b"\x88\xb5" + bytes(length - 14))
            self.write(TX_PAGE, slot_offset(at, 12), TX_REQUEST.pack(gref, 0, 0, at % 256, length))
        self.publish(TX_PAGE, count)

    def post_rx(self, count: int) -> None:
        for at in range(self.posted[RX_PAGE], self.posted[RX_PAGE] + count):
            gref = 260 + at % 250
            self.grant(gref, gref)
            self.write(RX_PAGE, slot_offset(at, 8), RX_REQUEST.pack(at % 256, 0, gref))
        self.publish(RX_PAGE, count)

    def publish(self, page: int, count: int) -> None:
        self.posted[page] += count
        ctypes.c_uint32.from_buffer(self.memory, page * PAGE_SIZE).value = self.posted[page]

    def offer(self, count: int) -> None:
        """Frames for the guest."""
        assert self.peer_end is not None
        for _ in range(count):
            self.peer_end.send(bytes(10 + 60))
        self.offered += count

    def limit(self, *, tx: bool = False, rx: bool = False) -> None:
        """100 kB a second, and no credit for a frame yet."""
        self.worker.limit(
            self.queue, *(Credit(1, 10_000, now=clock.now()) if way else None for way in (tx, rx))
        )

    def apply(self, event: Event) -> bool:
        return self.worker.apply(self.queue, int(event))

    def run_until_idle(self) -> None:
        """Poll as long as another poll follows at once."""
        for _ in range(100):
            if not self.apply(Event.POLL):
                return
        raise AssertionError(f"it never came to rest: {self.queue.states}")

    def hang_up(self) -> None:
        assert self.peer_end is not None
        self.arrived += self.sent()
        self.peer_end.close()
        self.peer_end = None

    def ready(self) -> Event:
        """What epoll would report now of what the worker watches."""
        watched, _ = self.worker.waits(self.queue)
        if not watched:
            return Event(0)
        poll = select.poll()
        wanted = (select.POLLIN if "frames" in watched else 0) | (select.POLLOUT if "room" in watched else 0)
        poll.register(self.peer.fd, wanted)
        bits = dict(poll.poll(0)).get(self.peer.fd, 0)
        assert not bits & select.POLLHUP, "a hang-up is watched for after it was seen"
        return (Event.FRAMES if bits & select.POLLIN else Event(0)) | (
            Event.ROOM if bits & select.POLLOUT else Event(0)
        )

    def run_dry(self) -> None:
        """Run the worker until none of its events happens; the network reads what comes, and the guest notifies if the
        ring is armed for what it has posted.
        """
        for _ in range(600):
            if self.peer_end is not None:
                self.arrived += self.sent()
            states = self.queue.states
            if any(TABLE[state].again for state in states):
                self.apply(Event.POLL)
            elif ready := self.ready():
                self.apply(Event.FRAMES if Event.FRAMES in ready else Event.ROOM)
            elif any(self.armed(page) for page in self.posted):
                self.apply(Event.RING)
            elif not self.retry():
                return
        raise AssertionError(f"it never came to rest: {self.queue.states}")

    def retry(self) -> bool:
        """Let a second pass if a direction is retried by a timer; returns whether that moved anything."""
        before = self.queue.rings
        clock.fix(clock.now() + 1_000_000_000)
        if any(TABLE[state].timer and TABLE[state].expires is None for state in self.queue.states):
            self.apply(Event.TIMER)
        return self.queue.rings != before

    def armed(self, page: int) -> bool:
        """Whether the guest's posts since then would have notified the backend."""
        ring = self.queue.rings["tx" if page == TX_PAGE else "rx"]
        lacking = (State.NO_SLOTS, State.NO_SLOTS_LONG, State.NO_FRAME, State.STALLED)
        waits = {TX_PAGE: (State.RING_IDLE,), RX_PAGE: lacking}[page]
        state = self.queue.states[page == RX_PAGE]
        return state in waits and (ring["req_prod"] - ring["req_event"]) % 2**32 < 2**31


@contextmanager
def rig(*, unannounced: bool = False) -> Iterator[Rig]:
    clock.fix(1_000_000_000)
    made = Rig(unannounced=unannounced)
    try:
        yield made
    finally:
        made.close()
        clock.fix(0)


def fill_peer(rig: Rig) -> None:
    assert rig.our_end is not None
    rig.our_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    rig.post_tx(60, 1000)


def spend_tx(rig: Rig) -> None:
    rig.limit(tx=True, rx=State.NO_CREDIT in rig.queue.states)
    rig.post_tx(3)


RING_STATES: dict[State, Callable[[Rig], None]] = {
    State.RING_IDLE: lambda _rig: None,
    State.RING_MORE: lambda rig: rig.post_tx(200),
    State.PEER_FULL: fill_peer,
    State.NO_CREDIT: spend_tx,
}
"""The steps before the last poll; PEER_BUSY needs a packet socket and has its own test."""


def wait_long(rig: Rig, frames: int = 1) -> None:
    rig.offer(frames)
    rig.run_until_idle()
    rig.apply(Event.TIMER)


def stall(rig: Rig) -> None:
    wait_long(rig)
    clock.fix(clock.now() + 60_000_000_000)
    rig.apply(Event.TIMER)  # it drops what is at hand
    rig.offer(1)
    rig.apply(Event.FRAMES)


def close_peer(rig: Rig) -> None:
    rig.post_rx(8)
    rig.run_until_idle()
    rig.hang_up()
    rig.apply(Event.FRAMES)


def refuse(rig: Rig) -> None:
    rig.run_until_idle()
    rig.worker.refuse_rx(rig.queue)


def more_frames(rig: Rig) -> None:
    rig.post_rx(100)
    rig.offer(90)


def spend_rx(rig: Rig) -> None:
    rig.limit(rx=True)
    rig.post_rx(8)
    rig.offer(3)
    rig.apply(Event.POLL)


PEER_STATES: dict[State, Callable[[Rig], None]] = {
    State.PEER_IDLE: lambda rig: rig.post_rx(8),
    State.PEER_MORE: more_frames,
    State.NO_SLOTS: lambda _rig: None,
    State.NO_SLOTS_LONG: wait_long,
    State.NO_FRAME: lambda rig: wait_long(rig, 0),
    State.STALLED: stall,
    State.NO_SLOTS_UNANNOUNCED: lambda _rig: None,
    State.NO_CREDIT: spend_rx,
    State.REFUSED: refuse,
    State.PEER_CLOSED: close_peer,
}

PAIRS = [
    pair
    for pair in product(RING_STATES, PEER_STATES)
    if pair not in {(State.PEER_FULL, State.PEER_CLOSED), (State.RING_IDLE, State.PEER_MORE)}
]
"""A closed peer refuses and is never full; while frames for the guest continue, its TX ring is not armed."""


@contextmanager
def in_states(ring: State, peer: State) -> Iterator[Rig]:
    with rig(unannounced=peer is State.NO_SLOTS_UNANNOUNCED) as made:
        PEER_STATES[peer](made)
        RING_STATES[ring](made)
        made.apply(Event.POLL)
        if ring is State.RING_IDLE:
            made.run_until_idle()
        assert made.queue.states == (ring, peer)
        assert_waits(made)
        yield made


def assert_waits(rig: Rig) -> None:
    """The worker waits for what the rows of both states say."""
    ring, peer = (TABLE[state] for state in rig.queue.states)
    watched, timers = rig.worker.waits(rig.queue)
    if watched or not (rig.peer.closed or rig.queue.broken):
        assert watched == {"error"} | {
            name
            for name, event in (("frames", Event.FRAMES), ("room", Event.ROOM))
            if event in ring.watch | peer.watch
        }
    assert {name for name, row in (("ring_to_peer", ring), ("peer_to_ring", peer)) if row.timer} <= timers


def raise_event(rig: Rig, event: Event | str) -> None:
    """One thing that happens; it may leave work for the next poll, which follows at once."""
    if event == CLOSING:
        rig.worker.refuse_rx(rig.queue)
    elif event == HANG_UP:
        if rig.peer_end is not None:
            rig.hang_up()
            rig.worker.apply(rig.queue, 0, hang_up=True)
        assert rig.queue.condition is Notice.PEER_GONE
    else:
        assert isinstance(event, Event)
        rig.apply(event)


@pytest.mark.parametrize(("ring", "peer"), PAIRS, ids=lambda state: state.name)
@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_every_event_in_every_state(ring: State, peer: State, event: Event | str) -> None:
    with in_states(ring, peer) as made:
        raise_event(made, event)
        after = made.queue.states
        assert_waits(made)
        if isinstance(event, Event):
            for before, now in zip((ring, peer), after, strict=True):
                row = TABLE[before]
                assert before == now or row.polled & (event | Event.POLL), f"{before.name} left by {event!r}"
        everything_arrives(made)


def everything_arrives(rig: Rig) -> None:
    """With room everywhere nothing that was posted or offered is left, except frames for a guest that is refused."""
    posted = rig.posted[TX_PAGE]
    rig.run_dry()
    rig.post_rx(min(60, 256 - rig.posted[RX_PAGE] + rig.queue.rings["rx"]["rsp_prod"]))
    if rig.peer_end is not None:
        rig.offer(20)
    rig.post_tx(20)
    rig.run_dry()
    assert rig.queue.rings["tx"]["rsp_prod"] == posted + 20
    if rig.peer_end is not None:
        assert len(rig.arrived) == posted + 20
    else:
        assert len(rig.arrived) + rig.queue.counters["tx_refused"] >= posted + 20
    delivered, refused = rig.queue.rings["rx"]["rsp_prod"], rig.queue.states[1] is State.REFUSED
    if rig.peer_end is not None and not refused:
        assert delivered + rig.queue.counters["rx_expired"] == rig.offered
    assert rig.queue.broken is None


@pytest.mark.parametrize("page", RING_PAGES)
@pytest.mark.parametrize(("ring", "peer"), [*PAIRS], ids=lambda state: state.name)
def test_an_impossible_index_breaks_the_link_in_every_state(ring: State, peer: State, page: int) -> None:
    with in_states(ring, peer) as made:
        made.publish(page, 1000)
        for event in (Event.POLL, Event.RING, Event.FRAMES, Event.ROOM, Event.TIMER):
            made.apply(event)
        seen = ring is not State.PEER_FULL if page == TX_PAGE else peer not in SLEEPING
        if seen:
            assert made.queue.broken in REASONS.values()
            assert made.queue.states == (State.BROKEN, State.BROKEN)
            assert made.worker.waits(made.queue)[0] == set()
            assert made.queue.condition is Notice.BROKEN


def test_a_busy_peer_is_tried_again_by_the_timer_and_by_nothing_else() -> None:
    with new_network():
        veth("near0", "far0")
        ip("link set far0 mtu 1000")
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as end:
            end.bind(("near0", 3))
            end.setblocking(False)
            made = Rig(peer=SocketPeer(end.fileno(), owner=end))
            made.post_tx(1, 1200)
            made.apply(Event.POLL)
            assert made.queue.states[0] is State.PEER_BUSY
            assert_waits(made)
            for event in (Event.RING, Event.FRAMES, Event.ROOM):
                made.apply(event)
                assert made.queue.counters["tx_full"] == 1
            made.apply(Event.TIMER)
            assert made.queue.counters["tx_full"] + made.queue.counters["tx_refused"] == 2
            made.close()


def test_a_stall_is_reported_once_and_its_end() -> None:
    with in_states(State.RING_IDLE, State.STALLED) as made:
        assert made.queue.condition is Notice.STALLED
        made.apply(Event.RING)
        assert made.queue.states[1] is State.STALLED
        made.post_rx(1)
        made.apply(Event.RING)
        made.run_until_idle()
        assert made.queue.condition is Notice.READY


def test_progress_keeps_a_wait_for_slots_from_expiring() -> None:
    with in_states(State.RING_IDLE, State.NO_SLOTS) as made:
        made.post_rx(1)
        made.offer(2)
        made.apply(Event.RING)
        made.run_until_idle()
        assert made.queue.states[1] is State.NO_SLOTS
        made.apply(Event.TIMER)
        assert made.queue.states[1] is State.NO_SLOTS, "a slot was used since the timer was set"
        made.apply(Event.TIMER)
        assert made.queue.states[1] is State.NO_SLOTS_LONG
