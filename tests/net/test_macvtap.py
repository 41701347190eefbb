# SPDX-License-Identifier: Apache-2.0
"""A macvtap on one end of a veth pair; the witness is at the other end."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from netback.dataplane.caps import EVERYTHING
from netback.errors import ConfigError, GoneError, PeerError
from netback.net import macvtap, tap
from netback.net.base import Owner
from netback.net.macvtap import MacvtapNetwork
from netback.net.monitor import ANY_LINK
from netback.net.rtnetlink import get_link
from netback.net.spec import open_network, parse_spec, remove_earlier

from .contract import FrameNetwork, LinkNetwork, OffloadNetwork, Site, asks, big_tcp, frame, receive
from .far import PATIENCE, PLAIN, FarLink
from .namespace import (
    await_up,
    bring_back,
    inside,
    ip,
    new_network,
    other_network,
    own_sysfs,
    send_to,
    veth,
)
from .test_tap import flows

GUEST = "00:16:3e:00:00:02"
"""The guest's address: the destination of the frames of offload_frames."""


@pytest.fixture(autouse=True)
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A namespace with a cable between eth1 and far1, whose sysfs the module uses."""
    with new_network(), own_sysfs(tmp_path / "sys") as at:
        monkeypatch.setattr(macvtap, "SYSFS", at)
        veth("eth1", "far1")
        yield at


def opened(
    spec: str = "macvtap:eth1", *, held: tuple[int, ...] = (), several: bool = False
) -> MacvtapNetwork:
    network = open_network(
        parse_spec(spec), name="vif1.0", held=held, several=several, owner=Owner({"mac": GUEST})
    )
    assert isinstance(network, MacvtapNetwork)
    return network


@pytest.fixture(params=["bridge", "passthru"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    network, far = opened(f"macvtap:eth1,mode={request.param}"), FarLink("far1")
    network.offloads(EVERYTHING)
    ip("link set eth1 mtu 9000")  # the most that the macvtap may have
    await_up("vif1.0")
    yield Site(network, far)
    network.remove()
    far.close()


def links() -> set[str]:
    return {name for _, name in socket.if_nameindex()} - {"lo", "eth1", "far1"}


class TestMacvtap(FrameNetwork, OffloadNetwork, LinkNetwork):
    """Made by netback."""

    @pytest.mark.parametrize("version", [4, 6])
    def test_gso_out(self, site: Site, version: int) -> None:
        """The frame's destination is not this macvtap: with mode=bridge it would not leave."""
        site.network.set_address("00:16:3e:00:00:01")
        super().test_gso_out(site, version)

    def test_its_link_is_down(self, site: Site) -> None:
        """The kernel drops the frames and reports nothing; `up` tells the guest."""
        ip("link set vif1.0 down")
        assert not site.network.up
        site.network.peers[0].send([frame(1)])
        ip("link set vif1.0 up")
        site.network.peers[0].send([frame(2)])
        assert site.far.recv() == frame(2)

    def test_has_the_carrier_of_the_link_below(self, site: Site) -> None:
        ip("link set far1 down")
        deadline = time.monotonic() + PATIENCE / 1000
        while site.network.up:
            assert time.monotonic() < deadline
        ip("link set far1 up")
        await_up("eth1")
        assert site.network.up


@pytest.mark.parametrize("mode", ["bridge", "vepa", "private", "passthru"])
def test_what_is_made(mode: str) -> None:
    network = opened(f"macvtap:eth1,mode={mode}")
    shown = ip("-d link show vif1.0")
    assert f"macvtap mode {mode}" in shown
    assert "ALLMULTI" in shown
    assert (GUEST in shown) == (mode != "passthru")
    network.set_address("00:16:3e:00:00:03")
    assert ("00:16:3e:00:00:03" in ip("link show vif1.0")) == (mode != "passthru")
    network.close()
    assert links() == {"vif1.0"}
    remove_earlier(parse_spec("macvtap:eth1"), "vif1.0")
    assert links() == set()


def test_a_frame_for_the_guest_and_one_for_another() -> None:
    with closing(opened()) as network, closing(FarLink("far1")) as far:
        own = PLAIN + bytes.fromhex(GUEST.replace(":", "")) + frame(1)[16:]
        far.send(PLAIN + b"\x02\0\0\0\0\x77" + frame(2)[16:])
        group = PLAIN + b"\x33\x33\0\0\0\x77" + frame(3)[16:]
        far.send(own)
        far.send(group)
        assert sorted(receive(network, 2)) == sorted([own, group])


def test_two_guests_of_one_link_hear_each_other() -> None:
    """With mode=bridge; the host's own packets on the link do not reach them."""
    with (
        closing(opened()) as one,
        closing(open_network(parse_spec("macvtap:eth1"), name="vif2.0")) as other,
    ):
        one.peers[0].send([frame(1)])
        assert receive(other, 1) == [frame(1)]
        assert one.peers[0].recv() == []


def test_is_found_again_after_kill(sysfs: str) -> None:
    script = (
        f"import os; from netback.net import macvtap as m; m.SYSFS = '{sysfs}'; "
        "n = m.MacvtapNetwork('eth1', 'vif1.0', address='00:16:3e:00:00:02'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == -signal.SIGKILL
    ip("link set vif1.0 name web")
    index = socket.if_nametoindex("web")
    network = opened()
    assert (network.name, network.follows) == ("web", {index})
    network.remove()
    assert links() == set()


def test_held_descriptors_keep_what_waits() -> None:
    first, far = opened(), FarLink("far1")
    held = os.dup(first.peers[0].fd)
    first.close()
    far.send(frame(1))
    second = opened(held=(held,))
    assert second.peers[0].fd == held
    assert receive(second, 1) == [frame(1)]
    far.close()
    second.remove()
    assert links() == set()


def test_held_descriptors_of_another_link_are_closed() -> None:
    veth("eth2", "far2")
    first = opened()
    held = os.dup(first.peers[0].fd)
    first.close()
    network = opened("macvtap:eth2", held=(held,))
    assert get_link("vif1.0").lower == socket.if_nametoindex("eth2")  # type: ignore[union-attr]
    network.remove()


@pytest.mark.parametrize("spec", ["macvtap:eth2", "macvtap:eth1,mode=vepa"])
def test_another_spec_makes_another_one(spec: str) -> None:
    veth("eth2", "far2")
    opened().close()
    index = socket.if_nametoindex("vif1.0")
    network = opened(spec)
    assert socket.if_nametoindex("vif1.0") != index
    network.remove()


def test_one_that_is_there() -> None:
    ip("link add link eth1 name web0 type macvtap mode vepa")
    network = opened("macvtap:web0")
    assert network.name == "web0"
    network.offloads(EVERYTHING)
    with closing(FarLink("far1")) as far:
        assert network.peers[0].send([big_tcp(4)]) == (1, 0)
        assert far.recv()[10:] == big_tcp(4)[10:]
    with pytest.raises(ConfigError, match="macvtap:web0: it exists and has its mode: leave out mode="):
        opened("macvtap:web0,mode=vepa")
    ip("link del web0")
    with pytest.raises(GoneError, match="macvtap:web0: the link is gone; it is used again when it is back"):
        network.check()
    ip("link add link eth1 name web0 type macvtap mode vepa")
    assert network.check()
    network.remove()
    assert links() == {"web0"}


def test_one_that_a_killed_process_had_not_marked() -> None:
    ip("link add link eth1 name vif1.0 type macvtap mode bridge")
    opened().remove()
    assert links() == set()


def test_a_macvtap_has_one_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also under another name. The kernel would give each a share of the frames."""
    waited: list[float] = []
    monkeypatch.setattr(macvtap.time, "sleep", waited.append)
    with closing(opened()) as holder:
        for spec in ("macvtap:eth1", "macvtap:vif1.0", "macvtap:netback-vif1.0"):
            with pytest.raises(PeerError, match=r"another device or process holds it \(EBUSY\)"):
                opened(spec)
        assert 0 < sum(waited) < 6
        assert holder.check() is False
    opened().remove()


@pytest.mark.parametrize("several", [False, True])
def test_a_lower_link_that_goes_and_comes_back(several: bool) -> None:
    """Frames are refused as soon as rtnetlink has told; the peers' descriptors keep their numbers."""
    network = opened(several=several)
    network.set_queues(2)
    fds = [peer.fd for peer in network.peers]
    assert len(fds) == 1 + several
    ip("link del eth1")
    for _ in range(2):
        with pytest.raises(GoneError, match="macvtap:eth1: no link of that name in this network namespace"):
            network.check()
    assert network.follows == {"vif1.0", "netback-vif1.0", "eth1"}
    assert network.mtu is None
    assert not network.up
    for peer in network.peers:
        assert peer.send([frame(1)] * 3) == (3, 3)
        assert not peer.blocked
        assert peer.recv() == []
    veth("eth1", "far1")
    assert network.check() is True
    assert network.check() is False
    assert [peer.fd for peer in network.peers] == fds
    await_up("vif1.0")
    assert GUEST in ip("link show vif1.0")
    with closing(FarLink("far1")) as far:
        for peer in network.peers:
            assert peer.send([frame(2)]) == (1, 0)
            assert far.recv() == frame(2)
        far.send(frame(3))
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        assert len(poll.poll(PATIENCE)) == 1
        assert [f for peer in network.peers for f in peer.recv()] == [frame(3)]
    network.remove()
    assert links() == set()


def test_a_macvtap_that_is_removed_is_made_again() -> None:
    network = opened()
    ip("link del vif1.0")
    assert network.peers[0].send([frame(1)]) == (1, 0)  # the kernel takes it and reports nothing
    assert network.check() is True
    assert links() == {"vif1.0"}
    network.remove()


def test_a_macvtap_in_another_namespace_is_still_served() -> None:
    network = opened()
    with other_network() as other:
        send_to("vif1.0", other)
        with pytest.raises(GoneError, match="macvtap:eth1: the link is in another network namespace"):
            network.check()
        assert network.mtu is None
        assert network.follows == {ANY_LINK}
        inside(other, "ip link set vif1.0 up")
        with closing(FarLink("far1")) as far:
            assert network.peers[0].send([frame(1)]) == (1, 0)
            assert far.recv() == frame(1)
        bring_back("vif1.0", other)
    assert network.check() is False
    assert network.mtu == 1500
    network.remove()


def test_queues() -> None:
    network = opened(several=True)
    network.set_queues(4)
    with closing(FarLink("far1")) as far:
        for count in (4, 2):
            network.set_queues(count)
            sent = [PLAIN + bytes.fromhex(GUEST.replace(":", "")) + m[16:] for m in flows(40)]
            for message in sent:
                far.send(message)
            came = [peer.recv() for peer in network.peers]
            assert len(came) == count
            assert all(came)
            assert sorted(sum(came, [])) == sorted(sent)  # noqa: RUF017
    network.remove()


def test_what_found_its_queue_full_is_counted() -> None:
    with closing(opened()) as network, closing(FarLink("far1")) as far:
        ip("link set vif1.0 txqueuelen 10")
        for n in range(16):
            far.send(PLAIN + bytes.fromhex(GUEST.replace(":", "")) + frame(n)[16:])
        assert network.drops() == {"rx_overflow": 6}
        assert network.drain() == 10


def test_forgets_what_an_earlier_guest_took() -> None:
    network, far = opened(), FarLink("far1")
    network.offloads(EVERYTHING)
    network.close()
    network = opened()
    far.send(big_tcp(4))
    assert asks(receive(network, 1)[0]) == (0, 0, 0, 0, 0)
    far.close()
    network.remove()


# ---- what cannot be


def test_links_that_cannot_be() -> None:
    with pytest.raises(GoneError, match="macvtap:none0: no link of that name in this network namespace; the"):
        opened("macvtap:none0")
    with pytest.raises(ConfigError, match="macvtap:lo: not an Ethernet link"):
        opened("macvtap:lo")
    ip("link add br0 type bridge")
    ip("link set eth1 master br0")
    with pytest.raises(
        PeerError, match=r"macvtap:eth1: cannot make a macvtap on it: .*: is it a port of a br"
    ):
        opened()
    ip("link set eth1 nomaster")
    ip("tuntap add vif1.0 mode tap")
    with pytest.raises(
        ConfigError, match=r"macvtap:eth1: a link vif1\.0 exists and is not a macvtap on eth1"
    ):
        opened()
    assert links() == {"br0", "vif1.0"}


def test_without_permission_to_make_one() -> None:
    script = "from netback.net.macvtap import MacvtapNetwork as M; M('eth1', 'vif1.0')"
    less = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    words = "macvtap:eth1: cannot make a macvtap on it: Operation not permitted: CAP_NET_ADMIN is needed"
    ran = subprocess.run([*less, sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert f"ConfigError: {words}" in ran.stderr


def test_a_sysfs_of_another_namespace(sysfs: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(macvtap, "SYSFS", str(tmp_path))
    with pytest.raises(
        PeerError, match=r"macvtap:eth1: .* does not show its device: mount the sysfs of this"
    ):
        opened()
    other = tmp_path / "vif1.0"
    other.mkdir()
    (other / "ifindex").write_text("1\n")
    with pytest.raises(PeerError, match="does not show its device"):
        opened()
    tap.remove_made("vif1.0")
    assert links() == set()


@pytest.mark.parametrize("instead", ["nothing", "another device"])
def test_without_a_node_one_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, instead: str) -> None:
    opened().close()
    devices = tmp_path / "dev"
    devices.mkdir()
    if instead == "another device":
        name = macvtap.device_of(get_link("vif1.0"))[0]  # type: ignore[arg-type]
        os.mknod(devices / name, 0o20600, os.makedev(1, 3))
    before = set(devices.iterdir())
    monkeypatch.setattr(macvtap, "DEVICES", str(devices))
    with closing(opened()) as network, closing(FarLink("far1")) as far:
        network.peers[0].send([frame(1)])
        assert far.recv() == frame(1)
    assert set(devices.iterdir()) == before


def test_without_a_node_and_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(macvtap, "DEVICES", "/none")
    words = (
        r"macvtap:eth1: /none/tap\d+ is missing or another link's, and a node cannot be made: No such file"
    )
    with pytest.raises(PeerError, match=words):
        opened()
