# SPDX-License-Identifier: Apache-2.0
"""A tap in the test's own namespace; the witness is the kernel's side of it."""

import fcntl
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import NoReturn

import pytest

from netback.abi.virtio_net import F_NEEDS_CSUM, HEADER
from netback.dataplane.caps import EVERYTHING, Can
from netback.dataplane.peers.vhost_tap import VhostTapPeer
from netback.errors import ConfigError, GoneError, PeerError
from netback.net import tap
from netback.net.monitor import ANY_LINK
from netback.net.rtnetlink import get_link
from netback.net.tap import TapNetwork
from tests.descriptors import open_descriptors

from ..dataplane.offload_frames import build
from ..dataplane.woken import Woken
from ..offload_oracle import TCP, UDP
from .contract import (
    FilteredNetwork,
    FrameNetwork,
    LinkNetwork,
    OffloadNetwork,
    RefusingNetwork,
    Site,
    asks,
    big_tcp,
    fill,
    frame,
    receive,
)
from .far import PLAIN, FarLink, await_readable
from .namespace import await_up, bring_back, inside, ip, new_network, other_network, send_to, tc, veth

PLAIN_HEADER = bytes(HEADER.size)
TUNSETSNDBUF = 0x400454D4


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with new_network():
        yield


@pytest.fixture
def vhost() -> str:
    return "off"


@pytest.fixture
def site(vhost: str) -> Iterator[Site]:
    network = TapNetwork("vif1.0", vhost=vhost)
    ip("link set vif1.0 up")
    network.carrier(True)
    network.offloads(EVERYTHING)
    await_up("vif1.0")
    far = FarLink("vif1.0")
    yield Site(network, far)
    network.remove()
    far.close()


class TestUnderFilters(FilteredNetwork):
    """With filters around its peers."""


class TestTap(FrameNetwork, OffloadNetwork, LinkNetwork, RefusingNetwork):
    """Created by us."""

    def test_a_removed_tap_is_closed_and_can_be_let_go(self, site: Site) -> None:
        ip("link del vif1.0")
        with pytest.raises(OSError, match="bad state"):
            site.network.peers[0].recv()
        assert site.network.peers[0].closed
        assert site.network.drops() == {"rx_overflow": 0}
        site.network.carrier(True)
        site.network.offloads(0)

    @pytest.mark.parametrize(
        ("caps", "whole"),
        [
            (0, set()),
            (Can.TSO4 | Can.TSO6, set()),
            (Can.CSUM4 | Can.TSO4, {4}),
            (Can.CSUM6 | Can.TSO6, {6}),
            (EVERYTHING, {4, 6}),
        ],
    )
    def test_gives_no_more_than_the_guest_takes(self, site: Site, caps: int, whole: set[int]) -> None:
        site.network.offloads(caps)
        for version in (4, 6):
            site.far.send(big_tcp(version))
            first = receive(site.network, 1)[0]
            assert (len(first) == len(big_tcp(version))) == (version in whole)
            assert bool(asks(first)[0] & F_NEEDS_CSUM) == bool(caps & (Can.CSUM4 | Can.CSUM6))
            site.network.drain()

    @pytest.mark.parametrize("gso", [5, 1 | 0x80], ids=["USO", "ECN"])
    def test_never_gives_what_netif_cannot_say(self, site: Site, gso: int) -> None:
        message = big_tcp(4)
        if gso == 5:
            whole = build(4, 17, bytes(6000))
            message = HEADER.pack(F_NEEDS_CSUM, gso, 42, 1000, 34, 6) + whole
        else:
            message = HEADER.pack(F_NEEDS_CSUM, gso, 54, 1000, 34, 16) + build(
                4, TCP, bytes(6000), flags=0x90
            )
        site.far.send(message)
        for got in receive(site.network, 6):
            assert asks(got)[1] == 0
            assert len(got) < 1100

    def test_counts_what_found_its_queue_full(self, site: Site) -> None:
        ip("link set vif1.0 txqueuelen 10")
        for n in range(16):
            site.far.send(frame(n))
        assert site.network.drops() == {"rx_overflow": 6}
        assert site.network.drain() == 10

    def test_a_write_that_would_wait_is_backpressure(self, site: Site) -> None:
        """The kernel's default lets everything through; an operator's TUNSETSNDBUF does not."""
        assert isinstance(site.network, TapNetwork)
        fcntl.ioctl(site.network.peers[0].fd, TUNSETSNDBUF, struct.pack("i", 100_000))
        veth("slow0", "slow1")
        tc("qdisc add dev slow0 root tbf rate 64bit burst 2000 limit 1000000000")
        ip("link add br0 type bridge")
        ip("link set br0 up")
        ip("link set slow0 master br0")
        ip("link set vif1.0 master br0")
        assert fill(site.network) > 20
        assert site.network.peers[0].blocked
        poll = select.poll()
        poll.register(site.network.peers[0].fd, select.POLLOUT)
        assert poll.poll(0) == []
        tc("qdisc del dev slow0 root")
        assert poll.poll(10_000)
        assert site.network.peers[0].send([frame(1)]) == (1, 0)


@pytest.mark.parametrize("vhost", ["auto", "on"])
class TestTapThatMayUseVhostNet(FrameNetwork, OffloadNetwork, LinkNetwork, RefusingNetwork):
    """With vhost-net where this machine has it; tests/net/real_vhost_net.py needs it."""

    def test_link_down_refuses_and_comes_back(self, site: Site) -> None:
        """What a virtqueue has is refused later, by the kernel: real_vhost_net.py has that."""
        peer = site.network.peers[0]
        assert peer.send([frame(0)]) == (1, 0)
        if site.network.path == "vhost-net":
            ip("link set vif1.0 down")
            assert peer.send([frame(1), frame(2)])[0] == 2
            assert not peer.closed
        else:
            super().test_link_down_refuses_and_comes_back(site)


CANNOT_OPEN = "/dev/vhost-net cannot be opened"
NO_MODULE = os.makedev(10, 255)
"""A misc device for which no module exists: the kernel gives this minor number to none (linux/miscdevice.h)."""


@pytest.mark.parametrize(
    ("device", "fault"),
    [
        ("/nonexistent/vhost-net", f"{CANNOT_OPEN}: No such file or directory"),
        ("/dev/null", "vhost-net refuses the virtqueues: Inappropriate ioctl for device"),
    ],
)
def test_without_vhost_net_frames_take_the_plain_path(device: str, fault: str) -> None:
    check_plain_path(device, fault)


def test_a_node_whose_module_is_refused(tmp_path: Path) -> None:
    """As /dev/vhost-net is where modprobe finds no vhost_net, or may not load it."""
    node = tmp_path / "vhost-net"
    os.mknod(node, 0o600 | stat.S_IFCHR, NO_MODULE)
    check_plain_path(str(node), f"{CANNOT_OPEN}: No such device")


def test_a_node_that_may_not_be_opened(tmp_path: Path) -> None:
    node = tmp_path / "vhost-net"
    node.touch(0)
    check_plain_path(str(node), f"{CANNOT_OPEN}: Permission denied", user=65534)


def check_plain_path(device: str, fault: str, user: int = 0) -> None:
    """Frames pass a tap whose vhost-net is `device`; the peer has this fault, and keeps no descriptor. `user` moves
    them.
    """
    network = TapNetwork("vif1.0", vhost="off")
    ip("link set vif1.0 up")
    network.carrier(True)
    await_up("vif1.0")
    far = FarLink("vif1.0")
    peer = VhostTapPeer(network.peers[0], always=True, device=device)
    before = open_descriptors()
    far.send(frame(1))
    os.seteuid(user)
    try:
        assert peer.recv(1)[0][len(PLAIN_HEADER) :] == frame(1)[len(PLAIN_HEADER) :]
        assert peer.send([frame(2)]) == (1, 0)
    finally:
        os.seteuid(0)
    assert peer.fault == fault
    assert not peer.attached
    assert not peer.switch()
    assert open_descriptors() <= before + 2
    network.remove()
    far.close()


def test_a_path_is_named_only_where_there_are_two() -> None:
    network = TapNetwork("vif1.0", vhost="off")
    assert network.path is None
    network.remove()
    for vhost, mark in ((None, ";"), ("auto", ":"), ("on", ":")):
        network = TapNetwork("vif1.0", vhost=vhost)
        assert network.path == (
            "system calls; vhost-net for streams"
            if os.access("/dev/vhost-net", os.W_OK)
            else f"system calls{mark} {CANNOT_OPEN}: No such file or directory"
        )
        network.remove()


def test_frames_that_come_alone_and_then_in_bursts(site: Site) -> None:
    """The queue stops reading after a frame that came alone, and misses none that did not."""
    ring = Woken(site.network.peers[0])
    ring.post_rx(140)
    sent = 0
    for burst in (1,) * 40 + (3, 1, 1, 2, 5) + (1,) * 20 + (30,):
        for _ in range(burst):
            site.far.send(frame(sent))
            sent += 1
        ring.await_wake()
        assert ring.counters["rx_frames"] == sent
    ring.close()


def has_carrier(link: str) -> bool:
    return "NO-CARRIER" not in ip(f"link show {link}")


def test_carrier_is_off_until_told() -> None:
    network = TapNetwork("vif1.0")
    ip("link set vif1.0 up")
    assert not has_carrier("vif1.0")
    network.carrier(True)
    assert has_carrier("vif1.0")
    network.carrier(False)
    assert not has_carrier("vif1.0")
    network.remove()


def test_outlives_us_and_is_taken_up_again_where_it_went() -> None:
    first = TapNetwork("vif1.0")
    ip("link set vif1.0 up name bridge-leg")
    first.close()
    assert "state DOWN" in ip("link show bridge-leg")
    second = TapNetwork("vif1.0")
    assert second.name == "bridge-leg"
    second.remove()
    assert "vif1.0" not in ip("link show")


def test_forgets_what_an_earlier_guest_took(site: Site) -> None:
    site.network.close()
    again = TapNetwork("vif1.0")
    again.carrier(True)
    await_up("vif1.0")
    site.far.send(big_tcp(4))
    assert asks(receive(again, 1)[0]) == (0, 0, 0, 0, 0)
    again.remove()


def test_is_found_again_after_kill() -> None:
    """Nothing of the first process is left but the link itself; what it made, the second one removes."""
    script = (
        "import os; from netback.net.tap import TapNetwork as T; n = T('vif7.0'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == -signal.SIGKILL
    index = socket.if_nametoindex("vif7.0")
    network = TapNetwork("vif7.0")
    assert socket.if_nametoindex(network.name) == index
    network.remove()
    assert "vif7.0" not in ip("link show")


@pytest.mark.parametrize("queues", ["", "multi_queue"])
def test_a_tap_of_others_is_adopted_as_it_is_and_stays(queues: str) -> None:
    ip(f"tuntap add tap0 mode tap {queues}")
    network = TapNetwork("tap0")
    ip("link set tap0 up")
    network.carrier(True)
    far = FarLink("tap0")
    network.peers[0].send([big_tcp(4)])
    assert far.recv()[10:] == big_tcp(4)[10:]
    network.remove()
    assert "tap0" in ip("link show tap0")
    far.close()


def test_a_tap_with_queues_has_one_holder() -> None:
    """The kernel would give each holder a share of the frames, and the second one turned the carrier off."""
    ip("tuntap add t0 mode tap multi_queue")
    with closing(TapNetwork("t0")) as holder:
        holder.carrier(True)
        ip("link set t0 up")
        await_up("t0")
        with pytest.raises(PeerError, match=r"tap:t0: another process holds it \(EBUSY\)"):
            TapNetwork("t0")
        assert "state UP" in ip("link show t0")
    TapNetwork("t0").close()


def test_a_tap_that_is_held_is_asked_for_again_while_its_holder_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = TapNetwork("vif1.0")
    waited: list[float] = []
    holder_left = threading.Event()

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            holder.close()
            holder_left.set()

    monkeypatch.setattr(tap.time, "sleep", wait)
    second = TapNetwork("vif1.0")
    assert holder_left.is_set()
    assert len(waited) == 3
    waited.clear()
    with pytest.raises(
        PeerError, match=r"tap:vif1.0: another process holds it \(EBUSY\); stop it or choose another name"
    ):
        TapNetwork("vif1.0")
    assert 3 < len(waited) <= 10
    assert sum(waited) < 1
    second.remove()


NAMES = ["vif1.0", "vif100.0", "vif12345.10", "fifteen-letters"]


@pytest.mark.parametrize("renamed", ["", "web", "lan-web-server1"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("end", ["closed", "held"])
def test_its_own_tap_is_found_again_under_any_name(name: str, renamed: str, end: str) -> None:
    """Alternative names have up to 127 characters; if_nametoindex and the ioctls take 15."""
    first = TapNetwork(name)
    index = socket.if_nametoindex(name)
    if renamed:
        ip(f"link set {name} name {renamed}")
    held = (os.dup(first.peers[0].fd),) if end == "held" else ()
    first.close()
    second = TapNetwork(name, held)
    assert not held or second.peers[0].fd == held[0]
    assert second.name == renamed or name
    assert socket.if_nametoindex(second.name) == index
    second.remove()
    assert links() == {"lo"}


@pytest.mark.parametrize("name", NAMES)
def test_a_tap_whose_device_is_gone_is_found_and_removed(name: str) -> None:
    for renamed in ("", "web"):
        TapNetwork(name).close()
        if renamed:
            ip(f"link set {name} name {renamed}")
        tap.remove_made(name)
        assert links() == {"lo"}
        held = os.dup((network := TapNetwork(name)).peers[0].fd)
        network.close()
        tap.discard(held)
        assert links() == {"lo"}


def test_a_held_descriptor_of_another_tap_is_closed() -> None:
    other = TapNetwork("other0")
    held = os.dup(other.peers[0].fd)
    other.close()
    network = TapNetwork("vif1.0", (held,))
    assert network.name == "vif1.0"
    assert links() == {"lo", "vif1.0"}  # netback had made it for the same device
    network.remove()


@pytest.mark.parametrize(
    "name",
    [
        "a-name-of-20-letters",
        "vif10.2147483640",
        "vif%d",
        "",
        ".",
        "..",
        "a/b",
        "a b",
        "a:b",
        "br\u00fccke",
        "a\nb",
        "a\0b",
    ],
)
def test_a_name_that_no_link_can_have(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^tap: .*name") as caught:
        TapNetwork(name)
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()
    assert links() == {"lo"}


def test_a_tap_that_cannot_be_marked_is_not_made() -> None:
    """Its mark is the name of another link."""
    ip("link add netback-web0 type bridge")
    with pytest.raises(PeerError, match=r"tap:web0: cannot mark it as made by netback: File exists"):
        TapNetwork("web0")
    assert links() == {"lo", "netback-web0"}


def links() -> set[str]:
    """The names of all links here."""
    return {name for _, name in socket.if_nameindex()}


@pytest.mark.parametrize("made", [True, False], ids=["made by netback", "adopted"])
def test_a_tap_that_is_removed_is_joined_again(made: bool) -> None:
    """By the same descriptor, with offloads, carrier, address and format as before."""
    if not made:
        ip("tuntap add vif1.0 mode tap")
    network = TapNetwork("vif1.0")
    network.offloads(EVERYTHING)
    network.carrier(True)
    fd = network.peers[0].fd
    ip("link set vif1.0 up")
    assert network.check() is False
    ip("link del vif1.0")
    if not made:
        with pytest.raises(
            GoneError, match=r"tap:vif1.0: the link is gone; it is used again when it is back"
        ):
            network.check()
        assert "vif1.0" in network.follows
        ip("tuntap add vif1.0 mode tap")
    assert network.check() is True
    assert network.check() is False
    assert network.peers[0].fd == fd
    assert network.follows == {socket.if_nametoindex("vif1.0")}
    ip("link set vif1.0 up")
    await_up("vif1.0")
    assert (tap.ADDRESS in ip("link show vif1.0")) is made
    far = FarLink("vif1.0")
    far.send(big_tcp(4))
    assert receive(network, 1)[0][10:] == big_tcp(4)[10:]
    assert network.peers[0].send([frame(1)]) == (1, 0)
    assert far.recv() == frame(1)
    far.close()
    network.remove()
    assert ("vif1.0" in links()) is not made


def test_another_link_takes_the_name_of_a_removed_tap(site: Site) -> None:
    ip("link del vif1.0")
    veth("vif1.0", "far1")
    with pytest.raises(ConfigError, match=r"tap:vif1.0: a link of that name exists and is not a tap"):
        site.network.check()
    assert "vif1.0" in site.network.follows
    ip("link del vif1.0")
    assert site.network.check() is True


def test_a_tap_in_another_namespace_is_still_served(site: Site) -> None:
    with other_network() as other:
        send_to("vif1.0", other)
        ip("tuntap add vif1.0 mode tap")  # another one, which is not mistaken for it
        with pytest.raises(
            GoneError, match=r"tap:vif1.0: the link is in another network namespace; frames pass"
        ):
            site.network.check()
        assert site.network.mtu is None
        assert site.network.follows == {ANY_LINK}
        inside(other, "ip link set vif1.0 up")
        assert site.network.peers[0].send([frame(1)]) == (1, 0)
        ip("link del vif1.0")
        bring_back("vif1.0", other)
        assert site.network.check() is False
        assert site.network.mtu == 1500
        await_up("vif1.0")
        far = FarLink("vif1.0")
        site.network.drain()
        far.send(frame(2))
        assert receive(site.network, 1) == [frame(2)]
        far.close()


def test_a_namespace_ends_with_its_tap(site: Site) -> None:
    with other_network() as other:
        send_to("vif1.0", other)
    await_readable(site.network.peers[0].fd, select.POLLERR)
    assert site.network.check() is True
    assert "vif1.0" in links()


def test_counts_go_on_when_the_tap_is_another_one(site: Site) -> None:
    for expected in (6, 12):
        ip("link set vif1.0 txqueuelen 10 up")
        await_up("vif1.0")
        far = FarLink("vif1.0")
        for n in range(16):
            far.send(frame(n))
        far.close()
        assert site.network.drops() == {"rx_overflow": expected}
        ip("link del vif1.0")
        assert site.network.drops() == {"rx_overflow": expected}
        assert site.network.check() is True


def test_a_tap_that_netback_makes_has_the_address_of_a_vif() -> None:
    """A bridge takes the lowest address of its ports as its own, so it keeps the address that it has."""
    ip("link add br0 type bridge")
    ip("link add up0 type veth peer name up1")
    ip("link set up0 address 9e:00:00:00:00:01 master br0")
    network = TapNetwork("vif1.0")
    assert "fe:ff:ff:ff:ff:ff" in ip("link show vif1.0")
    ip("link set vif1.0 master br0")
    assert "9e:00:00:00:00:01" in ip("link show br0")
    network.remove()


def test_a_guest_s_tap_has_the_address_of_its_vif() -> None:
    network = TapNetwork("eth0")
    network.set_address("00:16:3e:12:34:56")
    assert "00:16:3e:12:34:56" in ip("link show eth0")
    ip("link del eth0")
    network.check()
    assert "00:16:3e:12:34:56" in ip("link show eth0")
    network.close()
    ip("link set eth0 address 02:00:00:00:00:01")
    TapNetwork("eth0").close()
    assert "02:00:00:00:00:01" in ip("link show eth0"), "an address of the operator's stays"


def test_the_address_of_an_adopted_tap_stays() -> None:
    ip("tuntap add tap0 mode tap")
    ip("link set tap0 address 02:00:00:00:00:01")
    network = TapNetwork("tap0")
    network.set_address("00:16:3e:12:34:56")
    assert "02:00:00:00:00:01" in ip("link show tap0")
    network.remove()


@pytest.mark.parametrize("end", ["lives", "dies"])
@pytest.mark.parametrize("made", [True, False], ids=["made by netback", "adopted"])
def test_the_mtu_is_lowered_and_set_back(made: bool, end: str) -> None:
    if not made:
        ip("tuntap add vif1.0 mode tap")
    network = TapNetwork("vif1.0")
    ip("link set vif1.0 mtu 9000")
    network.limit_mtu(True)
    assert network.mtu == 1500
    network.limit_mtu(True)
    ip("link set vif1.0 mtu 4000")
    network.check()
    assert network.mtu == 1500
    if end == "dies":
        network.close()
        network = TapNetwork("vif1.0")
        network.limit_mtu(True)
    ip("link set vif1.0 name other0")
    network.limit_mtu(False)
    assert network.mtu == 4000
    network.limit_mtu(False)
    assert network.mtu == 4000
    assert "netback.mtu" not in ip("link show other0")
    network.remove()


def test_an_mtu_that_was_changed_meanwhile_stays() -> None:
    network = TapNetwork("vif1.0")
    ip("link set vif1.0 mtu 9000")
    network.limit_mtu(True)
    ip("link set vif1.0 mtu 1400")
    network.limit_mtu(True)
    network.limit_mtu(False)
    assert network.mtu == 1400
    network.remove()


def test_a_tap_of_others_has_its_mtu_again_at_the_end() -> None:
    ip("tuntap add tap0 mode tap")
    ip("link set tap0 mtu 9000")
    network = TapNetwork("tap0")
    network.limit_mtu(True)
    network.remove()
    assert "mtu 9000" in ip("link show tap0")
    assert "altname" not in ip("link show tap0")


@pytest.mark.parametrize("made", [True, False], ids=["made by netback", "adopted"])
def test_the_mtu_of_its_spec(made: bool) -> None:
    """It is set whenever the tap is joined, and neither the vif's nor a lowered one counts afterwards."""
    if not made:
        ip("tuntap add vif1.0 mode tap")
    network = TapNetwork("vif1.0", mtu=9000)
    assert network.mtu == 9000
    network.set_mtu(1400)
    assert network.mtu == 9000
    network.limit_mtu(True)
    assert network.mtu == 1500
    ip("link del vif1.0")
    if not made:
        ip("tuntap add vif1.0 mode tap")
    assert network.check()
    assert network.mtu == 1500
    network.limit_mtu(False)
    assert network.mtu == 9000
    network.remove()


@pytest.mark.parametrize(("wanted", "lowered"), [(4000, 1500), (1500, 1500), (1400, 1400)])
def test_the_mtu_of_its_spec_after_a_kill(wanted: int, lowered: int) -> None:
    """A guest that was limited meanwhile sees no larger one."""
    network = TapNetwork("vif1.0", mtu=9000)
    network.limit_mtu(True)
    network.close()
    network = TapNetwork("vif1.0", mtu=wanted)
    assert network.mtu == lowered
    network.limit_mtu(True)
    network.limit_mtu(False)
    assert network.mtu == wanted
    assert "netback.mtu" not in ip("link show vif1.0")
    network.remove()


def test_the_mtu_of_its_spec_without_permission() -> None:
    network = TapNetwork("vif1.0")
    held = os.dup(network.peers[0].fd)
    network.close()
    os.seteuid(65534)
    try:
        with pytest.raises(
            ConfigError, match=r"tap:vif1.0: cannot set its MTU to 9000: Operation not permitted"
        ):
            TapNetwork("vif1.0", (held,), mtu=9000)
    finally:
        os.seteuid(0)
    tap.remove_made("vif1.0")
    assert get_link("vif1.0") is None


@pytest.mark.parametrize("made", [True, False], ids=["made by netback", "adopted"])
def test_the_bridge_of_its_spec(made: bool) -> None:
    """The tap joins it, and again when it has come back, but is not taken from another one."""
    if not made:
        ip("tuntap add vif1.0 mode tap")
    for bridge in ("br0", "br1"):
        ip(f"link add {bridge} type bridge")
    network = TapNetwork("vif1.0", bridge="br0")
    assert network.bridge is not None
    assert network.bridge.name == "br0"
    assert network.up
    ip("link set vif1.0 master br1")
    assert network.check() is False
    assert network.bridge.name == "br1"
    ip("link del br1")
    assert network.check() is False
    assert network.bridge.name == "br0"
    ip("link del vif1.0")
    if not made:
        ip("tuntap add vif1.0 mode tap")
    assert network.check()
    assert network.bridge.name == "br0"
    ip("link del br0")
    with pytest.raises(
        PeerError, match=r"tap:vif1.0: there is no bridge br0; the tap joins it once it exists"
    ):
        network.check()
    ip("link add br0 type bridge")
    assert network.check() is False
    assert network.bridge.name == "br0"
    network.remove()


def test_a_bridge_that_is_none() -> None:
    veth("eth0", "eth1")
    with pytest.raises(PeerError, match=r"tap:vif1.0: there is no bridge br0"):
        TapNetwork("vif1.0", bridge="br0")
    with pytest.raises(ConfigError, match=r"tap:vif1.0: cannot put it into eth0: Operation not supported"):
        TapNetwork("vif1.0", bridge="eth0")
    tap.remove_made("vif1.0")
    assert get_link("vif1.0") is None


def test_what_is_no_tap_is_refused() -> None:
    veth("eth1", "far1")
    with pytest.raises(ConfigError, match=r"tap:eth1: a link of that name exists and is not a tap"):
        TapNetwork("eth1")


def test_without_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tap, "DEVICE", str(tmp_path / "tun"))
    with pytest.raises(
        PeerError, match=r"tap:vif1.0: there is no .*/tun: load the module tun, or use packet"
    ):
        TapNetwork("vif1.0")


def test_without_permission_for_the_device() -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(PeerError, match=r"tap:vif1.0: no permission to open /dev/net/tun"):
            TapNetwork("vif1.0")
    finally:
        os.seteuid(0)


def refusal(link: str) -> str:
    """The errors for a process that has no CAP_NET_ADMIN but may open the device."""
    script = f"""
from netback.net.tap import TapNetwork
from netback.errors import ConfigError
try:
    TapNetwork({link!r})
except ConfigError as error:
    print(error)
"""
    less = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    return subprocess.run(
        [*less, sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout


def test_without_permission_to_make_one() -> None:
    assert "tap:vif1.0: no permission to make a tap: CAP_NET_ADMIN is needed" in refusal("vif1.0")


def test_without_permission_for_this_one() -> None:
    ip("tuntap add tap0 mode tap user 12345")
    assert "tap:tap0: no permission to open this tap" in refusal("tap0")


def test_a_tap_is_made_and_found_without_a_slow_import() -> None:
    """Toolstacks and guests wait for it."""
    code = (
        "import sys; from netback.net.tap import TapNetwork; "
        "TapNetwork('vif9.0').close(); TapNetwork('vif9.0').remove(); assert 'pyroute2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- several queues


def queues(link: str) -> int:
    """The queues of a tap that processes hold."""
    found = get_link(link)
    assert found is not None
    return found.tap_queues


def tap_with_queues(count: int) -> TapNetwork:
    network = TapNetwork("vif1.0", several=True)
    network.set_queues(count)
    network.carrier(True)
    ip("link set vif1.0 up")
    await_up("vif1.0")
    return network


def flows(count: int) -> list[bytes]:
    """Frames of as many UDP flows."""
    made = []
    for flow in range(count):
        packet = bytearray(build(4, UDP, bytes([flow]) * 40))
        packet[34:36] = (1000 + flow).to_bytes(2, "big")
        made.append(PLAIN + bytes(packet))
    return made


def arrived(network: TapNetwork) -> list[list[bytes]]:
    """What waits in each queue."""
    return [peer.recv() for peer in network.peers]


def test_a_tap_has_as_many_queues_as_its_vif() -> None:
    """A queue that is left gets no frames, even if a descriptor store holds it; else its share would be lost."""
    network = tap_with_queues(4)
    far, sent = FarLink("vif1.0"), flows(40)
    assert queues("vif1.0") == 4
    for message in sent:
        far.send(message)
    came = arrived(network)
    assert all(came)
    assert sorted(chain.from_iterable(came)) == sorted(sent)
    held = [os.dup(peer.fd) for peer in network.peers]
    network.set_queues(2)
    assert len(network.peers) == 2
    for message in sent:
        far.send(message)
    assert sorted(chain.from_iterable(arrived(network))) == sorted(sent)
    for fd in held:
        os.close(fd)
    assert queues("vif1.0") == 2
    network.set_queues(3)
    assert queues("vif1.0") == 3
    far.close()
    network.remove()
    assert links() == {"lo"}


def test_a_flow_comes_from_the_queue_that_last_sent_it() -> None:
    network = tap_with_queues(2)
    far = FarLink("vif1.0")
    for number, message in enumerate(flows(8)):
        swapped = message[:16] + message[10:16] + message[22:]
        answer = bytearray(swapped)
        answer[36:44] = message[40:44] + message[36:40]
        answer[44:48] = message[46:48] + message[44:46]
        network.peers[number % 2].send([bytes(answer)])
        far.send(message)
        assert arrived(network)[number % 2] == [message]
    far.close()
    network.remove()


@pytest.mark.parametrize("on", [False, True])
def test_queues_change_no_carrier(on: bool) -> None:
    network = tap_with_queues(1)
    network.carrier(on)
    network.set_queues(3)
    assert has_carrier("vif1.0") is on
    network.set_queues(2)
    assert has_carrier("vif1.0") is on
    network.remove()


@pytest.mark.parametrize("made", ["by an earlier netback", "by another program"])
def test_a_tap_of_one_queue_keeps_it(made: str) -> None:
    if made == "by another program":
        ip("tuntap add vif1.0 mode tap")
    else:
        TapNetwork("vif1.0").close()
    network = TapNetwork("vif1.0", several=True)
    network.set_queues(4)
    assert len(network.peers) == 1
    network.remove()


def test_a_tap_of_queues_that_is_removed_is_joined_again_with_all() -> None:
    network = tap_with_queues(3)
    fds = [peer.fd for peer in network.peers]
    ip("link del vif1.0")
    assert network.check() is True
    assert network.check() is False
    assert [peer.fd for peer in network.peers] == fds
    assert queues("vif1.0") == 3
    ip("link set vif1.0 up")
    await_up("vif1.0")
    network.remove()


def test_a_tap_of_queues_that_comes_back_with_one_is_an_error() -> None:
    ip("tuntap add vif1.0 mode tap multi_queue")
    network = TapNetwork("vif1.0")
    network.set_queues(2)
    ip("link del vif1.0")
    ip("tuntap add vif1.0 mode tap")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"tap:vif1.0: it came back with one queue and its vif has 2"):
            network.check()
    ip("link del vif1.0")
    ip("tuntap add vif1.0 mode tap multi_queue")
    assert network.check() is True
    assert queues("vif1.0") == 2
    network.close()


def test_no_other_process_shares_the_queues() -> None:
    """The kernel would let it in, and give it part of the frames."""
    network = tap_with_queues(2)
    with pytest.raises(PeerError, match=r"tap:vif1.0: another process holds it \(EBUSY\)"):
        TapNetwork("vif1.0", several=True)
    assert queues("vif1.0") == 2
    stranger = os.open(tap.DEVICE, os.O_RDWR | os.O_NONBLOCK)
    assert tap.try_join(stranger, "vif1.0", tap.FORMAT | tap.Flag.MULTI_QUEUE) == 0
    with pytest.raises(PeerError, match=r"tap:vif1.0: another process holds it \(EBUSY\)"):
        network.set_queues(3)
    assert len(network.peers) == 2
    os.close(stranger)
    network.set_queues(3)
    network.remove()


def test_of_two_processes_at_the_same_moment_one_joins() -> None:
    """Both served this tap before it was removed. One has read its count, but not joined, when the other reads it."""
    networks: list[TapNetwork] = []
    for _ in range(2):
        ip("tuntap add t0 mode tap multi_queue")
        networks.append(TapNetwork("t0"))
        ip("link del t0")
    first, second = networks
    ip("tuntap add t0 mode tap multi_queue")
    looked, go = os.pipe(), os.pipe()
    other = os.fork()
    if other == 0:
        os.close(go[1])  # it ends with the test
        join_at(first, looked[1], go[0])
    os.close(looked[1])
    assert os.read(looked[0], 1)
    with pytest.raises(PeerError, match=r"tap:t0: another process holds it \(EBUSY\)"):
        second.check()
    os.write(go[1], b".")
    assert os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) == 0
    assert queues("t0") == 1
    with pytest.raises(PeerError, match=r"another process holds it \(EBUSY\)"):
        second.check()
    first.close()
    assert second.check()
    assert queues("t0") == 1
    second.close()
    for fd in (looked[0], *go):
        os.close(fd)


def join_at(network: TapNetwork, looked: int, go: int) -> NoReturn:
    """Another process: join the tap again, with a stop between the look and the join."""
    join = tap.try_join

    def join_late(fd: int, link: str, flags: tap.Flag) -> int:
        if flags & tap.Flag.MULTI_QUEUE:
            os.write(looked, b".")
            os.read(go, 1)
        return join(fd, link, flags)

    tap.try_join = join_late
    code = 1
    try:
        code = int(not network.check())
    finally:
        os._exit(code)


def test_held_queues_are_taken_up_in_their_order() -> None:
    first = tap_with_queues(3)
    held = [os.dup(peer.fd) for peer in first.peers]
    far, sent = FarLink("vif1.0"), flows(30)
    for message in sent:
        far.send(message)
    first.close()
    second = TapNetwork("vif1.0", held, several=True)
    assert [peer.fd for peer in second.peers] == held
    second.set_queues(3)
    assert sorted(chain.from_iterable(arrived(second))) == sorted(sent)
    second.set_queues(1)
    assert queues("vif1.0") == 1
    far.close()
    second.remove()
