# SPDX-License-Identifier: Apache-2.0
"""A packet socket on one end of a veth pair, with a mapped ring and without, another witness at the other end."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import pytest

from netback.abi import virtio_net
from netback.abi.netif import RX_REQUEST
from netback.abi.ring import slot_offset
from netback.abi.virtio_net import HEADER
from netback.dataplane.peers.packet import SLOT_BYTES, PacketPeer
from netback.dataplane.peers.socket import SocketPeer
from netback.errors import ConfigError, GoneError
from netback.net.packet import PacketNetwork, bind, make_ring, open_socket

from ..dataplane.harness import RING_PAGES, Bench
from ..dataplane.offload_frames import C_TAG, build, with_pseudo
from ..offload_oracle import TCP
from .contract import (
    FillableNetwork,
    FilteredNetwork,
    FrameNetwork,
    LinkNetwork,
    OffloadNetwork,
    RefusingNetwork,
    Site,
    big_tcp,
    frame,
    receive,
)
from .far import PLAIN, FarLink, await_readable
from .namespace import await_up, bring_back, ip, new_network, other_network, send_to, tc, veth

RING = 64
"""Slots: few, so that tests go round."""


@pytest.fixture(params=[RING, 0], ids=["ring", "calls"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with new_network():
        veth("eth1", "far1")
        network, far = PacketNetwork("eth1", ring=request.param), FarLink("far1")
        choke = partial(tc, "qdisc add dev eth1 root tbf rate 64bit burst 2000 limit 1000000000")
        yield Site(network, far, choke, partial(tc, "qdisc del dev eth1 root"))
        network.close()
        far.close()


class TestUnderFilters(FilteredNetwork):
    """With filters around its peers."""


class TestPacket(FrameNetwork, OffloadNetwork, FillableNetwork, LinkNetwork, RefusingNetwork):
    """On a link of the host."""

    def test_does_not_hear_what_leaves_by_its_link(self, site: Site) -> None:
        """It receives neither its own frames nor those that the link's host sends."""
        host = FarLink("eth1")
        host.send(frame(1))
        site.network.peers[0].send([frame(2)])
        assert [site.far.recv(), site.far.recv()] == [frame(1), frame(2)]
        assert site.network.peers[0].recv() == []
        host.close()

    def test_hears_frames_for_others(self, site: Site) -> None:
        assert "promiscuity 1" in ip("-d link show eth1")
        message = PLAIN + b"\x02\0\0\0\0\x77" + frame(1)[16:]
        site.far.send(message)
        assert receive(site.network, 1) == [message]

    @pytest.mark.parametrize("tags", [C_TAG, b"\x88\xa8\x20\x05" + C_TAG], ids=["802.1Q", "802.1ad"])
    def test_a_tag_stays_where_it_was(self, site: Site, tags: bytes) -> None:
        message = frame(1)[:22] + tags + frame(1)[22:]
        site.far.send(message)
        assert receive(site.network, 1) == [message]
        site.network.peers[0].send([message])
        assert site.far.recv() == message

    def test_a_checksum_asked_for_behind_a_tag_keeps_its_place(self, site: Site) -> None:
        whole = build(4, TCP, b"payload", tags=C_TAG)
        message = HEADER.pack(virtio_net.F_NEEDS_CSUM, 0, 0, 0, 38, 16)
        message += with_pseudo(whole, 38, TCP, whole[30:38])
        site.far.send(message)
        (got,) = receive(site.network, 1)
        assert got[HEADER.size :] == message[HEADER.size :]
        assert HEADER.unpack_from(got)[4:] == (38, 16)

    def test_overflow_is_counted_once_each(self, site: Site) -> None:
        sent = drained = 0
        while not site.network.drops()["rx_overflow"]:
            site.far.send(frame(0, 1400))
            sent += 1
        while drained + (lost := site.network.drops()["rx_overflow"]) < sent:
            await_readable(site.network.peers[0].fd)
            drained += site.network.drain()
        assert drained + lost == sent
        assert drained == RING if has_ring(site) else drained > 1000

    def test_what_waits_is_reported(self, site: Site) -> None:
        before = site.network.queued()
        assert before["bytes"] == 0 < before["bytes_max"]
        site.far.send(frame(0, 1400))
        await_readable(site.network.peers[0].fd)
        assert 1400 <= site.network.queued()["bytes"] < 10_000
        site.network.drain()
        assert site.network.queued() == before

    def test_a_link_that_goes_down_is_heard_again(self, site: Site) -> None:
        ip("link set eth1 down")
        if has_ring(site):
            assert site.network.peers[0].recv() == []
        else:
            with pytest.raises(OSError, match="down"):
                site.network.peers[0].recv()
        ip("link set eth1 up")
        await_up("eth1", "far1")
        site.far.send(frame(1))
        assert receive(site.network, 1) == [frame(1)]

    def test_takes_no_frame_longer_than_the_link_does(self, site: Site) -> None:
        assert site.network.peers[0].send([frame(1, 4000), frame(2)]) == (2, 1)
        assert site.far.recv() == frame(2)

    def test_removes_no_link(self, site: Site) -> None:
        site.network.remove()
        assert "eth1" in ip("link show eth1")


def has_ring(site: Site) -> bool:
    return isinstance(site.network.peers[0], PacketPeer)


@pytest.fixture
def ring() -> Iterator[Site]:
    """A site whose network has a ring."""
    with new_network():
        veth("eth1", "far1")
        network, far = PacketNetwork("eth1", ring=RING), FarLink("far1")
        yield Site(network, far)
        network.close()
        far.close()


class TestRing:
    """What only a mapped ring can do wrong."""

    def test_frames_of_all_sizes_keep_their_order(self, ring: Site) -> None:
        """Some lie in the ring, some in the socket's queue, one is at the border of a slot; many times round."""
        ip("link set eth1 mtu 9000")
        ip("link set far1 mtu 9000")
        sizes = [60, 1514, 1972, 1973, 4000, 9014, 61, 5000]
        for turn in range(RING // 2):
            sent = [frame(turn, size) for size in sizes] + [big_tcp(4), frame(turn)]
            for message in sent:
                ring.far.send(message)
            assert [len(got) for got in receive(ring.network, len(sent))] == [len(one) for one in sent]

    def test_a_frame_stays_until_it_is_released(self, ring: Site) -> None:
        """As many as fill the ring are returned by reads of a few: what a read returned is free after it."""
        sent = [frame(number) for number in range(3 * RING)]
        got = []
        for first in range(0, len(sent), RING):
            for message in sent[first : first + RING]:
                ring.far.send(message)
            while len(got) < first + RING:
                got += ring.network.peers[0].recv(7)
        assert got == sent
        assert ring.network.drops() == {"rx_overflow": 0}

    def test_a_full_ring_loses_what_comes_and_keeps_what_waits(self, ring: Site) -> None:
        for number in range(RING + 10):
            ring.far.send(frame(number))
        assert ring.network.queued()["bytes"] >= RING * SLOT_BYTES
        assert receive(ring.network, RING) == [frame(number) for number in range(RING)]
        assert ring.network.drops() == {"rx_overflow": 10}
        ring.far.send(frame(1))
        assert receive(ring.network, 1) == [frame(1)]

    def test_long_frames_for_which_the_queue_has_no_room_are_counted(self, ring: Site) -> None:
        """Their slots have no whole frame, and are passed."""
        sock = socket.socket(fileno=os.dup(ring.network.peers[0].fd))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sock.close()
        for _ in range(4):
            ring.far.send(big_tcp(4))
        ring.far.send(frame(1))
        got = receive(ring.network, 2)
        assert [len(one) for one in got] == [len(big_tcp(4)), len(frame(1))]
        assert ring.network.drops() == {"rx_overflow": 3}

    def test_what_waits_is_discarded(self, ring: Site) -> None:
        ip("link set eth1 mtu 9000")
        ip("link set far1 mtu 9000")
        for number, size in enumerate((60, 4000, 61, 5000)):
            ring.far.send(frame(number, size))
        assert ring.network.drain() == 4
        ring.far.send(frame(9, 6000))
        assert receive(ring.network, 1) == [frame(9, 6000)]

    @pytest.mark.parametrize("drained", [False, True])
    def test_long_frames_keep_their_slots_when_the_link_goes_down(self, ring: Site, drained: bool) -> None:
        """The error that this reports takes no frame from the queue: else each slot would get an earlier frame."""
        ip("link set eth1 mtu 9000")
        ip("link set far1 mtu 9000")
        for number in (1, 2):
            ring.far.send(frame(number, 4000))
        ip("link set eth1 down")
        if drained:
            assert ring.network.drain() == 2
        else:
            with pytest.raises(OSError, match="down"):
                ring.network.peers[0].recv()
        ip("link set eth1 up")
        await_up("eth1", "far1")
        for size in (60, 5000):
            ring.far.send(frame(3, size))
        wanted = [] if drained else [frame(1, 4000), frame(2, 4000)]
        assert receive(ring.network, len(wanted) + 2) == [*wanted, frame(3, 60), frame(3, 5000)]

    def test_big_tcp_arrives_between_small_frames(self, ring: Site) -> None:
        """Unlike by calls alone, also the first one: its slot has its length."""
        ip("link set eth1 gso_max_size 200000")
        ip("link set far1 gso_max_size 200000")
        head = bytearray(build(6, TCP, b""))
        head[18:20] = bytes(2)  # longer than the header's field allows: Linux leaves it 0
        big = HEADER.pack(virtio_net.F_NEEDS_CSUM, virtio_net.GSO_TCPV6, 74, 1448, 54, 16) + bytes(head)
        bench = Bench(peer=ring.network.peers[0])
        for at in range(256):
            bench.grant(300 + at, 300 + at)
            bench.write(RING_PAGES[1], slot_offset(at, 8), RX_REQUEST.pack(at, 0, 300 + at))
        bench.write(RING_PAGES[1], 0, (256).to_bytes(4, "little"))
        for message in (frame(1), big + bytes(100_000), frame(2), big + bytes(90_000)):
            ring.far.send(message)
        for _ in range(4):  # a read ends before each of them, and the descriptor stays readable
            bench.run()
        counters = bench.queue.counters
        bench.close()
        assert (counters["rx_truncated"], counters["rx_dropped"], counters["rx_too_big"]) == (0, 0, 0)
        assert counters["rx_segmented"] == 2
        assert counters["rx_bytes"] > 190_000

    def test_a_closed_network_leaves_the_link(self, ring: Site) -> None:
        peer = ring.network.peers[0]
        ring.network.close()
        ring.network.close()
        assert "promiscuity 0" in ip("-d link show eth1")
        assert peer.recv() == []

    def test_a_socket_that_may_have_no_ring_works_without(self, ring: Site) -> None:
        sock = open_socket("eth1")
        assert make_ring(sock, 3) == "Invalid argument"  # no whole number of pages
        bind(sock, "eth1")
        ring.far.send(frame(1))
        peer = SocketPeer(sock.fileno(), vnet_hdr=True, auxdata=True)
        await_readable(sock.fileno())
        assert peer.recv() == [frame(1)]
        sock.close()

    def test_the_way_of_frames_is_told(self, ring: Site) -> None:
        assert ring.network.path == "a mapped ring for small frames"
        plain = PacketNetwork("eth1", ring=0)
        assert plain.path == "system calls; ring=0"
        plain.close()


INSIDE = """
import ctypes, os, pathlib, sys
outer = os.getuid(), os.getgid()
assert ctypes.CDLL(None).unshare(0x10000000 | 0x40000000) == 0
pathlib.Path("/proc/self/uid_map").write_text(f"0 {outer[0]} 1")
from tests.net.namespace import veth
from tests.net.far import FarLink
from tests.net.contract import big_tcp
from netback.net.packet import PacketNetwork
veth("eth1", "far1")
near, far = PacketNetwork("eth1"), FarLink("far1")
near.peers[0].send([big_tcp(4)])
while far.recv()[10:] != big_tcp(4)[10:]:
    pass
assert not any("tun" in os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")[:-1])
near.close(), far.close()
"""


def test_inside_a_user_namespace() -> None:
    """No privilege outside its user namespace, and no /dev/net/tun."""
    subprocess.run([sys.executable, "-c", INSIDE], check=True, timeout=60)


@pytest.mark.parametrize(
    ("link", "error", "words"),
    [
        ("none0", GoneError, "packet:none0: no link of that name"),
        ("lo", ConfigError, "packet:lo: not an Ethernet link"),
        ("a-name-of-20-letters", ConfigError, "packet: link name 'a-name-of-20-letters' is longer than 15"),
    ],
)
def test_links_that_cannot_be(link: str, error: type[Exception], words: str) -> None:
    with new_network(), pytest.raises(error, match=words):
        PacketNetwork(link)


@pytest.mark.parametrize("goes", ["removed", "moved"])
def test_a_link_that_goes_and_comes_back(site: Site, goes: str) -> None:
    """The same descriptor hears it again, in promiscuous mode, and takes frames for it."""
    fd = site.network.peers[0].fd
    with other_network() as other:
        if goes == "removed":
            ip("link del eth1")
        else:
            send_to("eth1", other)
        with pytest.raises(GoneError, match="packet:eth1: no link of that name"):
            site.network.check()
        assert site.network.follows == {"eth1"}
        assert site.network.mtu is None
        assert site.network.name == "eth1"
        if goes == "removed":
            veth("eth1", "far1")
        else:
            bring_back("eth1", other)
            await_up("eth1", "far1")
    assert site.network.check() is True
    assert site.network.check() is False
    assert site.network.peers[0].fd == fd
    far = FarLink("far1")
    site.network.drain()
    message = PLAIN + b"\x02\0\0\0\0\x77" + frame(1)[16:]
    far.send(message)
    assert receive(site.network, 1) == [message]
    assert site.network.peers[0].send([frame(2)]) == (1, 0)
    assert far.recv() == frame(2)
    far.close()


def test_another_kind_of_link_comes_in_its_place(site: Site) -> None:
    """The socket does not receive from it, but from the next link with the name."""
    ip("link del eth1")
    ip("tuntap add eth1 mode tun")
    with pytest.raises(ConfigError, match="packet:eth1: not an Ethernet link"):
        site.network.check()
    assert site.network.mtu is None
    ip("link del eth1")
    veth("eth1", "far1")
    assert site.network.check() is True
    assert site.network.mtu == 1500


def test_changes_nothing_of_its_link(site: Site) -> None:
    before = ip("-d link show eth1")
    ip("link set eth1 mtu 9000")
    site.network.limit_mtu(True)
    site.network.set_address("00:16:3e:00:00:01")
    assert site.network.mtu == 9000
    ip("link set eth1 mtu 1500")
    assert ip("-d link show eth1") == before
