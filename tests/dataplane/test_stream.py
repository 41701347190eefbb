# SPDX-License-Identifier: Apache-2.0
"""A queue between a guest and a program behind a stream: what wakes the worker, and what does not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from netback.dataplane.notices import Notice
from netback.dataplane.states import Event, State
from netback.net.buffers import make_room
from netback.net.stream import StreamNetwork
from tests.dataplane.woken import Woken
from tests.net.contract import frame
from tests.net.program import Program, wire
from tests.net.test_stream import written


class Joined(Woken):
    """A guest, its queue, and the program behind it."""

    def __init__(self, network: StreamNetwork, program: Program) -> None:
        super().__init__(network.peers[0])
        self.network, self.program = network, program


@contextmanager
def joined(address: Path | tuple[str, int]) -> Iterator[Joined]:
    with Program(address) as program:
        network = StreamNetwork(written(program.address))
        assert program.connection
        bench = Joined(network, program)
        yield bench
        bench.close()
        network.remove()


@pytest.fixture
def b(tmp_path: Path) -> Iterator[Joined]:
    with joined(tmp_path / "stream.sock") as bench:
        yield bench


def test_frames_wake_the_worker(b: Joined) -> None:
    """Each frame after silence is announced, and an idle worker is not woken."""
    for number in range(20):
        assert b.queue.states == (State.RING_IDLE, State.PEER_IDLE)
        assert not b.is_readable()
        b.program.send(frame(number))
        b.await_wake()
        assert b.counters["rx_frames"] == number + 1
    b.program.connection.sendall(wire(*(frame(number) for number in range(70))))
    b.await_wake()
    assert b.counters["rx_frames"] == 90


def test_bytes_that_are_no_frame_yet_wake_it_once_each(b: Joined) -> None:
    data = wire(frame(1), frame(2, 3000))
    for at in range(0, len(data), 7):
        b.program.connection.sendall(data[at : at + 7])
        b.await_wake()
        assert not b.is_readable()
    assert b.counters["rx_frames"] == 2


def test_a_flood_of_no_frames_is_read_in_bounded_calls() -> None:
    """Lengths of 0, more than a call reads: the peer announces the rest itself."""
    near, far = socket.socketpair()
    make_room(far, 0, 16 << 20)
    sender = threading.Thread(target=far.sendall, args=(bytes(4 << 20) + wire(frame(1)),))
    sender.start()
    network = StreamNetwork(near)
    b = Woken(network.peers[0])
    while not b.counters["rx_frames"]:
        b.await_wake()
    assert b.counters["rx_short"] == 1 << 20
    sender.join()
    b.close()
    network.remove()
    far.close()


def test_room_wakes_the_worker(b: Joined) -> None:
    """A program that reads nothing fills the socket; the rest stays in the ring, and goes when there is room."""
    b.post_tx(250, 4000)
    b.wake(Event.RING)
    assert b.queue.states[0] is State.PEER_FULL
    sent = b.counters["tx_frames"]
    assert 20 < sent < 250
    assert not b.is_readable()
    for _ in range(250):
        b.program.recv()
        if b.is_readable():
            b.wake()
    assert b.counters["tx_frames"] == 250
    assert b.queue.states[0] is State.RING_IDLE
    assert set(b.answered()) == {0}


def test_the_rest_of_a_frame_goes_though_the_guest_does_nothing_more() -> None:
    """The guest lacks slots, too, so frames would not wake the worker: room for the rest does, and nothing else."""
    with joined(("127.0.0.1", 0)) as b:
        b.program.connection.sendall(wire(*(frame(number) for number in range(101))))
        while b.queue.states[1] is not State.NO_SLOTS:
            b.wake(Event.FRAMES)
        sent = 0
        while not b.worker.waits(b.queue)[0] & {"frames", "room"}:
            b.post_tx(1, 4000)
            b.wake(Event.RING)
            assert b.queue.states[0] is State.RING_IDLE
            sent += 1
            assert sent < 100_000
        for number in range(50):
            b.program.send(frame(number))
            b.wake()
        for _ in range(sent):
            assert len(b.program.recv()) == 4010
            b.wake()
        assert b.worker.waits(b.queue)[0] == {"error"}
        assert b.queue.states[1] is State.NO_SLOTS


def test_a_program_that_restarts_under_load(b: Joined) -> None:
    """The guest notices a pause only: every request is answered, and frames pass again."""
    for round in range(1, 6):
        b.post_tx(50, 4000)
        b.wake(Event.RING)
        b.program.recv()
        b.program.drop()
        assert b.program.connection
        while not b.network.up or b.queue.condition is not Notice.READY:
            b.wake(Event.FRAMES)
        b.post_tx(1, 1000)
        b.wake(Event.RING)
        while len(b.program.recv()) != 1010:
            pass
        b.program.send(frame(round))
        b.await_wake()
    assert set(b.answered()) == {0}
    assert b.counters["rx_frames"] == 5
    assert b.counters["tx_frames"] == 255


def test_a_lost_program_is_a_condition_and_frees_the_guest(b: Joined) -> None:
    """Even one that never read: requests that waited for room are answered."""
    b.post_tx(250, 4000)
    b.wake(Event.RING)
    assert b.queue.states[0] is State.PEER_FULL
    b.program.close()
    while b.network.up:
        b.await_wake()
    b.wake()
    assert b.queue.condition is Notice.PEER_GONE
    assert b.answered() == [0] * 250
    assert b.counters["tx_refused"] > 0


def test_a_lie_harms_its_own_queue_only(b: Joined) -> None:
    b.program.connection.sendall(wire(frame(1)) + b"\xff" * 10_000)
    b.await_wake()
    assert b.counters["rx_frames"] == 1
    assert b.queue.condition is Notice.PEER_GONE
    b.post_tx(5, 60)
    b.wake(Event.RING)
    assert b.answered() == [0] * 5
    assert b.counters["tx_refused"] == 5
