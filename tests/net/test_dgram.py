# SPDX-License-Identifier: Apache-2.0
"""Frames as datagrams to another program, and everything that it can do wrong."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from netback.errors import ConfigError, GoneError, PeerError
from netback.net.dgram import DgramNetwork
from netback.net.endpoints import HostPort, UnixPath
from netback.net.spec import open_network, parse_spec
from tests.descriptors import open_descriptors

from .contract import FilteredNetwork, FrameNetwork, Site, fill, frame, receive
from .far import PATIENCE, PLAIN, await_readable
from .namespace import ip, new_network, veth

GROUP = "239.1.2.3"
LONGEST_UDP = 65507
WAYS = ("unix", "udp", "udp, ipv6", "multicast", "a datagram socket", "a sequenced socket")


class Far:
    """The other program. `to`: where it sends to, None if it is connected."""

    def __init__(self, sock: socket.socket, to: str | tuple[str, int] | None) -> None:
        self.socket, self.to = sock, to

    def send(self, message: bytes) -> None:
        """Send a frame; its virtio_net_hdr stays here."""
        self.put(message[len(PLAIN) :])

    def put(self, data: bytes) -> None:
        if self.to is None:
            self.socket.send(data)
        else:
            self.socket.sendto(data, self.to)

    def recv(self) -> bytes:
        await_readable(self.socket.fileno())
        return PLAIN + self.socket.recv(70000)

    def close(self) -> None:
        self.socket.close()


def free_port(family: socket.AddressFamily = socket.AF_INET) -> int:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        return int(sock.getsockname()[1])


def member(port: int) -> Far:
    """A program in the group, as QEMU joins it: its own datagrams come back to it."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((GROUP, port))
    mreq = socket.inet_aton(GROUP) + socket.inet_aton("127.0.0.1")
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, mreq)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    return Far(sock, (GROUP, port))


def joined(way: str, path: Path, undo: ExitStack) -> tuple[DgramNetwork, Far]:
    """A network and the program at its other end."""
    if way == "unix":
        far = Far(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), str(path / "near"))
        far.socket.bind(str(path / "far"))
        return DgramNetwork(str(path / "far"), local=UnixPath(str(path / "near"))), far
    if way == "multicast":
        port = free_port()
        return DgramNetwork(f"{GROUP}:{port}", local="127.0.0.1"), member(port)
    if way.startswith("udp"):
        family, host = (socket.AF_INET6, "::1") if way.endswith("ipv6") else (socket.AF_INET, "127.0.0.1")
        near = HostPort(host, free_port(family))
        far = Far(socket.socket(family, socket.SOCK_DGRAM), near.address)
        far.socket.bind((host, 0))
        port = far.socket.getsockname()[1]
        return DgramNetwork(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", local=near), far
    kind = socket.SOCK_DGRAM if way == "a datagram socket" else socket.SOCK_SEQPACKET
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    ours.set_inheritable(True)
    undo.callback(ours.close)
    return DgramNetwork(f"fd:{ours.fileno()}"), Far(theirs, None)


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    """With queues of the length that systemd sets; the kernel's own is 10."""
    with new_network():
        ip("link set lo up")
        Path("/proc/sys/net/unix/max_dgram_qlen").write_text("512")
        yield


@pytest.fixture(params=WAYS)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as undo:
        network, far = joined(request.param, tmp_path, undo)
        undo.callback(far.close)
        undo.callback(network.remove)
        yield Site(network, far)  # type: ignore[arg-type]


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Far]:
    far = Far(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), str(tmp_path / "near"))
    far.socket.bind(str(tmp_path / "far"))
    yield far
    far.close()


@pytest.fixture
def network(tmp_path: Path, far: Far) -> Iterator[DgramNetwork]:
    network = DgramNetwork(str(tmp_path / "far"), local=UnixPath(str(tmp_path / "near")))
    yield network
    network.remove()


class TestUnderFilters(FilteredNetwork):
    """With filters around its peers."""


class TestDgram(FrameNetwork):
    """By every kind of socket."""

    def test_is_up_and_fine(self, site: Site) -> None:
        assert site.network.up
        assert site.network.check() is False
        assert site.network.queued()["bytes_max"] > 100_000
        site.network.close()
        assert not site.network.up
        assert site.network.check() is False
        assert site.network.queued() == {}

    def test_queues_send_through_duplicates(self, site: Site) -> None:
        (peer,) = site.network.peers
        further = peer.duplicate(peer.fd)
        site.network.set_queues(2)
        assert site.network.peers == (peer,)
        for number, each in enumerate((peer, further, peer)):
            assert each.send([frame(number)]) == (1, 0)
            assert site.far.recv() == frame(number)

    def test_a_program_that_reads_nothing(self, site: Site) -> None:
        """It fills its socket, or loses frames; what it reads later is whole."""
        done = refused = 0
        for _ in range(300):
            one, lost = site.network.peers[0].send([frame(7, 8000)] * 8)
            done, refused = done + one, refused + lost
        assert done > 8
        assert site.far.recv() == frame(7, 8000)


# ---- programs that are absent, slow, or lie


def test_nobody_is_there_yet(tmp_path: Path) -> None:
    """Each of two ends may be first."""
    first, second = tmp_path / "first", tmp_path / "second"
    one = DgramNetwork(str(second), local=UnixPath(str(first)))
    assert not one.up
    with pytest.raises(PeerError, match=f"dgram:{second}: nobody receives there: No such file"):
        one.check()
    assert one.peers[0].send([frame(1)]) == (1, 1)
    assert one.peers[0].down
    other = DgramNetwork(str(first), local=UnixPath(str(second)))
    for network in (one, other):
        assert network.up
        assert network.check() is False
    assert one.peers[0].send([frame(1)]) == (1, 0)
    assert not one.peers[0].down
    assert receive(other, 1) == [frame(1)]
    one.remove()
    assert not first.exists()
    assert not other.up
    other.remove()


def test_a_program_that_restarts(network: DgramNetwork, far: Far, tmp_path: Path) -> None:
    """It may speak first: this end is not connected to the earlier one."""
    (peer,) = network.peers
    for number in range(3):
        assert peer.send([frame(number)]) == (1, 0)
        far.close()
        assert peer.send([frame(9)] * 2) == (2, 2)
        assert peer.down
        with pytest.raises(PeerError, match="nobody receives there: Connection refused"):
            network.check()
        (tmp_path / "far").unlink()
        far.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        far.socket.bind(str(tmp_path / "far"))
        far.send(frame(number))
        assert receive(network, 1) == [frame(number)]
        assert network.check() is False
        assert peer.send([frame(4)]) == (1, 0)
        assert not peer.down
        assert far.recv() == frame(4)


def test_a_udp_port_that_nobody_has(tmp_path: Path) -> None:
    """ICMP tells of earlier frames: later ones are sent all the same, and the network is not down."""
    with ExitStack() as undo:
        network, far = joined("udp", tmp_path, undo)
        address = far.socket.getsockname()
        far.close()
        for _ in range(5):
            assert network.peers[0].send([frame(1)] * 3)[0] == 3
            assert network.peers[0].recv() == []
            assert not network.peers[0].down
        far.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        far.socket.bind(address)
        assert network.peers[0].send([frame(2)]) == (1, 0)
        assert far.recv() == frame(2)
        network.remove()
        far.close()


def test_a_slow_program(network: DgramNetwork, far: Far) -> None:
    """Its queue is full (net.unix.max_dgram_qlen): poll cannot tell when it has room, so time does."""
    assert fill(network) > 5
    assert network.peers[0].blocked
    poll = select.poll()
    poll.register(network.peers[0].fd, select.POLLIN)
    assert poll.poll(0) == []
    far.recv()
    assert network.peers[0].send([frame(1)]) == (1, 0)


def test_datagrams_that_are_no_frames(site: Site) -> None:
    """Empty ones, and longer ones than any frame."""
    far = site.far
    assert isinstance(far, Far)
    for data in (b"", bytes(66_100)):
        if not data and far.socket.type == socket.SOCK_SEQPACKET:
            continue
        with suppress(OSError):  # EMSGSIZE: UDP takes none so long
            far.put(data)
    far.send(frame(1))
    assert receive(site.network, 1) == [frame(1)]
    assert not site.network.peers[0].closed
    for _ in range(3):
        with suppress(OSError):
            far.put(b"" if far.socket.type == socket.SOCK_DGRAM else b"x")
    far.send(frame(2))
    drained = 0
    while drained < 4:
        await_readable(site.network.peers[0].fd)
        drained += site.network.drain()
    assert drained == 4


def test_descriptors_in_its_messages_are_closed(network: DgramNetwork, far: Far) -> None:
    before = open_descriptors()
    aside = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", far.socket.fileno()))
    far.socket.sendmsg([frame(1)[len(PLAIN) :]], [aside], 0, str(far.to))
    assert receive(network, 1) == [frame(1)]
    assert open_descriptors() == before


def test_a_frame_longer_than_a_udp_datagram(tmp_path: Path) -> None:
    with ExitStack() as undo:
        network, far = joined("udp", tmp_path, undo)
        undo.callback(far.close)
        undo.callback(network.remove)
        sent = [frame(1, LONGEST_UDP), frame(2, LONGEST_UDP + 1), frame(3)]
        assert network.peers[0].send(sent) == (3, 1)
        assert [far.recv(), far.recv()] == [sent[0], sent[2]]


def test_a_stranger_is_not_heard_over_udp(tmp_path: Path) -> None:
    with ExitStack() as undo:
        network, far = joined("udp", tmp_path, undo)
        undo.callback(far.close)
        undo.callback(network.remove)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            assert far.to is not None
            with suppress(ConnectionRefusedError):
                stranger.sendto(bytes(100), far.to)  # type: ignore[arg-type]
        far.send(frame(1))
        assert receive(network, 1) == [frame(1)]


def test_a_group_is_a_segment() -> None:
    """Each hears all others, also of its own host, and never itself."""
    port = free_port()
    networks = [DgramNetwork(f"{GROUP}:{port}", local="127.0.0.1") for _ in range(3)]
    far = member(port)
    for number, network in enumerate(networks):
        assert network.peers[0].send([frame(number)]) == (1, 0)
        assert far.recv() == frame(number)
    far.send(frame(9))
    for number, network in enumerate(networks):
        heard = [each for each in range(3) if each != number]
        assert receive(network, 3) == [*map(frame, heard), frame(9)]
        assert network.peers[0].recv() == []
        network.remove()
    far.close()


def test_a_frame_that_overflows_is_counted(tmp_path: Path) -> None:
    with ExitStack() as undo:
        network, far = joined("udp", tmp_path, undo)
        undo.callback(far.close)
        undo.callback(network.remove)
        for _ in range(2000):
            far.send(frame(1, 60000))
        assert network.drops()["rx_overflow"] > 0
        assert network.queued()["bytes"] > 0


# ---- what cannot be opened


def test_addresses_that_cannot_be_had(tmp_path: Path) -> None:
    near, far = str(tmp_path / "near"), str(tmp_path / "far")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(near)
        with pytest.raises(PeerError, match=f"dgram:{far}: another process listens there"):
            DgramNetwork(far, local=UnixPath(near))
    network = DgramNetwork(far, local=UnixPath(near))  # the path of a process that is gone
    network.remove()
    with pytest.raises(PeerError, match="No such file or directory"):
        DgramNetwork(far, local=UnixPath(str(tmp_path / "no" / "directory")))
    with pytest.raises(PeerError, match="Cannot assign requested address"):
        DgramNetwork("127.0.0.1:5000", local=HostPort("192.0.2.1", 5000))
    with pytest.raises(PeerError, match=r"No such device|Cannot assign requested address"):
        DgramNetwork(f"{GROUP}:5000", local="192.0.2.1")


def test_descriptors_that_are_no_datagram_sockets() -> None:
    stream, other = socket.socketpair()
    loose = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with stream, other, loose:
        for sock in (stream, loose):
            sock.set_inheritable(True)
        with pytest.raises(
            ConfigError, match="is a socket of another kind: it takes SOCK_DGRAM or SOCK_SEQPACKET"
        ):
            DgramNetwork(f"fd:{stream.fileno()}")
        with pytest.raises(PeerError, match="Transport endpoint is not connected"):
            DgramNetwork(f"fd:{loose.fileno()}")


def test_a_sequenced_socket_ends() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.set_inheritable(True)
    network = DgramNetwork(f"fd:{near.fileno()}")
    far.send(frame(1)[len(PLAIN) :])
    far.close()
    assert receive(network, 1) == [frame(1)]
    assert network.peers[0].recv() == []
    with pytest.raises(GoneError, match="its other end is closed"):
        network.check()
    network.remove()
    near.close()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("dgram:/q", "a UNIX socket needs one of its own: local=/PATH"),
        ("dgram:/q,local=127.0.0.1:5000", "a UNIX socket needs one of its own: local=/PATH"),
        (
            "dgram:127.0.0.1:5000",
            "UDP needs an address of this host, of the same version: local=ADDRESS:PORT",
        ),
        ("dgram:127.0.0.1:5000,local=[::1]:5000", "UDP needs an address of this host, of the same version"),
        ("dgram:127.0.0.1:5000,local=127.0.0.1", "UDP needs an address of this host"),
        ("dgram:239.1.2.3:5000,local=127.0.0.1:5000", "a group takes the IPv4 address of an interface"),
        ("dgram:[ff02::1%lo]:5000,local=127.0.0.1", "a group takes the IPv4 address of an interface"),
        ("dgram:fd:3,local=/q", "a descriptor has its addresses: leave out local="),
        ("dgram:/q,local=fd:3", "local='fd:3' is not a path.*: a descriptor is no address"),
        ("dgram:/q,local=q", "local='q' is not a path that begins with /, or ADDRESS:PORT"),
        ("dgram:/q,server", r"dgram has no option 'server' \(options: local\)"),
    ],
)
def test_specs_that_do_not_go_together(spec: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_spec(spec)
    assert str(caught.value).startswith(f"network '{spec}': ")


def test_a_spec(tmp_path: Path) -> None:
    spec = f"dgram:{tmp_path}/far,local={tmp_path}/near"
    network = open_network(parse_spec(spec), name="vif1.0")
    assert network.name == f"dgram:{tmp_path}/far"
    assert (tmp_path / "near").is_socket()
    network.remove()
    assert not (tmp_path / "near").exists()


def test_an_ipv6_group() -> None:
    """On the link that its address names, and on no other."""
    for near, far in (("eth0", "far0"), ("eth1", "far1")):
        veth(near, far)
        for link in (near, far):
            Path(f"/proc/sys/net/ipv6/conf/{link}/accept_dad").write_text("0")
            Path(f"/proc/sys/net/ipv6/conf/{link}/disable_ipv6").write_text("0")
            deadline = time.monotonic() + PATIENCE / 1000
            while "inet6 fe80" not in ip(f"addr show {link}"):
                assert time.monotonic() < deadline
    port = free_port(socket.AF_INET6)
    one, two, other = (DgramNetwork(f"[ff02::1234%{link}]:{port}") for link in ("eth0", "eth0", "eth1"))
    assert one.peers[0].send([frame(1)]) == (1, 0)
    assert receive(two, 1) == [frame(1)]
    for network in (one, two, other):
        assert network.peers[0].recv() == []
        network.remove()
