# SPDX-License-Identifier: Apache-2.0
"""Two hosts of net/sandbox on a link that loses, repeats, completes and segments frames as a real one does."""

from __future__ import annotations

import random
import struct
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netback.abi import virtio_net
from netback.dataplane import offload
from netback.net.sandbox.tcpip import RESEND_SECONDS, Connection, Host

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
    connection.on_room = lambda: pieces.popleft() if pieces else b""
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
