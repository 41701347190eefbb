# SPDX-License-Identifier: Apache-2.0
"""`mirror` and `redirect`: which frames go where, and what happens where the other network is slow or less able."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from netback.abi import virtio_net
from netback.abi.netif import RX_REQUEST, TX_REQUEST
from netback.abi.ring import slot_offset
from netback.abi.virtio_net import HEADER
from netback.dataplane import offload
from netback.dataplane.peers.mirror import MirrorPeer
from netback.dataplane.peers.redirect import RedirectPeer
from netback.dataplane.peers.socket import SocketPeer
from netback.dataplane.states import Event
from tests.dataplane import offload_frames as parts
from tests.dataplane.harness import RING_PAGES, Bench
from tests.offload_oracle import TCP

PLAIN = bytes(HEADER.size)


class Wire:
    """A peer on a socket, and its far end."""

    def __init__(self, *, vnet_hdr: bool = True, caps: int = 15) -> None:
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.near, self.far):
            end.setblocking(False)
        self.peer = SocketPeer(self.near.fileno(), vnet_hdr=vnet_hdr, caps=caps, owner=self.near)

    def got(self) -> list[bytes]:
        frames = []
        while True:
            try:
                frames.append(self.far.recv(1 << 17))
            except BlockingIOError:
                return frames

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture
def wires() -> Iterator[tuple[Wire, Wire]]:
    """The vif's network, and the other one."""
    with ExitStack() as undo:
        made = Wire(), Wire()
        for wire in made:
            undo.callback(wire.close)
        yield made


def numbered(count: int, size: int = 60) -> list[bytes]:
    return [PLAIN + bytes([number]) * size for number in range(count)]


@pytest.mark.parametrize(("tx", "rx"), [(True, True), (True, False), (False, True)])
def test_copies(wires: tuple[Wire, Wire], tx: bool, rx: bool) -> None:
    network, other = wires
    peer = MirrorPeer(network.peer, other=other.peer, tx=tx, rx=rx)
    sent, received = numbered(20), numbered(7, 90)
    assert peer.send(sent) == (20, 0)
    for frame in received:
        network.far.send(frame)
    assert peer.recv() == received
    assert network.got() == sent
    assert other.got() == [*(sent if tx else []), *(received if rx else [])]
    assert peer.counters == {
        "tx_mirror_copied": 20 * tx, "tx_mirror_missed": 0, "rx_mirror_copied": 7 * rx, "rx_mirror_missed": 0,
    }  # fmt: skip


def test_a_slow_mirror_loses_copies_alone(wires: tuple[Wire, Wire]) -> None:
    network, other = wires
    peer = MirrorPeer(network.peer, other=other.peer)
    for turn in range(200):
        assert peer.send(numbered(10, 1000)) == (10, 0)
        assert len(network.got()) == 10
        network.far.send(PLAIN + bytes(60))
        assert len(peer.recv()) == 1
        assert turn >= 0
    copied = len(other.got())
    counters = peer.counters
    assert counters["tx_mirror_copied"] + counters["rx_mirror_copied"] == copied
    assert counters["tx_mirror_copied"] + counters["tx_mirror_missed"] == 2000
    assert counters["rx_mirror_copied"] + counters["rx_mirror_missed"] == 200
    assert counters["tx_mirror_missed"] > 1000
    other.far.close()
    assert peer.send(numbered(3)) == (3, 0)
    assert peer.counters["tx_mirror_missed"] == counters["tx_mirror_missed"] + 3


def test_only_what_the_network_takes_is_copied(wires: tuple[Wire, Wire]) -> None:
    network, other = wires
    peer = MirrorPeer(network.peer, other=other.peer)
    while peer.send(numbered(1, 4000)) == (1, 0):
        other.got()
    assert peer.blocked
    assert len(other.got()) == 0


@pytest.mark.parametrize("version", [4, 6])
def test_a_less_able_network_gets_complete_frames(version: int) -> None:
    l4 = 34 if version == 4 else 54
    kind = virtio_net.GSO_TCPV4 if version == 4 else virtio_net.GSO_TCPV6
    frame = parts.build(version, TCP, bytes(range(256)) * 12)
    blank = (virtio_net.F_NEEDS_CSUM, 0, 0, 0, l4, 16)
    gso = (virtio_net.F_NEEDS_CSUM, kind, l4 + 20, 1000, l4, 16)
    network, other = Wire(), Wire(vnet_hdr=False, caps=0)
    try:
        peer = MirrorPeer(network.peer, other=other.peer)
        sent = [HEADER.pack(*gso) + frame, HEADER.pack(*blank) + frame]
        assert peer.send(sent) == (2, 0)
        assert network.got() == sent
        completed = bytearray(frame)
        offload.complete(completed, blank)
        wanted = [*offload.segment(frame, gso), bytes(completed)]
        assert len(wanted) == 5
        assert other.got() == wanted
        for each in sent:
            network.far.send(each)
        assert peer.recv() == sent
        assert other.got() == wanted
    finally:
        network.close()
        other.close()


def test_redirect_what_the_guest_sends(wires: tuple[Wire, Wire]) -> None:
    network, other = wires
    peer = RedirectPeer(network.peer, writer=other.peer)
    assert peer.send(numbered(5)) == (5, 0)
    assert (network.got(), other.got()) == ([], numbered(5))
    network.far.send(PLAIN + bytes(60))
    other.far.send(PLAIN + bytes(70))
    assert peer.recv() == [PLAIN + bytes(60)]
    assert peer.fd == network.peer.fd


def test_redirect_what_the_guest_receives(wires: tuple[Wire, Wire]) -> None:
    network, other = wires
    peer = RedirectPeer(network.peer, reader=other.peer)
    assert peer.send(numbered(5)) == (5, 0)
    assert (network.got(), other.got()) == (numbered(5), [])
    network.far.send(PLAIN + bytes(60))
    other.far.send(PLAIN + bytes(70))
    assert peer.recv() == [PLAIN + bytes(70)]
    assert peer.fd == other.peer.fd


def test_redirect_has_the_writers_offloads() -> None:
    network, other = Wire(), Wire(vnet_hdr=False, caps=0)
    try:
        assert RedirectPeer(network.peer, writer=other.peer).caps == 0
        assert RedirectPeer(network.peer, reader=other.peer).caps == 15
        peer = RedirectPeer(network.peer, writer=other.peer)
        assert peer.send(numbered(1)) == (1, 0)
        assert other.got() == [bytes(60)]
    finally:
        network.close()
        other.close()


class Guest(Bench):
    """A guest whose frames are redirected, both rings with slots."""

    def __init__(self, other: Wire, *, tx: bool, rx: bool) -> None:
        super().__init__()
        self.other = other
        peer = RedirectPeer(self.peer, reader=other.peer if rx else None, writer=other.peer if tx else None)
        self.worker.set_peer(self.queue, peer)
        for gref in range(10, 300):
            self.grant(gref, gref)
        for at in range(20):
            self.write(RING_PAGES[1], slot_offset(at, 8), RX_REQUEST.pack(at, 0, 110 + at))
        self.write(RING_PAGES[1], 0, (20).to_bytes(4, "little"))
        self.posted = 0

    def transmit(self, count: int) -> None:
        for at in range(self.posted, self.posted + count):
            self.write(
                RING_PAGES[0], slot_offset(at, 12), TX_REQUEST.pack(10 + at % 90, 0, 0, at % 256, 1000)
            )
        self.posted += count
        self.write(RING_PAGES[0], 0, self.posted.to_bytes(4, "little"))


@pytest.mark.parametrize(("tx", "rx"), [(True, False), (False, True), (True, True)])
def test_the_worker_serves_both_networks(tx: bool, rx: bool) -> None:
    """A writer whose room is not announced is tried again, and nothing is lost."""
    other = Wire()
    guest = Guest(other, tx=tx, rx=rx)
    try:
        assert guest.peer_end is not None
        (other.far if rx else guest.peer_end).send(PLAIN + bytes(64))
        guest.run()
        assert guest.queue.rings["rx"]["rsp_prod"] == 1
        if tx:
            other.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        guest.transmit(200)
        taken = []
        for _ in range(1000):
            while guest.worker.apply(guest.queue, Event.TIMER):
                pass
            guest.worker.apply(guest.queue, Event.RING)
            guest.worker.apply(guest.queue, Event.ROOM)
            taken += other.got() if tx else guest.sent()
            if len(taken) == 200:
                break
        assert len(taken) == 200
        assert guest.queue.rings["tx"]["rsp_prod"] == 200
        assert guest.queue.counters["tx_refused"] == 0
    finally:
        guest.close()
        other.close()
