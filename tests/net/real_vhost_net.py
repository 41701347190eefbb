# SPDX-License-Identifier: Apache-2.0
"""A tap's two paths on a kernel that has vhost-net: `netback lab test vhost` runs this in dom0.

The far end is a packet socket on the tap's link. Nothing waits for a time: each step waits for a frame.
"""

import fcntl
import os
import random
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from netback.abi.netif import RX_RESPONSE, TX_REQUEST, RxFlag
from netback.abi.ring import slot_offset
from netback.dataplane.own_grants import OwnGrants
from netback.dataplane.peers.vhost_tap import VhostTapPeer
from netback.dataplane.thread import Listener, WorkerThread
from netback.errors import NetbackError
from netback.net.tap import TapNetwork
from tests.dataplane.harness import RING_PAGES
from tests.dataplane.test_limit import Limited
from tests.descriptors import open_descriptors

PROTOCOL = 0x88B5
"""IEEE 802: for local experiments."""
HEADER = bytes(10)
HEAD = bytes.fromhex("ffffffffffff 02000000aa01 88b5")
ONE = bytes.fromhex("02000000bb01")
"""An address. A bridge sends on frames to it, but copies of broadcasts, which TUNSETSNDBUF does not bound."""
ROUNDS = 10_000
SECONDS = 20.0
TUNSETSNDBUF = 0x400454D4
HOLDING_PORT = """\
ip link add slow0 type veth peer name slow1
ip link set slow1 up
tc qdisc add dev slow0 root tbf rate 64bit burst 2000 limit 1000000000
ip link add slowbr type bridge
ip link set slowbr up
ip link set slow0 master slowbr up
ip link set {} master slowbr"""
"""Commands: a bridge with the tap and with a port that sends eight bytes a second."""
SO_RCVBUFFORCE = 33
"""asm-generic/socket.h: beyond rmem_max, as root."""


def frame(number: int, size: int = 64) -> bytes:
    return HEAD + number.to_bytes(8, "big") + bytes(size - len(HEAD) - 8)


def number_of(data: bytes) -> int:
    return int.from_bytes(data[len(HEAD) : len(HEAD) + 8], "big")


def threads() -> int:
    """Of this process, with the kernel's for vhost-net (vhost-PID)."""
    return len(list(Path("/proc/self/task").iterdir()))


def mapped() -> int:
    """Bytes of this process's address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


class Rig:
    """A tap, its peer, and a packet socket at its far end."""

    def __init__(
        self, name: str, vhost: str = "auto", mtu: int | None = None, *, grants: bool = True
    ) -> None:
        """`grants`: buffers lie in pages that dom0 grants to itself, which emulated memory cannot copy from."""
        self.name = name
        device = os.open("/dev/xen/gntalloc", os.O_RDWR | os.O_CLOEXEC)
        own = OwnGrants(device, 0) if grants else None
        os.close(device)
        self.network = TapNetwork(name, vhost=vhost, mtu=mtu, grants=own)
        self.network.carrier(True)
        self.up()

    def up(self) -> None:
        """Set the tap up, with another packet socket: an earlier one belongs to a link that may be gone."""
        Path(f"/proc/sys/net/ipv6/conf/{self.name}/disable_ipv6").write_text("1")
        subprocess.run(["ip", "link", "set", self.name, "up"], check=True)
        if hasattr(self, "far"):
            self.far.close()
        self.far = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(PROTOCOL))
        self.far.bind((self.name, PROTOCOL))
        self.far.settimeout(SECONDS)
        self.far.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 23)

    def drain(self) -> None:
        """Discard what has come from the guest."""
        self.far.setblocking(False)  # with a timeout recv would wait, also with MSG_DONTWAIT
        with suppress(BlockingIOError):
            while self.far.recv(65536):
                pass
        self.far.settimeout(SECONDS)

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
def few_grants() -> Iterator[int]:
    """gntalloc has pages for a few buffers only."""
    limit = Path("/sys/module/xen_gntalloc/parameters/limit")
    before = limit.read_text()
    limit.write_text("100")
    yield 100
    limit.write_text(before)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with closing(Rig("vt0")) as made:
        yield made


def test_buffers_lie_in_granted_pages_while_there_is_a_pair(rig: Rig) -> None:
    assert rig.peer.granted == 0
    assert rig.peer.switch()
    assert rig.peer.granted == 32 * 17
    for number in range(100):  # each buffer three times, all sizes of frames that this link takes
        rig.far.send(frame(number, 64 + 14 * number))
        assert rig.receive(1) == [number]
    rig.peer.settle(True)
    assert rig.peer.granted == 0
    assert rig.peer.switch(), "what was granted can be granted again"
    assert rig.peer.granted == 32 * 17


def test_other_buffers_than_those_serve_as_well(few_grants: int, rig: Rig) -> None:
    assert rig.peer.switch()
    assert 0 < rig.peer.granted <= few_grants
    for number in range(100):
        rig.far.send(frame(number))
        assert rig.receive(1) == [number]


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


@pytest.mark.parametrize("both", [False, True], ids=["tx", "both ways"])
def test_a_tap_that_is_removed_with_a_full_pair(rig: Rig, both: bool) -> None:
    """What lies in the pair is refused, the plain path is taken, and works when the tap is back."""
    burst = [frame(number, 1500) for number in range(64)]
    if both:
        assert rig.peer.switch()
    while not rig.peer.attached:
        rig.send(burst)
    rig.send(burst)
    subprocess.run(["ip", "link", "delete", rig.name], check=True)
    refused = sum(rig.send(burst) for _ in range(20))
    assert refused > 0
    rig.network.check()  # made again
    rig.up()
    rig.peer.settle(True)
    assert rig.send([frame(1)]) == 0
    assert rig.arrived(1) == [1]
    rig.far.send(frame(2))
    assert rig.receive(1) == [2]


def test_a_tap_that_is_set_down(rig: Rig) -> None:
    """The kernel loses frames of a link that is down; nothing stops."""
    burst = [frame(number) for number in range(64)]
    assert rig.peer.switch()
    rig.send(burst)
    subprocess.run(["ip", "link", "set", rig.name, "down"], check=True)
    for _ in range(20):
        rig.send(burst)
    assert rig.peer.recv() == []
    rig.up()
    rig.send([frame(100), frame(101)])
    while rig.arrived(1) != [101]:
        pass  # what the kernel had not lost yet
    rig.far.send(frame(102))
    assert rig.receive(1) == [102]


@pytest.mark.parametrize("receives", [False, True], ids=["silent", "sends all the time"])
def test_a_network_that_takes_nothing(rig: Rig, receives: bool) -> None:
    """A tap with a small TUNSETSNDBUF, in a bridge behind a port that holds every frame: vhost-net waits for room for
    ever. After a second the pair is left, its frames count as refused, and the rest waits in the plain path. What comes
    for the guest meanwhile is no progress.
    """
    fcntl.ioctl(rig.peer.fd, TUNSETSNDBUF, struct.pack("i", 100_000))
    for line in HOLDING_PORT.splitlines():
        subprocess.run(line.format(rig.name).split(), check=True)
    try:
        burst = [HEADER + ONE + frame(number, 1500)[len(ONE) :] for number in range(64)]
        if receives:
            assert rig.peer.switch()
        refused = received = 0
        deadline = time.monotonic() + SECONDS
        while rig.peer.fault is None:
            refused += rig.peer.send(burst)[1]
            if receives:
                rig.far.send(frame(0))
            select.select([], [], [], 0.01)
            received += len(rig.peer.recv())
            assert time.monotonic() < deadline, "it waits for ever"
        assert rig.peer.fault == "vhost-net took no frame for a second"
        assert received > 10 or not receives
        while rig.peer.attached:
            rig.peer.recv()
        taken, lost = rig.peer.send(burst)
        refused += lost
        assert taken < len(burst)
        assert rig.peer.blocked
        assert 0 < refused <= 256
    finally:
        subprocess.run(["ip", "link", "delete", "slow0"], check=True)
        subprocess.run(["ip", "link", "delete", "slowbr"], check=True)
    rig.drain()
    assert rig.send([frame(1000)]) == 0
    assert rig.arrived(1) == [1000]


def test_a_guest_without_slots_lets_its_worker_sleep(rig: Rig) -> None:
    """Frames for it wait in the pair, which the worker looks after 20 times a second. This test failed with a pair that
    was looked after at reads only: the worker woke for it over and over.
    """
    bench = Limited(peer=rig.peer)
    bench.worker.remove(bench.queue)
    bench.post_rx(20)
    assert rig.peer.switch()
    thread = WorkerThread(bench.worker)
    try:
        thread.add(bench.queue, Listener(lambda _: None)).result(SECONDS)
        for number in range(40):
            rig.far.send(frame(number))
        await_frames(bench, 20)
        before = bench.worker.wakes
        select.select([], [], [], 1.0)
        assert bench.worker.wakes - before < 100
        bench.post_rx(20)
        bench.ring_the_bell()
        await_frames(bench, 40)
        thread.remove(bench.queue).result(SECONDS)
    finally:
        thread.stop()
        bench.close()


def await_frames(bench: Limited, count: int) -> None:
    """Wait until the guest has so many frames."""
    deadline = time.monotonic() + SECONDS
    while bench.queue.counters["rx_frames"] < count:
        select.select([], [], [], 0.01)
        assert time.monotonic() < deadline, bench.queue.counters


def test_an_idle_pair_is_given_back(rig: Rig) -> None:
    """Its memory, its descriptors and the kernel's thread, once no stream has used it for two seconds."""
    before = open_descriptors(), mapped(), threads()
    burst = [frame(number, 1500) for number in range(64)]
    while not rig.peer.attached:
        rig.send(burst)
    assert mapped() > before[1] + (4 << 20)
    assert threads() == before[2] + 1
    deadline = time.monotonic() + SECONDS
    while rig.peer.attached or threads() > before[2]:
        rig.peer.recv()
        select.select([], [], [], 0.01)
        assert time.monotonic() < deadline, "it is kept"
    assert rig.peer.fault is None
    assert open_descriptors() == before[0] + 2  # the bell and the eventfd of errors stay
    assert mapped() < before[1] + (1 << 20)
    rig.drain()
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
    with closing(Rig("vt0", mtu=65521, grants=False)) as rig:
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


def test_the_descriptors_are_given_back(rig: Rig) -> None:
    before = open_descriptors()
    for _ in range(3):
        rig.peer.switch()
        rig.peer.settle(True)
    assert open_descriptors() <= before + 2  # the bell and the eventfd of errors stay
