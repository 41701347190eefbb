# SPDX-License-Identifier: Apache-2.0
"""AF_XDP sockets on one end of a veth pair, whose driver has XDP and copies; the witness is at the other end."""

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from netback.abi import netif
from netback.dataplane import clock
from netback.dataplane.peers.mirror import MirrorPeer
from netback.dataplane.peers.null import NullPeer
from netback.dataplane.peers.peer import Peer
from netback.dataplane.peers.redirect import RedirectPeer
from netback.dataplane.peers.xdp import XdpPeer, XdpProgram, XdpSocket
from netback.dataplane.states import Event
from netback.errors import ConfigError, GoneError, PeerError
from netback.net import af_xdp
from netback.net.af_xdp import AfXdpNetwork
from netback.net.packet import PacketNetwork
from netback.net.spec import open_network, parse_spec
from tests.dataplane.harness import RING_PAGES, Bench, post

from .contract import FrameNetwork, LinkNetwork, RefusingNetwork, Site, fill, frame, receive
from .far import PATIENCE, PLAIN, FarLink
from .namespace import await_up, bring_back, ip, new_network, other_network, send_to, tc, veth
from .test_tap import flows

LONGEST = 3500
"""Bytes of the largest frame that veth's driver gives to XDP on pages of 4 KiB."""


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with new_network():
        veth("eth1", "far1")
        yield


@pytest.fixture(params=["driver", "skb"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    network = opened(f"af_xdp:eth1,mode={request.param}")
    await_up("eth1", "far1")
    far = FarLink("far1")
    yield Site(network, far)
    network.close()
    far.close()


def opened(spec: str = "af_xdp:eth1") -> AfXdpNetwork:
    network = open_network(parse_spec(spec), name="vif1.0")
    assert isinstance(network, AfXdpNetwork)
    return network


class TestAfXdp(FrameNetwork, LinkNetwork, RefusingNetwork):
    """On a link of the host, by the driver and in the generic way."""

    def test_knows_the_mtu(self, site: Site) -> None:
        assert site.network.mtu == 1500
        ip("link set eth1 mtu 3000")
        assert site.network.mtu == 3000
        ip("link del eth1")
        assert site.network.mtu is None

    def test_more_frames_than_the_rings_have_slots(self, site: Site) -> None:
        """Each chunk is used several times, both ways."""
        for n in range(60):
            sent = [frame(n + i, 60 + 20 * i) for i in range(64)]
            assert site.network.peers[0].send(sent) == (64, 0)
            assert [site.far.recv() for _ in sent] == sent
            for message in sent:
                site.far.send(message)
            assert receive(site.network, 64) == sent

    def test_the_host_hears_nothing(self, site: Site) -> None:
        """Unlike with a packet socket; nor does it hear what it sends itself on the link."""
        with closing(PacketNetwork("eth1")) as host:
            site.far.send(frame(1))
            assert receive(site.network, 1) == [frame(1)]
            assert host.peers[0].recv() == []
            host.peers[0].send([frame(2)])
            assert site.far.recv() == frame(2)
            assert site.network.peers[0].recv() == []
            site.network.close()
            site.far.send(frame(3))
            assert receive(host, 1) == [frame(3)]

    def test_hears_frames_for_others(self, site: Site) -> None:
        assert "promiscuity 1" in ip("-d link show eth1")
        message = PLAIN + b"\x02\0\0\0\0\x77" + frame(1)[16:]
        site.far.send(message)
        assert receive(site.network, 1) == [message]

    def test_frames_of_any_length(self, site: Site) -> None:
        for link in ("eth1", "far1"):
            ip(f"link set {link} mtu {LONGEST - 14}")
        sent = [frame(n, size) for n, size in enumerate((15, 60, 61, 1500, 2048, LONGEST))]
        assert site.network.peers[0].send(sent) == (len(sent), 0)
        assert [site.far.recv() for _ in sent] == sent
        for message in sent:
            site.far.send(message)
        assert receive(site.network, len(sent)) == sent

    def test_a_frame_longer_than_a_chunk_is_refused_where_it_is(self, site: Site) -> None:
        """Those around it are sent, once and in order."""
        sent = [frame(1), frame(2, 4097), frame(3), frame(4, 4097)]
        assert site.network.peers[0].send(sent) == (4, 2)
        assert [site.far.recv(), site.far.recv()] == [frame(1), frame(3)]
        site.network.peers[0].send([frame(5)])
        assert site.far.recv() == frame(5)

    def test_overflow_is_counted_once_each(self, site: Site) -> None:
        for n in range(1500):
            site.far.send(frame(n))
        drained = site.network.drain()
        assert drained >= 1000
        assert drained + site.network.drops()["rx_overflow"] == 1500
        site.far.send(frame(1))
        assert receive(site.network, 1) == [frame(1)]

    def test_queues_send_through_duplicates(self, site: Site) -> None:
        (peer,) = site.network.peers
        further = peer.duplicate(-1)
        for number, each in enumerate((peer, further, peer)):
            assert each.send([frame(number)]) == (1, 0)
            assert site.far.recv() == frame(number)
        assert further.recv() == []

    def test_a_slow_link(self, site: Site) -> None:
        """Frames that wait behind the link hold their chunks."""
        choke()
        assert fill(site.network) > 400
        assert site.network.peers[0].blocked
        release()
        assert site.network.peers[0].send([frame(1)]) == (1, 0)
        assert not site.network.peers[0].blocked

    def test_removes_no_link(self, site: Site) -> None:
        site.network.remove()
        assert "xdp" not in ip("link show eth1")

    def test_changes_nothing_of_its_link(self, site: Site) -> None:
        before = ip("-d link show eth1")
        site.network.limit_mtu(True)
        site.network.set_address("00:16:3e:00:00:01")
        site.network.carrier(True)
        assert ip("-d link show eth1") == before


def choke() -> None:
    """Make what leaves by the link wait behind it: a bridge passes it on to a slow one."""
    veth("slow0", "slow1")
    tc("qdisc add dev slow0 root tbf rate 64bit burst 2000 limit 1000000000")
    ip("link add br0 type bridge")
    ip("link set br0 up")
    for link in ("far1", "slow0"):
        ip(f"link set {link} master br0")


def release() -> None:
    tc("qdisc del dev slow0 root")


def test_what_the_kernel_does_not_take_goes_later() -> None:
    """Here it has no room for a socket's frames in flight: the rest of a burst stays in the ring, alone."""
    program = XdpProgram(socket.if_nametoindex("eth1"), skb=False)
    near, peer = XdpSocket(program, 0), XdpPeer()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, 0, fileno=os.dup(near.fd)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    peer.join([near])
    with closing(FarLink("far1")) as far:
        choke()
        frames = [PLAIN + b"\x02\0\0\0\0\x77" + frame(n, 1000)[16:] for n in range(64)]
        ip("link set eth1 down")
        assert peer.send(frames) == (64, 64)
        ip("link set eth1 up")
        await_up("eth1", "far1")
        assert peer.send(frames) == (64, 0)
        assert not peer.down
        for _ in range(3):
            assert peer.send(frames) == (0, 0)
            assert peer.blocked
        release()
        rest = [frame(n) for n in range(10)]
        got: list[bytes] = []
        while not (done := peer.send(rest))[0]:
            got.append(far.recv())  # frees room for the next ones
        assert done == (10, 0)
        got += [far.recv() for _ in range(74 - len(got))]
        assert got == frames + rest
    program.close()


@pytest.mark.parametrize("way", ["plain", "redirected", "mirrored"])
def test_what_stays_in_the_ring_goes_without_another_frame(way: str) -> None:
    """The worker pushes it after a moment, also where the ring is that of a filter's other network."""
    program = XdpProgram(socket.if_nametoindex("eth1"), skb=False)
    near, peer = XdpSocket(program, 0), XdpPeer()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, 0, fileno=os.dup(near.fd)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    peer.join([near])
    ways: dict[str, Peer] = {
        "plain": peer,
        "redirected": RedirectPeer(NullPeer(), writer=peer),
        "mirrored": MirrorPeer(NullPeer(), other=peer, rx=False),
    }
    frames = [PLAIN + b"\x02\0\0\0\0\x77" + frame(n, 1000)[16:] for n in range(64)]
    bench = Bench(peer=ways[way])
    clock.fix(1_000_000_000)
    try:
        with closing(FarLink("far1")) as far:
            choke()
            for number, each in enumerate(frames):
                bench.grant(8 + number, 10 + number)
                bench.write(10 + number, 0, each[10:])
            requests = [netif.TX_REQUEST.pack(8 + n, 0, 0, n, len(frames[n]) - 10) for n in range(64)]
            post(bench, RING_PAGES[0], requests)
            event = Event.RING
            while bench.worker.apply(bench.queue, event):
                event = Event.POLL
            assert bench.queue.rings["tx"]["rsp_prod"] == 64
            wrapped = ways[way]
            missed = wrapped.counters["tx_mirror_missed"] if isinstance(wrapped, MirrorPeer) else 0
            assert (missed > 0) == (way == "mirrored")
            release()
            got: list[bytes] = []
            while len(got) < 64 - missed:
                for _ in range(3000):
                    if select.select([far.socket], [], [], 0.001)[0]:
                        break
                    clock.fix(clock.now() + 2_000_000)
                    bench.worker.end_timers()
                    bench.worker.apply(bench.queue, Event.POLL)
                got.append(far.recv())
            assert got == frames[: 64 - missed]
    finally:
        clock.fix(0)
        bench.close()
        program.close()


def test_how_frames_pass() -> None:
    for spec, words in (
        ("af_xdp:eth1", "XDP in driver mode, copies"),
        ("af_xdp:eth1,mode=skb", "XDP in skb mode, copies"),
    ):
        with closing(opened(spec)) as network:
            assert network.path == words
    ip("link add br0 type bridge")  # its driver has no XDP
    with closing(opened("af_xdp:br0")) as network:
        assert network.path == "XDP in skb mode, copies"
    with pytest.raises(PeerError, match="af_xdp:br0: cannot attach the program: Operation not supported"):
        opened("af_xdp:br0,mode=driver")


def test_an_mtu_that_the_driver_s_xdp_does_not_take() -> None:
    for link in ("eth1", "far1"):
        ip(f"link set {link} mtu 9000")
    with closing(opened()) as network, closing(FarLink("far1")) as far:
        assert network.path == "XDP in skb mode, copies"
        far.send(frame(1, 9000))
        far.send(frame(2))
        assert receive(network, 1) == [frame(2)]
        assert network.drops() == {"rx_overflow": 1}


@pytest.mark.parametrize("goes", ["removed", "moved"])
def test_a_link_that_goes_and_comes_back(goes: str) -> None:
    """The same peer takes frames from it again, promiscuous; counts go on."""
    network = opened()
    (peer,) = network.peers
    fd = peer.fd
    with other_network() as other:
        for _ in range(2):
            if goes == "removed":
                ip("link del eth1")
            else:
                send_to("eth1", other)
            with pytest.raises(GoneError, match="af_xdp:eth1: no link of that name"):
                network.check()
            assert network.follows == {"eth1"}
            assert (network.mtu, network.name, network.up) == (None, "eth1", False)
            assert peer.send([frame(1)] * 3) == (3, 3)
            assert peer.down
            if goes == "removed":
                veth("eth1", "far1")
            else:
                bring_back("eth1", other)
                await_up("eth1", "far1")
            assert network.check() is True
            assert network.check() is False
            assert network.peers == (peer,)
            assert peer.fd == fd
            with closing(FarLink("far1")) as far:
                assert peer.send([frame(1)]) == (1, 0)  # before anything is read
                assert far.recv() == frame(1)
                message = PLAIN + b"\x02\0\0\0\0\x77" + frame(1)[16:]
                far.send(message)
                assert receive(network, 1) == [message]
                assert peer.send([frame(2)]) == (1, 0)
                assert not peer.down
                assert far.recv() == frame(2)
    network.close()


def test_a_link_that_moved_away_and_back_between_two_checks() -> None:
    """It has its index again, and its sockets are unbound all the same."""
    network = opened()
    with other_network() as other:
        send_to("eth1", other)
        bring_back("eth1", other)
    assert network.check() is True
    await_up("eth1", "far1")
    with closing(FarLink("far1")) as far:
        far.send(frame(1))
        assert receive(network, 1) == [frame(1)]
    network.close()


def test_a_namespace_s_link_is_one_vif_s(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(af_xdp.time, "sleep", waited.append)
    with closing(opened()):
        for spec in ("af_xdp:eth1", "af_xdp:eth1,mode=skb"):
            with pytest.raises(
                PeerError, match="another XDP program or vif has it; detach that, or use packet"
            ):
                opened(spec)
        assert 0 < sum(waited) < 3
    opened().close()


def test_nothing_is_left_after_kill() -> None:
    script = "import os; from netback.net.af_xdp import AfXdpNetwork as A; A('eth1'); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == -signal.SIGKILL
    with closing(opened()) as network:
        assert network.up


# ---- several queues


def several(queues: int) -> None:
    ip("link del eth1")
    ip(
        f"link add eth1 numrxqueues {queues} numtxqueues {queues} type veth peer name far1 numtxqueues {queues}"
    )
    subprocess.run(["ethtool", "-L", "eth1", "rx", str(queues)], check=False, capture_output=True)
    for link in ("eth1", "far1"):
        ip(f"link set {link} up")
    await_up("eth1", "far1")


@pytest.mark.parametrize("guest", [1, 2, 3, 8])
def test_every_queue_of_the_link_is_heard(guest: int) -> None:
    """Whatever number of queues the guest has: a peer has several sockets, or a queue none."""
    several(4)
    network = opened()
    network.set_queues(guest)
    assert len(network.peers) == min(guest, 4)
    with closing(FarLink("far1")) as far:
        sent = flows(60)
        for message in sent:
            far.send(message)
        came: list[bytes] = []
        poll = select.poll()
        for peer in network.peers:
            poll.register(peer.fd, select.POLLIN)
        while len(came) < len(sent):
            assert poll.poll(PATIENCE)
            came += [message for peer in network.peers for message in peer.recv()]
        assert sorted(came) == sorted(sent)
        for number, peer in enumerate(network.peers):
            assert peer.send([frame(number)]) == (1, 0)
            assert far.recv() == frame(number)
    network.set_queues(1)
    assert len(network.peers) == 1
    network.close()


def test_a_link_that_comes_back_with_fewer_queues() -> None:
    several(4)
    network = opened()
    network.set_queues(3)
    peers = network.peers
    ip("link del eth1")
    veth("eth1", "far1")
    subprocess.run(["ethtool", "-L", "eth1", "rx", "1", "tx", "1"], check=False, capture_output=True)
    with pytest.raises(ConfigError, match=r"af_xdp:eth1: it came back with . RX queues, and its vif uses 3"):
        network.check()
    several(4)
    assert network.check() is True
    assert network.peers == peers
    network.close()


# ---- what cannot be


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("af_xdp:none0", GoneError, "af_xdp:none0: no link of that name"),
        ("af_xdp:lo", ConfigError, "af_xdp:lo: not an Ethernet link"),
        ("af_xdp", ConfigError, "it names no link: write for example 'af_xdp:eth1'"),
        ("af_xdp:eth1,mode=fast", ConfigError, "mode='fast' is not driver or skb"),
    ],
)
def test_links_that_cannot_be(spec: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        opened(spec)


def test_without_permission() -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(ConfigError, match="CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF are needed: be root"):
            opened()
    finally:
        os.seteuid(0)


def test_a_limit_of_locked_memory() -> None:
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536));"
        "from netback.net.af_xdp import AfXdpNetwork as A; A('eth1')"
    )
    less = ["setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"]
    ran = subprocess.run([*less, sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert "ConfigError: af_xdp:eth1: cannot register memory: No buffer space available: raise" in ran.stderr


def test_the_native_part_refuses_wrong_arguments() -> None:
    peer = XdpPeer()
    with pytest.raises(ValueError, match="from 1 to 64 sockets"):
        peer.join([])
    with pytest.raises(OSError, match="cannot attach the program"):
        XdpProgram(999_999, skb=True)
    program = XdpProgram(socket.if_nametoindex("eth1"), skb=True)
    one = XdpSocket(program, 0)
    peer.join([one])
    assert one.fd == -1
    with pytest.raises(ValueError, match="which no other peer has"):
        XdpPeer().join([one])
    with pytest.raises(OSError, match="cannot bind to the queue: Invalid argument"):
        XdpSocket(program, 99)
    assert XdpPeer().send([frame(1)]) == (1, 1)
    program.close()
    program.close()
