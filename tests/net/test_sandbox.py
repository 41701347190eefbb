# SPDX-License-Identifier: Apache-2.0
"""Two hosts of net/sandbox on a link that loses, repeats, completes and segments frames as a real one does; the network
`sandbox` and hostile frames to it.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netback.abi import virtio_net
from netback.dataplane import offload
from netback.net.sandbox.network import IN_FLIGHT, IPV6, MAC, SandboxNetwork, addresses, furnish
from netback.net.sandbox.packets import Flag, echo
from netback.net.sandbox.services import BUFFER
from netback.net.sandbox.stack import MAX_WAITING, Stack
from netback.net.sandbox.tcp import MAX_SENT, RESEND_SECONDS, Connection
from netback.net.sandbox.tcpip import Host
from netback.net.user import IPV4

from .contract import AnyNetwork, Site
from .sandbox_frames import GOOD, GUEST, HERE, THERE, dhcp, query, tcp, udp, vouched

A, B = "10.0.0.1", "10.0.0.2"
Change = Callable[[bytes], list[bytes]]


class Wire:
    """Two hosts; `change` returns the frames that arrive for a frame."""

    def __init__(self, change: Change = lambda frame: [frame]) -> None:
        self.frames: deque[tuple[Host, bytes]] = deque()
        self.seen: list[bytes] = []
        self.now = 0.0
        self.change = change
        self.a = Host(A, "02:00:00:00:00:01", lambda frame: self._carry(self.b, frame))
        self.b = Host(B, "02:00:00:00:00:02", lambda frame: self._carry(self.a, frame))

    def _carry(self, to: Host, frame: bytes) -> None:
        self.seen.append(frame)
        self.frames.extend((to, arrived) for arrived in self.change(frame))

    def run(self, condition: Callable[[], bool], rounds: int = 2000) -> bool:
        """Deliver frames, and advance the time when none is left, until `condition` holds."""
        for _ in range(rounds):
            while self.frames:
                to, frame = self.frames.popleft()
                to.receive(frame)
                to.flush()
            if condition():
                return True
            self.now += RESEND_SECONDS
            for host in (self.a, self.b):
                host.tick(self.now)
        return False

    def open(self) -> tuple[Connection, Connection, list[bytes]]:
        """A connection from a to b, and the pieces that b has received."""
        port, incoming = self.b.listen()
        got: list[bytes] = []
        incoming.on_data = got.append
        return self.a.connect(B, port), incoming, got


def feed(connection: Connection, data: bytes, piece: int = 100_000) -> None:
    """Have a connection send the data, and end."""
    pieces = deque(data[at : at + piece] for at in range(0, len(data), piece))
    connection.on_room = lambda: pieces.popleft() if pieces else None
    connection.pump()


def complete(message: bytes) -> list[bytes]:
    """A link without any offload: the frame segmented and completed, its header blank."""
    header = virtio_net.HEADER.unpack_from(message)
    frame = message[virtio_net.HEADER.size :]
    plain = bytes(virtio_net.HEADER.size)
    if header[1] != virtio_net.GSO_NONE:
        return [plain + segment for segment in offload.segment(frame, header)]
    completed = bytearray(frame)
    if header[0] & virtio_net.F_NEEDS_CSUM:
        offload.complete(completed, header)
    return [plain + bytes(completed)]


def forget_flags(message: bytes) -> list[bytes]:
    return [bytes(virtio_net.HEADER.size) + message[virtio_net.HEADER.size :]]


@pytest.mark.parametrize("change", [lambda frame: [frame], complete], ids=["as it is", "completed and cut"])
@pytest.mark.parametrize("segmentation", [True, False])
def test_bytes_arrive_in_order(change: Change, segmentation: bool) -> None:
    data = random.Random(1).randbytes(1_500_000)
    wire = Wire(change)
    wire.a.segmentation = segmentation
    sender, receiver, got = wire.open()
    assert wire.run(lambda: sender.established)
    feed(sender, data)
    assert wire.run(lambda: sender.sent_all and receiver.received_all)
    assert b"".join(got) == data
    assert wire.b.checksum_errors == 0
    largest = max(map(len, wire.seen)) - virtio_net.HEADER.size
    assert 60_000 < largest <= 65_549 if segmentation else largest <= 1514


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1 << 32),
    lost=st.floats(0, 0.3),
    twice=st.floats(0, 0.3),
    length=st.integers(0, 300_000),
)
def test_a_link_that_loses_and_repeats(seed: int, lost: float, twice: float, length: int) -> None:
    chance = random.Random(seed)
    data = chance.randbytes(length)

    def change(frame: bytes) -> list[bytes]:
        if chance.random() < lost:
            return []
        return [frame, frame] if chance.random() < twice else [frame]

    wire = Wire(change)
    wire.a.echo(B, lambda: None)
    wire.a.segmentation = False
    sender, receiver, got = wire.open()
    feed(sender, data, piece=10_000)
    assert wire.run(lambda: sender.sent_all and receiver.received_all)
    assert b"".join(got) == data


def test_without_flags_ping_works_and_tcp_fails() -> None:
    wire = Wire(forget_flags)
    back: list[bool] = []
    wire.a.echo(B, lambda: back.append(True))
    assert wire.run(lambda: bool(back))
    sender, _, _ = wire.open()
    assert not wire.run(lambda: sender.established, rounds=10)
    assert wire.b.checksum_errors > 0


@given(st.binary(max_size=200), st.integers(0, 1 << 32))
def test_malformed_frames_are_ignored(tail: bytes, seed: int) -> None:
    """No frame raises an error, not even one that is addressed to the host."""
    wire = Wire()
    chance = random.Random(seed)
    head = bytes(10) + bytes.fromhex("020000000001 020000000002")
    kinds = (b"\x08\x00\x45", b"\x08\x06", chance.randbytes(3))
    wire.a.receive(head + chance.choice(kinds) + tail)
    port, _ = wire.a.listen()
    protocol = chance.choice((1, 6))
    ends = bytes((10, 0, 0, 2)) + bytes((10, 0, 0, 1))
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 0xFFFF, 0, 0, 64, protocol, 0) + ends
    wire.a.receive(bytes([1]) + head[1:] + b"\x08\x00" + ip + struct.pack("!HH", 5, port) + tail)


async def test_a_link_that_takes_nothing() -> None:
    """What waits for room is bounded; the answers come in order once there is room."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with far:
        async with Stack(near.detach(), addresses(IPV4, IPV6), MAC) as stack:
            furnish(stack.host, IPV4, IPV6)
            count = 0
            while stack._waiting_bytes < MAX_WAITING:
                stack.host.receive(vouched(THERE, HERE, 17, udp(7, count.to_bytes(4, "big") * 10_000)))
                count += 1
            for _ in range(100):
                stack.host.receive(vouched(THERE, HERE, 17, udp(7, bytes(40_000))))
            assert stack._waiting_bytes <= MAX_WAITING + 40_100
            far.setblocking(False)
            loop = asyncio.get_running_loop()
            for number in range(count):
                got = await loop.sock_recv(far, 70_000)
                assert got.endswith(number.to_bytes(4, "big") * 10_000)


# ---- the network


class TestSandbox(AnyNetwork):
    """It answers by itself: there is no far side."""

    @pytest.fixture
    def site(self) -> Iterator[Site]:
        network = SandboxNetwork()
        yield Site(network, None)
        network.remove()


def sandbox() -> tuple[Host, list[bytes]]:
    """A furnished host, and the frames that it sends."""
    sent: list[bytes] = []
    host = Host(addresses(IPV4, IPV6), MAC, sent.append)
    furnish(host, IPV4, IPV6)
    return host, sent


@pytest.mark.parametrize("message", GOOD)
def test_each_is_answered_alone(message: bytes) -> None:
    """With a frame to the guest's own address, to all, or to all nodes."""
    host, sent = sandbox()
    host.receive(message)
    host.flush()
    assert len(sent) == 1
    assert sent[0][10:16] in (GUEST, b"\xff" * 6, b"\x33\x33\0\0\0\1")


@settings(max_examples=300)
@given(st.data())
def test_hostile_frames(data: st.DataObject) -> None:
    """No frame raises an error, none is answered by many, and what is kept is bounded."""
    host, sent = sandbox()
    for now in range(data.draw(st.integers(1, 20))):
        message = bytearray(data.draw(st.sampled_from(GOOD)))
        for _ in range(data.draw(st.integers(0, 6))):
            message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(0, len(message)))
        whole = bytes(message[:cut]) if data.draw(st.booleans()) else bytes(message) + data.draw(st.binary())
        before = len(sent)
        host.receive(whole)
        host.flush()
        assert len(sent) - before <= 200
        host.tick(float(now))
        sent.clear()
    for now in range(100, 400, 10):
        host.tick(float(now))
    assert not host.busy


@given(st.binary(max_size=1600))
def test_any_bytes(data: bytes) -> None:
    host, _ = sandbox()
    host.receive(data)
    host.receive(GOOD[0][:24] + data)
    for answer in host.udp.values():
        answer(data)


def test_connections_are_few_and_end() -> None:
    """Of a flood of SYN the first 64 are accepted, the others refused; those that say no more are forgotten."""
    host, sent = sandbox()
    for port in range(1000, 3000):
        host.receive(vouched(THERE, HERE, 6, tcp(port, 7, 2)))
    flags = [Flag(one[10 + 14 + 20 + 13]) for one in sent]
    assert flags == [Flag.SYN | Flag.ACK] * 64 + [Flag.RST | Flag.ACK] * 1936
    sent.clear()
    for now in range(120):
        host.tick(float(now))
        sent.clear()
    assert not host.busy
    host.receive(vouched(THERE, HERE, 6, tcp(900, 7, 2)))
    assert len(sent) == 1


def test_a_guest_that_reads_nothing() -> None:
    """Echo keeps what the guest's window and its own buffer hold, offers no more room, and goes on when it reads."""
    host, sent = sandbox()
    host.receive(vouched(THERE, HERE, 6, tcp(900, 7, 2)))
    isn = struct.unpack_from("!I", sent[-1], 10 + 14 + 20 + 4)[0]
    host.receive(vouched(THERE, HERE, 6, tcp(900, 7, 16, 1, isn + 1)))
    at, pieces = 1, 0
    while True:
        host.receive(vouched(THERE, HERE, 6, tcp(900, 7, 24, at, isn + 1, bytes(1000))))
        host.flush()
        taken = struct.unpack_from("!I", sent[-1], 10 + 14 + 20 + 8)[0]
        if taken == at:
            break
        at = taken
        pieces += 1
        assert pieces < 300
    assert at - 1 <= IN_FLIGHT + BUFFER + 65535
    assert struct.unpack_from("!H", sent[-1], 10 + 14 + 20 + 14)[0] == 0


def test_an_echo_of_single_bytes() -> None:
    """The segments that wait for an acknowledgement are bounded; the bytes beyond them go together, later."""
    host, sent = sandbox()
    host.receive(vouched(THERE, HERE, 6, tcp(900, 7, 2)))
    isn = struct.unpack_from("!I", sent[-1], 10 + 14 + 20 + 4)[0]
    for at in range(1, 1001):
        host.receive(vouched(THERE, HERE, 6, tcp(900, 7, 24, at, isn + 1, bytes([at % 256]))))
    pieces = [one[10 + 14 + 20 + 20 :] for one in sent[1:]]
    assert pieces == [bytes([at % 256]) for at in range(1, MAX_SENT + 1)]
    sent.clear()
    host.receive(vouched(THERE, HERE, 6, tcp(900, 7, 16, 1001, isn + 1 + MAX_SENT)))
    assert b"".join(one[10 + 14 + 20 + 20 :] for one in sent) == bytes(
        at % 256 for at in range(MAX_SENT + 1, 1001)
    )


def test_neighbours_are_bounded() -> None:
    host, sent = sandbox()
    for number in range(3000):
        host.receive(vouched(bytes((10, 0, 2 + number // 256, number % 256)), HERE, 1, echo(8, 1, 1, b"")))
    assert len(host._neighbours) == 256
    assert len(sent) == 3000


def test_a_reset_ends_a_connection() -> None:
    host, _ = sandbox()
    host.receive(vouched(THERE, HERE, 6, tcp(900, 7, 2)))
    assert host.busy
    host.receive(vouched(THERE, HERE, 6, tcp(900, 7, 4, 1)))
    assert not host.busy


@pytest.mark.parametrize(
    ("request_", "kind", "address"),
    [
        (dhcp(1), 2, THERE),
        (dhcp(3, o50=THERE, o54=HERE), 5, THERE),
        (dhcp(3, o50=bytes((10, 0, 2, 99))), 6, bytes(4)),
        (dhcp(8), 5, bytes(4)),
        (dhcp(3, o50=THERE, o54=bytes((10, 0, 2, 99))), None, None),
        (dhcp(7), None, None),
        (dhcp(1)[:200], None, None),
    ],
)
def test_dhcp(request_: bytes, kind: int | None, address: bytes | None) -> None:
    """RFC 2131: an offer, an acknowledgement, a refusal, an answer without an address; another server's, a release."""
    host, _ = sandbox()
    answer = host.udp[67](request_)
    if kind is None:
        assert answer is None
        return
    assert answer is not None
    assert answer[240:243] == bytes((53, 1, kind))
    assert answer[16:20] == address


@pytest.mark.parametrize(
    ("asked", "code", "answers"),
    [
        (query("sandbox"), 0, 1),
        (query("SANDBOX", 28), 0, 1),
        (query("sandbox", 255), 0, 2),
        (query("guest.sandbox", 28), 0, 0),
        (query("example.org"), 3, 0),
        (query("sandbox")[:2] + b"\x28\x00" + query("sandbox")[4:], 4, 0),
    ],
)
def test_dns(asked: bytes, code: int, answers: int) -> None:
    host, _ = sandbox()
    answer = host.udp[53](asked)
    assert answer is not None
    number, flags, _, count, _, _ = struct.unpack_from("!HHHHHH", answer)
    assert (number, flags & 0x800F, count) == (7, 0x8000 | code, answers)


def test_dns_over_tcp() -> None:
    """Two queries, in pieces that end anywhere; the answers are those over UDP."""
    asked = b"".join(len(one).to_bytes(2, "big") + one for one in (query("sandbox"), query("example.org")))
    for at in range(len(asked) + 1):
        host, sent = sandbox()
        host.receive(vouched(THERE, HERE, 6, tcp(900, 53, 2)))
        isn = struct.unpack_from("!I", sent[-1], 10 + 14 + 20 + 4)[0]
        host.receive(vouched(THERE, HERE, 6, tcp(900, 53, 24, 1, isn + 1, asked[:at])))
        host.receive(vouched(THERE, HERE, 6, tcp(900, 53, 24, 1 + at, isn + 1, asked[at:])))
        got = b"".join(one[10 + 14 + 20 + 20 :] for one in sent[1:])
        wanted = [host.udp[53](one) or b"" for one in (query("sandbox"), query("example.org"))]
        assert got == b"".join(len(one).to_bytes(2, "big") + one for one in wanted)
