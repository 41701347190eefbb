# SPDX-License-Identifier: Apache-2.0
"""`vlan`: what a port does with each frame, beside a plain description; offloads move with the tag."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from netback.abi import virtio_net
from netback.abi.virtio_net import HEADER
from netback.dataplane.peers.filter import FilterPeer
from netback.dataplane.peers.null import NullPeer
from netback.dataplane.peers.socket import SocketPeer
from netback.dataplane.peers.vlan import VlanPeer
from netback.net.filters import Addresses, Filters, parse_filters
from tests.dataplane import offload_frames as parts
from tests.offload_oracle import TCP

PORTS = ("access=10", "trunk=20-30+40", "trunk=20-30+40,native=10", "trunk=10+20,native=10")
ALLOWED = {"access=10": (), "trunk=10+20,native=10": (10, 20)}
NATIVE = {"trunk=20-30+40": None}
TAGS = (
    b"",
    *(bytes.fromhex(f"8100{tci:04x}") for tci in (0, 0xE000, 10, 0x600A, 19, 20, 25, 30, 31, 40, 41, 4095)),
    *(bytes.fromhex(f"88a8{tci:04x}") for tci in (0, 10, 20)),
    *(bytes.fromhex(f"8100{outer:04x}8100{inner:04x}") for outer in (0, 10, 20) for inner in (0, 10, 30)),
)
ADDRESSES = bytes.fromhex("ffffffffffff00163e000001")
REST = b"\x88\xb5" + bytes(range(46))


def terms(port: str) -> tuple[int | None, set[int]]:
    """The native VLAN and the tagged ones."""
    return NATIVE.get(port, 10), set(ALLOWED.get(port, (*range(20, 31), 40)))


def to_network(frame: bytes, port: str) -> bytes | None:
    """What a port sends of a guest's frame; None: it drops it."""
    native, allowed = terms(port)
    kind, inner = frame[12:14], frame[16:18]
    if kind not in (b"\x81\0", b"\x88\xa8"):
        return None if native is None else frame[:12] + b"\x81\0" + native.to_bytes(2, "big") + frame[12:]
    if kind != b"\x81\0":
        return None
    tci = int.from_bytes(frame[14:16], "big")
    if tci % 4096:
        return frame if tci % 4096 in allowed else None
    if native is None or inner in (b"\x81\0", b"\x88\xa8"):
        return None
    return frame[:14] + (tci | native).to_bytes(2, "big") + frame[16:]


def to_guest(frame: bytes, port: str) -> bytes | None:
    """What it passes of a network's frame."""
    native, allowed = terms(port)
    if frame[12:14] != b"\x81\0":
        return None
    vlan = int.from_bytes(frame[14:16], "big") % 4096
    if vlan == native:
        return None if frame[16:18] in (b"\x81\0", b"\x88\xa8") else frame[:12] + frame[16:]
    return frame if vlan in allowed else None


class Port:
    """A filter whose network is a socket."""

    def __init__(self, text: str, *, vnet_hdr: bool = True) -> None:
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.near, self.far):
            end.setblocking(False)
        inner = SocketPeer(self.near.fileno(), vnet_hdr=vnet_hdr, owner=self.near)
        peer = Filters(parse_filters([f"vlan,{text}"]), Addresses()).wrap(inner)
        assert isinstance(peer, FilterPeer)
        self.peer = peer

    def sent(self) -> list[bytes]:
        frames = []
        while True:
            try:
                frames.append(self.far.recv(1 << 17))
            except BlockingIOError:
                return frames


@contextmanager
def opened(text: str, *, vnet_hdr: bool = True) -> Iterator[Port]:
    made = Port(text, vnet_hdr=vnet_hdr)
    try:
        yield made
    finally:
        made.near.close()
        made.far.close()


@pytest.fixture
def access() -> Iterator[Port]:
    with opened("access=10") as made:
        yield made


@pytest.fixture(params=PORTS)
def port(request: pytest.FixtureRequest) -> Iterator[tuple[Port, str]]:
    with opened(request.param) as made:
        yield made, request.param


PLAIN = bytes(HEADER.size)


def test_every_tag_to_the_network(port: tuple[Port, str]) -> None:
    made, text = port
    frames = [ADDRESSES + tags + REST for tags in TAGS]
    assert made.peer.send([PLAIN + frame for frame in frames]) == (len(frames), 0)
    wanted = [sent for frame in frames if (sent := to_network(frame, text)) is not None]
    assert made.sent() == [PLAIN + frame for frame in wanted]
    assert made.peer.counters == {"tx_vlan_dropped": len(frames) - len(wanted), "rx_vlan_dropped": 0}


def test_every_tag_to_the_guest(port: tuple[Port, str]) -> None:
    made, text = port
    frames = [ADDRESSES + tags + REST for tags in TAGS]
    for frame in frames:
        made.far.send(PLAIN + frame)
    wanted = [got for frame in frames if (got := to_guest(frame, text)) is not None]
    got = made.peer.recv()
    assert got == [PLAIN + frame for frame in wanted]
    assert made.peer.counters == {"tx_vlan_dropped": 0, "rx_vlan_dropped": len(frames) - len(wanted)}


def test_short_frames_are_dropped(port: tuple[Port, str]) -> None:
    made, _ = port
    frame = ADDRESSES + b"\x81\0\0\x0a" + REST
    for end in range(1, 19):
        made.far.send(PLAIN + frame[:end])
        assert made.peer.send([PLAIN + frame[:end]]) == (1, 0)
    assert all(len(each) >= HEADER.size + 16 for each in made.sent())
    assert all(len(each) >= HEADER.size + 14 for each in made.peer.recv())


@pytest.mark.parametrize("version", [4, 6])
def test_offloads_move_with_the_tag(access: Port, version: int) -> None:
    """There and back again, GSO and a blank checksum."""
    l4 = 34 if version == 4 else 54
    kind = virtio_net.GSO_TCPV4 if version == 4 else virtio_net.GSO_TCPV6
    frame = parts.build(version, TCP, bytes(5000))
    header = HEADER.pack(virtio_net.F_NEEDS_CSUM, kind, l4 + 20, 1400, l4, 16)
    assert access.peer.send([header + frame] * 3) == (3, 0)
    sent = access.sent()
    tagged = HEADER.pack(virtio_net.F_NEEDS_CSUM, kind, l4 + 24, 1400, l4 + 4, 16)
    assert sent == [tagged + frame[:12] + b"\x81\0\0\x0a" + frame[12:]] * 3
    access.far.send(sent[0])
    assert access.peer.recv() == [header + frame]


def test_a_peer_without_a_header() -> None:
    with opened("access=10", vnet_hdr=False) as made:
        assert made.peer.send([PLAIN + ADDRESSES + REST]) == (1, 0)
        assert made.sent() == [ADDRESSES + b"\x81\0\0\x0a" + REST]


def test_a_read_of_which_nothing_is_left_is_followed_by_another(access: Port) -> None:
    """The caller takes an empty read for the end: it waits for an event that has been."""
    for number in range(200):
        tag = b"\x81\0\0\x0a" if number % 50 == 49 else b"\x81\0\0\x0b"
        access.far.send(PLAIN + ADDRESSES + tag + bytes([number]) * 40)
    got: list[bytes] = []
    for _ in range(4):
        got += access.peer.recv(16)
    assert [frame[-1] for frame in got] == [49, 99, 149, 199]


def test_frames_that_are_one_are_changed_once() -> None:
    template = PLAIN + ADDRESSES + b"\x81\0\0\x0a" + REST
    peer = VlanPeer(NullPeer(template=template), native=10)
    for _ in range(3):
        assert peer.recv(5) == [PLAIN + ADDRESSES + REST] * 5
    other = VlanPeer(NullPeer(template=template), native=11)
    assert other.recv(5) == []
    assert other.counters["rx_vlan_dropped"] == 5 * 16


def test_a_full_network_takes_each_frame_once() -> None:
    rng = random.Random(5)
    tags = (b"", b"\x81\0\0\x14", b"\x81\0\0\x15")
    waiting = [
        PLAIN + ADDRESSES + rng.choice(tags) + number.to_bytes(4, "big") + bytes(900)
        for number in range(2000)
    ]
    wanted = [
        got for frame in waiting if (got := to_network(frame[10:], "trunk=10+20,native=10")) is not None
    ]
    with opened("trunk=10+20,native=10") as made:
        sent: list[bytes] = []
        while waiting:
            done, refused = made.peer.send(waiting[:64])
            assert refused == 0
            del waiting[:done]
            if made.peer.blocked:
                sent += made.sent()
        sent += made.sent()
        assert [frame[10:] for frame in sent] == wanted
        assert made.peer.counters["tx_vlan_dropped"] == 2000 - len(wanted)
