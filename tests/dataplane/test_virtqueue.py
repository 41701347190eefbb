# SPDX-License-Identifier: Apache-2.0
"""A queue between a guest and a vhost-user device: what wakes the worker; a device that stops, floods or restarts."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from netback.abi.vhost_user import Feature
from netback.dataplane import clock
from netback.dataplane.notices import Notice
from netback.dataplane.states import Event, State
from netback.errors import PeerError
from netback.net.vhost_user import VhostUserNetwork
from tests.dataplane.test_limit import Limited
from tests.dataplane.woken import Woken
from tests.net.contract import frame
from tests.net.far import await_readable
from tests.net.vhost_device import EVERY_FEATURE, Device

NO_EVENT_IDX = EVERY_FEATURE & ~Feature.EVENT_IDX
BUSY_WAIT = 20_000_000
"""ns after which a queue gives up a frame that a busy peer refuses (dataplane/link.pxd)."""


class Joined(Woken):
    """A guest, its queue, and the device behind it."""

    def __init__(self, network: VhostUserNetwork, device: Device) -> None:
        super().__init__(network.peers[0])
        self.network, self.device = network, device


@contextmanager
def joined(path: Path, features: int = EVERY_FEATURE, stall: float = 60.0) -> Iterator[Joined]:
    with Device(path / "device.sock", features=features) as device:
        network = VhostUserNetwork(str(device.path), stall=stall)
        device.await_ready()
        bench = Joined(network, device)
        yield bench
        bench.close()
        network.remove()


@pytest.mark.parametrize("features", [EVERY_FEATURE, NO_EVENT_IDX], ids=["by index", "by flag"])
def test_frames_wake_the_worker(tmp_path: Path, features: int) -> None:
    """Each frame after silence is announced, and an idle worker is not woken."""
    with joined(tmp_path, features) as b:
        for number in range(20):
            assert b.queue.states == (State.RING_IDLE, State.PEER_IDLE)
            assert not b.is_readable()
            b.device.send(frame(number))
            b.await_wake()
            assert b.counters["rx_frames"] == number + 1
        for number in range(40):
            b.device.send(frame(number))
        b.await_wake()
        assert b.counters["rx_frames"] == 60


@pytest.mark.parametrize("features", [EVERY_FEATURE, NO_EVENT_IDX], ids=["by index", "by flag"])
def test_room_wakes_the_worker(tmp_path: Path, features: int) -> None:
    """A device that takes nothing fills its virtqueue; the rest stays in the ring, and goes when there is room."""
    with joined(tmp_path, features) as b:
        b.post_tx(250, 4000)
        b.wake(Event.RING)
        assert b.queue.states[0] is State.PEER_FULL
        sent = b.counters["tx_frames"]
        assert 100 < sent < 250
        assert not b.is_readable()
        taken = 0
        while taken < 250:
            b.device.recv()
            taken += 1
            if b.is_readable():
                b.wake()
        assert b.counters["tx_frames"] == 250
        assert b.queue.states[0] is State.RING_IDLE
        assert set(b.answered()) == {0}


def test_a_further_queue_waits_for_room_as_long_as_the_first(tmp_path: Path) -> None:
    """It is not told of room, so it tries again; a device that is slow, and not stopped, costs no frame."""
    with joined(tmp_path) as b:
        further = Limited(peer=b.peer.duplicate(-1))
        further.post_tx(250, 4000)
        event = Event.RING
        while further.worker.apply(further.queue, event):
            event = Event.POLL
        sent = further.queue.counters["tx_frames"]
        assert 100 < sent < 250
        begun = clock.now()
        while clock.now() < begun + 3 * BUSY_WAIT:
            assert further.queue.states[0] is State.PEER_BUSY
            further.worker.apply(further.queue, Event.TIMER)
        assert further.queue.counters["tx_frames"] == sent
        taken = 0
        while taken < 250:
            b.device.recv()
            taken += 1
            further.worker.apply(further.queue, Event.TIMER)
        assert further.queue.counters["tx_frames"] == 250
        assert further.queue.counters["tx_refused"] == 0
        further.close()


def test_frames_wait_in_the_virtqueue_while_the_guest_has_no_slots(tmp_path: Path) -> None:
    with joined(tmp_path) as b:
        for number in range(150):
            b.device.send(frame(number))
        b.wake(Event.FRAMES)
        assert b.counters["rx_frames"] == 100
        assert b.queue.states[1] is State.NO_SLOTS
        b.post_rx(60)
        b.wake(Event.RING)
        assert b.counters["rx_frames"] == 150


def test_a_device_that_stops(tmp_path: Path) -> None:
    """Its guest's requests are answered, the frames count as lost, and the next connection works."""
    with joined(tmp_path, stall=0.05) as b:
        b.post_tx(10, 60)
        b.wake(Event.RING)
        while b.network.up:
            b.await_wake()
        assert b.queue.condition is Notice.PEER_GONE
        with pytest.raises(PeerError, match="it takes no frames"):
            b.network.check()
        b.post_tx(5, 60)
        b.wake(Event.RING)
        assert b.answered() == [0] * 15
        assert b.counters["tx_refused"] in (10, 15)
        b.device.await_ready(2)
        while b.queue.condition is not Notice.READY:
            b.await_wake()
        b.post_tx(1, 60)
        b.wake(Event.RING)
        b.device.recv()


def test_a_device_that_sends_and_takes_nothing(tmp_path: Path) -> None:
    """What it brings is no progress: its guest's frames would wait for ever."""
    with joined(tmp_path, stall=0.05) as b:
        b.post_tx(10, 60)
        b.wake(Event.RING)
        while not (fault := fault_of(b.network)):
            if b.device.rx.waiting:
                b.post_rx(1)
                b.device.send(frame(1))
            b.wake(Event.FRAMES)
        assert "it takes no frames" in fault
        assert b.counters["rx_frames"] > 10


def fault_of(network: VhostUserNetwork) -> str:
    """What a check of the network finds wrong."""
    try:
        network.check()
    except PeerError as error:
        return str(error)
    return ""


def test_a_device_that_is_slow_is_not_one_that_stops(tmp_path: Path) -> None:
    with joined(tmp_path, stall=0.02) as b:
        for _ in range(10):
            b.post_tx(1, 60)
            b.wake(Event.RING)
            b.device.recv()
            await_readable(b.peer.fd)  # the timer
            b.wake()
        assert b.network.up
        assert b.device.connections == 1


def test_a_flood_of_calls_breaks_its_peer(tmp_path: Path) -> None:
    with joined(tmp_path) as b:
        call = b.device.rx.call
        for _ in range(1100):
            os.eventfd_write(call, 1)
            b.wake()
        while b.network.up:
            b.await_wake()
        with pytest.raises(PeerError, match="it calls over and over without a used buffer"):
            b.network.check()


def test_a_device_that_reports_an_error(tmp_path: Path) -> None:
    with joined(tmp_path) as b:
        os.eventfd_write(b.device.tx.error, 1)
        while b.network.up:
            b.await_wake()
        with pytest.raises(PeerError, match="it reports an error of a virtqueue"):
            b.network.check()


def test_a_device_that_restarts_under_load(tmp_path: Path) -> None:
    """The guest notices a pause only: every request is answered, and frames pass again."""
    with joined(tmp_path) as b:
        for connection in range(2, 6):
            b.post_tx(50, 60)
            b.wake(Event.RING)
            b.device.recv()
            b.device.drop()
            b.device.await_ready(connection)
            while not b.network.up or b.queue.condition is not Notice.READY:
                b.wake(Event.FRAMES)
            b.post_tx(1, 1000)
            b.wake(Event.RING)
            while len(b.device.recv()) != 1010:
                pass
            b.device.send(frame(connection))
            b.await_wake()
        assert set(b.answered()) == {0}
        assert b.counters["rx_frames"] == 4
        assert b.counters["tx_frames"] == 204


def test_a_device_cannot_stop_the_worker_by_what_it_shares(tmp_path: Path) -> None:
    """It fills the pipe of kicks, and makes its descriptors blocking: neither a kick nor a look at calls waits."""
    with joined(tmp_path) as b:
        kick = b.device.tx.kick
        for fd in (kick, b.device.tx.call, b.device.rx.call):
            os.set_blocking(fd, False)
            try:
                while True:
                    os.write(fd, b"\xff" * 7 + b"\x7f")
            except BlockingIOError:
                pass
            os.set_blocking(fd, True)
        b.post_tx(20, 60)
        b.wake(Event.RING)
        assert b.answered() == [0] * 20


def test_descriptors_of_an_earlier_connection_wake_nobody(tmp_path: Path) -> None:
    with joined(tmp_path) as b:
        earlier = os.dup(b.device.rx.call)
        b.device.drop()
        b.device.await_ready(2)
        while not b.network.up or b.queue.condition is not Notice.READY:
            b.wake(Event.FRAMES)
        b.wake()
        os.eventfd_write(earlier, 1)
        assert not b.is_readable()
        os.close(earlier)


def take_slowly(device: Device, count: int) -> None:
    """Take so many frames, no two of them at once."""
    for _ in range(count):
        select.select([], [], [], 0.001)
        device.recv()


def test_an_orderly_end_waits_for_a_device_that_goes_on(tmp_path: Path) -> None:
    """What lies in the virtqueue is taken before the connection ends. This test failed without `settle`.

    A busy machine may stop the device's thread for longer than the worker waits, but not each time.
    """
    with joined(tmp_path) as b:
        for _ in range(20):
            b.post_tx(10, 60)
            b.wake(Event.RING)
            taker = threading.Thread(target=take_slowly, args=(b.device, 10))
            taker.start()
            b.worker.remove(b.queue)
            left = b.device.tx.waiting
            taker.join()
            b.worker.add(b.queue)
            if not left:
                return
        raise AssertionError(f"{left} frames are left")


def test_an_orderly_end_waits_for_no_device_that_stops(tmp_path: Path) -> None:
    with joined(tmp_path) as b:
        b.post_tx(20, 60)
        b.wake(Event.RING)
        further = Limited(peer=b.peer.duplicate(-1))
        further.worker.remove(further.queue)
        b.worker.remove(b.queue)
        assert b.device.tx.waiting == 20
        further.close()


def test_an_orderly_end_finds_a_lie(tmp_path: Path) -> None:
    with joined(tmp_path) as b:
        b.post_tx(20, 60)
        b.wake(Event.RING)
        b.device.tx.await_waiting()
        b.device.tx.put((300, 0))
        b.worker.remove(b.queue)
        while b.network.up:
            await_readable(b.peer.fd)
        with pytest.raises(PeerError, match="it used a descriptor that it does not have"):
            b.network.check()
