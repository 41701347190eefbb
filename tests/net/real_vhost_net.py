# SPDX-License-Identifier: Apache-2.0
"""A tap's two paths on a kernel that has vhost-net: `netback lab test vhost` runs this in dom0.

The far end is a packet socket on the tap's link. Nothing waits for a time: each step waits for a frame.
"""

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from netback.abi.netif import RX_RESPONSE, TX_REQUEST, RxFlag
from netback.abi.ring import slot_offset
from netback.dataplane.peers.vhost_tap import VhostTapPeer
from netback.errors import NetbackError
from netback.net.tap import TapNetwork
from tests.dataplane.harness import RING_PAGES
from tests.dataplane.test_limit import Limited

PROTOCOL = 0x88B5
"""IEEE 802: for local experiments."""
HEADER = bytes(10)
HEAD = bytes.fromhex("ffffffffffff 02000000aa01 88b5")
ROUNDS = 10_000
SECONDS = 20.0
SO_RCVBUFFORCE = 33
"""asm-generic/socket.h: beyond rmem_max, as root."""


def frame(number: int, size: int = 64) -> bytes:
    return HEAD + number.to_bytes(8, "big") + bytes(size - len(HEAD) - 8)


def number_of(data: bytes) -> int:
    return int.from_bytes(data[len(HEAD) : len(HEAD) + 8], "big")


class Rig:
    """A tap, its peer, and a packet socket at its far end."""

    def __init__(self, name: str, vhost: str = "auto", mtu: int | None = None) -> None:
        self.name = name
        self.network = TapNetwork(name, vhost=vhost, mtu=mtu)
        self.network.carrier(True)
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        self.far = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(PROTOCOL))
        self.far.bind((name, PROTOCOL))
        self.far.settimeout(SECONDS)
        self.far.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 23)

    @property
    def peer(self) -> VhostTapPeer:
        (peer,) = self.network.peers
        assert isinstance(peer, VhostTapPeer)
        return peer

    def receive(self, wanted: int) -> list[int]:
        """The numbers of so many frames for the guest."""
        numbers: list[int] = []
        for _ in range(1_000_000):
            numbers += [number_of(each[len(HEADER) :]) for each in self.peer.recv(8)]
            if len(numbers) >= wanted:
                return numbers
        raise AssertionError(f"{len(numbers)} of {wanted} frames came: {numbers[-3:]}")

    def arrived(self, wanted: int) -> list[int]:
        """The numbers of so many frames of the guest."""
        return [number_of(self.far.recv(65536)) for _ in range(wanted)]

    def send(self, frames: list[bytes]) -> int:
        """Send all frames; returns how many were refused."""
        refused = 0
        for _ in range(1_000_000):
            done, lost = self.peer.send([HEADER + each for each in frames])
            frames, refused = frames[done:], refused + lost
            if not frames:
                return refused
        raise AssertionError(f"{len(frames)} frames are not taken")

    def close(self) -> None:
        self.far.close()
        self.network.remove()


@pytest.fixture
def rig() -> Iterator[Rig]:
    with closing(Rig("vt0")) as made:
        yield made


def test_frames_for_the_guest_keep_their_order_over_ten_thousand_switches(rig: Rig) -> None:
    generator = random.Random(1)
    sent = 0
    for _ in range(ROUNDS):
        count = generator.randint(0, 6)
        first, by_vhost = sent, rig.peer.rx_by_vhost
        for _ in range(count // 2):
            rig.far.send(frame(sent))
            sent += 1
        assert rig.peer.switch() != by_vhost
        for _ in range(count - count // 2):
            rig.far.send(frame(sent))
            sent += 1
        assert rig.receive(count) == list(range(first, sent))
        rig.peer.recv(1)  # the end of the used ring
    assert rig.peer.switches >= ROUNDS - 1
    assert rig.peer.fault is None


def test_frames_of_the_guest_keep_their_order_on_two_paths(rig: Rig) -> None:
    generator = random.Random(2)
    sent = 0
    rig.peer.switch()
    for _ in range(ROUNDS // 10):
        first = sent
        for _ in range(10):
            burst = generator.choice((1, 1, 1, 2, 7, 64))
            assert rig.send([frame(sent + i, generator.choice((64, 1500))) for i in range(burst)]) == 0
            sent += burst
        assert rig.arrived(sent - first) == list(range(first, sent))
    assert rig.peer.attached
    assert rig.peer.fault is None


def test_every_frame_goes_through_vhost_where_the_spec_says_so() -> None:
    with closing(Rig("vt0", "on")) as rig:
        rig.peer.recv()
        assert rig.peer.rx_by_vhost
        rig.far.send(frame(7))
        assert rig.receive(1) == [7]
        assert rig.send([frame(8)]) == 0
        assert rig.arrived(1) == [8]


def test_the_spec_can_forbid_vhost() -> None:
    network = TapNetwork("vt0", vhost="off")
    assert not isinstance(network.peers[0], VhostTapPeer)
    network.remove()


def test_settling_returns_what_the_pair_holds(rig: Rig) -> None:
    rig.peer.switch()
    for number in range(20):
        rig.far.send(frame(number))
    assert rig.receive(5)[:5] == [0, 1, 2, 3, 4]
    rig.send([frame(number) for number in range(64)])
    while rig.peer.settle(False):
        rig.peer.recv()
    rig.peer.settle(True)
    assert not rig.peer.attached
    assert rig.arrived(64) == list(range(64))


def test_a_tap_that_is_removed_with_a_full_pair(rig: Rig) -> None:
    burst = [frame(number, 1500) for number in range(64)]
    while not rig.peer.attached:
        rig.send(burst)
    subprocess.run(["ip", "link", "delete", rig.name], check=True)
    refused = sum(rig.send(burst) for _ in range(20))
    assert refused > 0
    rig.network.check()  # made again
    subprocess.run(["ip", "link", "set", rig.name, "up"], check=True)
    rig.far.close()
    rig.far = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(PROTOCOL))
    rig.far.bind((rig.name, PROTOCOL))
    rig.far.settimeout(SECONDS)
    rig.peer.settle(True)
    assert rig.send([frame(1)]) == 0
    assert rig.arrived(1) == [1]


class Ring(Limited):
    """A guest and its queue, whose peer is a tap with two paths."""

    def send(self, frames: list[bytes]) -> None:
        """Post frames of one slot, and serve them."""
        first = self.posted[RING_PAGES[0]]
        for at, data in enumerate(frames, first):
            self.write(10 + at % 250, 0, data)
            self.write(
                RING_PAGES[0], slot_offset(at, 12), TX_REQUEST.pack(10 + at % 250, 0, 0, at % 256, len(data))
            )
        self.posted[RING_PAGES[0]] += len(frames)
        self.publish(RING_PAGES[0])
        for _ in range(1_000_000):
            self.worker.step(self.queue)
            if self.queue.rings["tx"]["rsp_prod"] == self.posted[RING_PAGES[0]]:
                return
        raise AssertionError(f"the guest's frames are not taken: {self.queue.rings}")

    def received(self, at: int) -> tuple[bytes, int]:
        """The frame whose first response has this index, and the index after it."""
        data, more = b"", True
        while more:
            body = self.read(RING_PAGES[1], slot_offset(at, 8), RX_RESPONSE.size)
            _, offset, flags, status = RX_RESPONSE.unpack(body)
            assert status > 0
            data += self.read(260 + at % 250, offset, status)
            more = bool(flags & RxFlag.MORE_DATA)
            at += 1
        return data, at


def test_frames_of_a_ring_are_sent_from_where_they_were_copied_to() -> None:
    generator = random.Random(3)
    with closing(Rig("vt0")) as rig:
        ring = Ring(peer=rig.peer)
        rig.peer.switch()
        for _ in range(500):
            burst = [
                HEAD + generator.randbytes(generator.choice((46, 500, 1486, 4082)))
                for _ in range(generator.choice((1, 1, 2, 5, 30, 200)))
            ]
            ring.send(burst)
            assert [rig.far.recv(65536) for _ in burst] == burst
        assert rig.peer.attached
        assert rig.peer.fault is None
        assert ring.queue.counters["tx_refused"] == 0
        ring.close()


def test_frames_for_a_ring_are_copied_from_where_the_kernel_put_them() -> None:
    generator = random.Random(4)
    with closing(Rig("vt0", mtu=65521)) as rig:
        ring = Ring(peer=rig.peer)
        at = 0
        for number in range(600):
            if number % 7 == 0:
                rig.peer.switch()
            burst = [
                HEAD + generator.randbytes(generator.choice((46, 1486, 9000, 30_000, 65_000)))
                for _ in range(generator.randint(1, 3))
            ]
            ring.post_rx(at + 200 - ring.posted[RING_PAGES[1]])
            for data in burst:
                rig.far.send(data)
            wanted = ring.queue.counters["rx_frames"] + len(burst)
            while ring.queue.counters["rx_frames"] < wanted:
                ring.worker.step(ring.queue)
            for data in burst:
                got, at = ring.received(at)
                assert got == data
        assert rig.peer.fault is None
        ring.close()


HOLDER = """
import sys
from netback.net.tap import TapNetwork
from tests.net.real_vhost_net import HEADER, frame
network = TapNetwork("vt1", vhost="on")
network.carrier(True)
network.peers[0].recv()
print(network.peers[0].rx_by_vhost, flush=True)
while True:
    network.peers[0].send([HEADER + frame(0, 1500)] * 64)
    network.peers[0].recv()
"""


def test_a_killed_owner_leaves_the_tap_to_the_next_one() -> None:
    places = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    for _ in range(2):
        holder = subprocess.Popen(
            [sys.executable, "-P", "-c", HOLDER], stdout=subprocess.PIPE, text=True, env=os.environ | places
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        subprocess.run(["ip", "link", "set", "vt1", "up"], check=True)
        holder.send_signal(signal.SIGKILL)
        with closing(Rig("vt1", "on")) as rig:
            rig.peer.recv()
            assert rig.peer.rx_by_vhost, rig.peer.fault
            rig.far.send(frame(3))
            assert 3 in rig.receive(1)
        holder.wait()
        holder.stdout.close()


def test_a_limit_of_pairs_leaves_the_plain_path() -> None:
    rigs = [Rig(f"vt{number}", "on") for number in range(66)]
    try:
        for rig in rigs:
            rig.peer.recv()
        assert sum(rig.peer.attached for rig in rigs) == 64
        assert rigs[65].peer.fault == "64 queues of this process use vhost-net already"
        assert rigs[65].send([frame(1)]) == 0
        assert rigs[65].arrived(1) == [1]
    finally:
        for rig in rigs:
            rig.close()


def test_a_second_holder_is_refused(rig: Rig) -> None:
    rig.peer.switch()
    with pytest.raises(NetbackError, match="vt0"):
        TapNetwork(rig.name)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_the_descriptors_are_given_back(rig: Rig) -> None:
    before = descriptors()
    for _ in range(3):
        rig.peer.switch()
        rig.peer.settle(True)
    assert descriptors() <= before + 2  # the bell and the eventfd of errors stay
