# SPDX-License-Identifier: Apache-2.0
"""The distributor: which inbox each frame goes to, what a full inbox loses, and what a change of the table keeps."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netback.abi.netif import RX_REQUEST
from netback.abi.ring import PAGE_SIZE, slot_offset
from netback.dataplane.back.distributor import Distributor
from netback.dataplane.flow import number_flow
from netback.dataplane.journal import arm_kill
from netback.dataplane.notices import Notice
from netback.dataplane.peers.socket import SocketPeer
from netback.dataplane.states import Event, State
from netback.dataplane.toeplitz import Toeplitz
from tests.dataplane.harness import RING_PAGES, Bench
from tests.dataplane.test_toeplitz import ALL, FLOW4, FLOW6, KEY, OPTIONS, ethernet, ipv4, ipv6
from tests.flow_oracle import flow_number, queue_of

HEADER = bytes(10)
QUEUES = 4


def pair(room: int = 1 << 22) -> tuple[socket.socket, socket.socket]:
    """Two ends; each takes about so many bytes beyond what the other one read."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
    return ends


def take(end: socket.socket) -> list[bytes]:
    """Every message that waits in a socket."""
    got = []
    while True:
        try:
            message = end.recv(1 << 17)
        except BlockingIOError:
            return got
        if not message:
            return got
        got.append(message)


class Rig:
    """A distributor between a network's socket and the inboxes of queues, on a worker that the test drives."""

    def __init__(self, queues: int = QUEUES, *, vnet_hdr: bool = True, room: int = 1 << 22) -> None:
        self.bench = Bench()
        self.far, self.near = pair()
        self.inboxes = [pair(room) for _ in range(queues)]
        ends = [SocketPeer(end.fileno(), vnet_hdr=True, owner=end) for end, _ in self.inboxes]
        peer = SocketPeer(self.near.fileno(), vnet_hdr=vnet_hdr, owner=self.near)
        self.distributor = Distributor(peer, ends)
        self.worker = self.bench.worker
        self.worker.add(self.distributor)

    def run(self) -> None:
        while self.worker.step(self.distributor):
            pass

    def got(self, queue: int) -> list[bytes]:
        return take(self.inboxes[queue][1])

    @property
    def lost(self) -> int:
        return self.distributor.counters["rx_inbox_full"]

    def close(self) -> None:
        self.worker.remove(self.distributor)
        self.bench.close()
        for end in (self.far, self.near, *(end for inbox in self.inboxes for end in inbox)):
            end.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def numbered(flow: int, number: int, size: int = 0) -> bytes:
    """A TCP frame of a flow, with its number at the end."""
    body = ipv4("192.0.2.1", 1000 + flow, "192.0.2.2", 80) + bytes(size)
    return ethernet(0x0800) + body + struct.pack(">HI", flow, number)


def told(frame: bytes) -> tuple[int, int]:
    flow, number = struct.unpack(">HI", frame[-6:])
    return flow, number


def any_frame(rng: random.Random) -> bytes:
    """A packet of any flow, broken at random."""
    port = rng.randrange(1 << 16)
    packets = (
        ethernet(0x0800, rng.randrange(4))
        + ipv4(
            FLOW4[0], port, FLOW4[2], 80, protocol=rng.choice((1, 6, 17, 132)), words=rng.randrange(4, 16)
        ),
        ethernet(0x86DD, rng.randrange(3))
        + ipv6(FLOW6[0], port, FLOW6[2], 80, first=rng.choice((6, 17, 58))),
        ethernet(0x86DD)
        + ipv6(*FLOW6, first=rng.choice((0, 43, 44, 60)), extensions=OPTIONS * rng.randrange(1, 34)),
        rng.randbytes(12) + b"\x88\xb5" + rng.randbytes(60),
    )
    frame = bytearray(rng.choice(packets))
    for _ in range(rng.randrange(4)):
        frame[rng.randrange(len(frame))] = rng.randrange(256)
    return bytes(frame[: rng.randrange(1, len(frame) + 1)] if rng.random() < 0.2 else frame)


@given(st.integers(0, 2**32))
def test_a_flow_has_the_number_that_the_oracle_gives(seed: int) -> None:
    frame = any_frame(random.Random(seed))
    assert number_flow(frame) == flow_number(frame)


def test_what_a_flow_is() -> None:
    """Ports and addresses make a flow; what changes from packet to packet does not, nor do a fragment's ports."""
    one = ethernet(0x0800) + ipv4("192.0.2.1", 1000, "192.0.2.2", 80)
    assert number_flow(one) == number_flow(one[:-8] + bytes(range(8)))
    others = [
        ethernet(0x0800) + ipv4("192.0.2.1", 1001, "192.0.2.2", 80),
        ethernet(0x0800) + ipv4("192.0.2.3", 1000, "192.0.2.2", 80),
        ethernet(0x0800) + ipv4("192.0.2.1", 1000, "192.0.2.2", 80, protocol=17),
    ]
    assert len({number_flow(frame) for frame in [one, *others]}) == 4
    parts = [
        ethernet(0x0800) + ipv4("192.0.2.1", port, "192.0.2.2", 80, fragment=at)
        for port, at in ((1000, 0x2000), (7, 9))
    ]
    assert number_flow(parts[0]) == number_flow(parts[1])
    assert number_flow(one[:12] + b"\x81\x00\x00\x07" + one[12:]) == number_flow(one)


def test_many_flows_use_every_queue() -> None:
    counts = [0] * QUEUES
    for flow in range(400):
        counts[number_flow(numbered(flow, 0)) % QUEUES] += 1
    assert min(counts) > 70


MAPPINGS: dict[str, tuple[int, Sequence[int]]] = {
    "by flow": (0, ()),
    "by hash": (ALL, ()),
    "by mapping": (ALL, [3, 1, 0, 1, 2]),
    "by mapping, all in one": (ALL, [2]),
    "by mapping, addresses only": (5, [0, 1, 2, 3, 3, 2, 1]),
}


@pytest.mark.parametrize("rule", MAPPINGS)
@pytest.mark.parametrize("vnet_hdr", [True, False])
def test_every_frame_goes_where_the_oracle_says(rule: str, *, vnet_hdr: bool) -> None:
    """A frame without a hash is number 0. Bytes, and the virtio_net_hdr if the network has one, stay as they are."""
    types, mapping = MAPPINGS[rule]
    rng = random.Random(rule)
    rig = Rig(vnet_hdr=vnet_hdr)
    rig.distributor.steer(mapping or range(QUEUES), Toeplitz(KEY, types) if types else None)
    wanted: list[list[bytes]] = [[] for _ in range(QUEUES)]
    for _ in range(300):
        frame = any_frame(rng)
        header = rng.randbytes(10) if vnet_hdr else b""
        rig.far.send(header + frame)
        wanted[queue_of(frame, QUEUES, types, KEY, mapping)].append((header or HEADER) + frame)
    rig.run()
    assert [rig.got(queue) for queue in range(QUEUES)] == wanted
    assert rig.lost == 0
    rig.close()


def test_a_full_inbox_loses_its_own_frames_only(rig: Rig) -> None:
    """A queue that takes nothing stops no other one: its inbox keeps the first frames, the further ones are counted."""
    rig.distributor.steer(range(QUEUES), None)
    flows = {number_flow(numbered(flow, 0)) % QUEUES: flow for flow in range(40)}
    stuck = rig.inboxes[0][0]
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20000)
    came: dict[int, list[int]] = {queue: [] for queue in range(QUEUES)}
    for number in range(200):
        for queue in range(QUEUES):
            rig.far.send(HEADER + numbered(flows[queue], number, 1000))
        rig.run()
        for queue in range(1, QUEUES):
            came[queue] += [told(frame)[1] for frame in rig.got(queue)]
    kept = [told(frame)[1] for frame in rig.got(0)]
    assert all(came[queue] == list(range(200)) for queue in range(1, QUEUES))
    assert 0 < len(kept) < 200
    assert kept == list(range(len(kept)))
    assert rig.lost == 200 - len(kept)
    rig.far.send(HEADER + numbered(flows[0], 200))
    rig.run()
    assert [told(frame) for frame in rig.got(0)] == [(flows[0], 200)]


def test_a_frame_that_no_inbox_takes_is_counted(rig: Rig) -> None:
    rig.distributor.steer([0], None)
    rig.inboxes[0][0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5000)
    rig.far.send(HEADER + bytes(60000))
    rig.far.send(HEADER + bytes(60))
    rig.run()
    assert rig.got(0) == [HEADER + bytes(60)]
    assert rig.lost == 1


@pytest.mark.parametrize("size", [60, 3000, 65000])
def test_a_new_table_applies_between_two_reads(rig: Rig, size: int) -> None:
    """Whatever was read before went to its inbox: each flow is whole, and moves at one point, if it moves."""
    tables = ([0, 1, 2, 3], [0, 2, 1, 3], [3, 2, 1, 3, 0], [0])
    rng = random.Random(size)
    hash, sent = Toeplitz(KEY, ALL), 0
    came: dict[int, list[tuple[int, int]]] = {flow: [] for flow in range(16)}
    for table in tables:
        rig.distributor.steer(table, hash if len(table) > 1 else None)
        for _ in range(40):
            flow = rng.randrange(16)
            rig.far.send(HEADER + numbered(flow, sent, size))
            sent += 1
        if rng.random() < 0.5:
            rig.worker.step(rig.distributor)
        for queue in range(QUEUES):
            for frame in rig.got(queue):
                flow, number = told(frame)
                came[flow].append((queue, number))
    rig.run()
    for queue in range(QUEUES):
        for frame in rig.got(queue):
            flow, number = told(frame)
            came[flow].append((queue, number))
    for frames in came.values():
        for queue in range(QUEUES):
            numbers = [number for place, number in frames if place == queue]
            assert numbers == sorted(set(numbers))
    assert sorted(number for frames in came.values() for _, number in frames) == list(range(sent))


@pytest.mark.parametrize("table", [[], [QUEUES], [0, -1], [0] * 257])
def test_tables_that_name_no_inbox(rig: Rig, table: list[int]) -> None:
    with pytest.raises(ValueError, match="a table has 1 to 256 entries"):
        rig.distributor.steer(table, None)


def test_the_end_of_a_network(rig: Rig) -> None:
    """What was sent before still arrives; then the network is gone, and the queues are not."""
    rig.far.send(HEADER + numbered(1, 1))
    rig.far.close()
    rig.run()
    assert rig.got(0) == [HEADER + numbered(1, 1)]
    assert rig.distributor.condition is Notice.PEER_GONE
    assert rig.distributor.states == (State.RING_IDLE, State.PEER_CLOSED)
    assert rig.worker.waits(rig.distributor) == (set(), set())
    rig.worker.refresh(rig.distributor)
    assert rig.distributor.condition is Notice.READY


def test_what_an_idle_distributor_waits_for(rig: Rig) -> None:
    rig.run()
    assert rig.distributor.states == (State.RING_IDLE, State.PEER_IDLE)
    assert rig.worker.waits(rig.distributor) == ({"error", "frames"}, set())
    rig.worker.refuse_rx(rig.distributor)
    rig.far.send(HEADER + numbered(1, 1))
    assert not rig.worker.apply(rig.distributor, Event.FRAMES)
    assert rig.got(0) == []


def test_killed_at_every_step() -> None:
    """A kill loses what was read and duplicates nothing: the network has the rest."""
    after, frames = 1, [HEADER + numbered(flow, number) for number in range(12) for flow in range(8)]
    while True:
        rig = Rig()
        rig.distributor.steer(range(QUEUES), None)
        for frame in frames:
            rig.far.send(frame)
        child = os.fork()
        if child == 0:
            arm_kill(after)
            rig.run()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        given = {frame for queue in range(QUEUES) for frame in rig.got(queue)}
        rest = take(rig.near)
        rig.close()
        assert rest == frames[len(frames) - len(rest) :]
        assert not given & set(rest)
        if os.WIFEXITED(status):
            assert given == set(frames)
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        after += 1
    assert after > 2 * QUEUES


class Steered:
    """A queue that takes its frames from an inbox and sends to the network."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.sender, self.receiver = pair()
        inbox = SocketPeer(self.receiver.fileno(), vnet_hdr=True, owner=self.receiver)
        self.worker, self.queue = self.bench.worker, self.bench.queue
        self.worker.set_peer(self.queue, self.bench.peer, inbox)

    def post(self, slots: int) -> None:
        bench = self.bench
        for number in range(slots):
            bench.grant(10 + number, 100 + number)
            at = RING_PAGES[1] * PAGE_SIZE + slot_offset(number, 8)
            RX_REQUEST.pack_into(bench.memory, at, number, 0, 10 + number)
        struct.pack_into("<I", bench.memory, RING_PAGES[1] * PAGE_SIZE, slots)

    def close(self) -> None:
        self.bench.close()
        self.sender.close()
        self.receiver.close()


@pytest.fixture
def steered() -> Iterator[Steered]:
    made = Steered()
    yield made
    made.close()


def test_a_queue_takes_frames_from_its_inbox_alone(steered: Steered) -> None:
    steered.post(4)
    assert steered.bench.peer_end is not None
    steered.bench.peer_end.send(HEADER + bytes(60))
    steered.sender.send(HEADER + numbered(3, 7))
    steered.bench.run()
    assert steered.queue.counters["rx_frames"] == 1
    assert steered.bench.read(100, 0, len(numbered(3, 7))) == numbered(3, 7)
    assert steered.worker.waits(steered.queue)[0] == {"error", "inbox"}
    steered.bench.peer_end.close()
    steered.worker.apply(steered.queue, Event.ROOM, hang_up=True)
    assert steered.queue.condition is Notice.PEER_GONE
    steered.sender.send(HEADER + numbered(3, 8))
    steered.bench.run()
    assert steered.queue.counters["rx_frames"] == 2, "the inbox is not closed"
