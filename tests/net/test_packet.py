# SPDX-License-Identifier: Apache-2.0
"""A packet socket on one end of a veth pair, another witness at the other end."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import pytest

from netback.abi import virtio_net
from netback.abi.virtio_net import HEADER
from netback.errors import ConfigError, GoneError
from netback.net.packet import PacketNetwork

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
    frame,
    receive,
)
from .far import PLAIN, FarLink, await_readable
from .namespace import await_up, bring_back, ip, new_network, other_network, send_to, tc, veth


@pytest.fixture
def site() -> Iterator[Site]:
    with new_network():
        veth("eth1", "far1")
        network, far = PacketNetwork("eth1"), FarLink("far1")
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
        assert drained > 1000

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
