# SPDX-License-Identifier: Apache-2.0
"""What every kind of network must do; each kind's test file inherits the parts that apply to it.

A subclass gives the fixture `site`: an open network whose link is up, with carrier, all offloads on, and its far side.
"""

import os
import select
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import pytest

from netback.abi import virtio_net
from netback.abi.virtio_net import HEADER
from netback.dataplane.caps import EVERYTHING
from netback.dataplane.peers.antispoof import AntispoofPeer
from netback.net.base import Network
from netback.net.filters import Addresses, Filters, parse_filters
from netback.net.null import NullNetwork

from ..dataplane.offload_frames import build, with_pseudo
from ..offload_oracle import TCP
from .far import PLAIN, FarLink, FarSocket, await_readable
from .namespace import await_up, ip

OURS = b"\x88\xb5"
"""IEEE 802 local experimental ethertype: no other frames here have it."""


@dataclass
class Site:
    """A network under test."""

    network: Network
    far: FarLink | FarSocket | None
    choke: Callable[[], object] = bool
    """Make the far side accept nothing from now on."""
    release: Callable[[], object] = bool
    """Make it read what is queued."""


def frame(number: int, size: int = 60) -> bytes:
    """A numbered broadcast frame, with a virtio_net_hdr that requests nothing."""
    return PLAIN + b"\xff" * 6 + b"\x02\0\0\0\0\x01" + OURS + bytes([number % 256]) * (size - 14)


def big_tcp(version: int) -> bytes:
    """As much TCP as a link accepts in one frame (gso_max_size, 64 KiB), to be segmented behind it."""
    l4 = 14 + (20 if version == 4 else 40)
    payload = bytes(i % 251 for i in range(65535 - 100))
    whole = build(version, TCP, payload)
    addresses = whole[26:34] if version == 4 else whole[22:54]
    kind = virtio_net.GSO_TCPV4 if version == 4 else virtio_net.GSO_TCPV6
    header = HEADER.pack(virtio_net.F_NEEDS_CSUM, kind, l4 + 20, 1400, l4, 16)
    return header + with_pseudo(whole, l4, TCP, addresses)


def receive(network: Network, count: int) -> list[bytes]:
    """Read so many frames, in any number of reads."""
    frames: list[bytes] = []
    while len(frames) < count:
        await_readable(network.peers[0].fd)
        frames += network.peers[0].recv(count - len(frames))
    return frames


def fill(network: Network) -> int:
    """Send until the network accepts no more; returns the number of frames. To one address, since a broadcast would be
    copied.
    """
    message = PLAIN + b"\x02\0\0\0\0\x77" + frame(0, 1000)[16:]
    for sent in range(100_000):
        if network.peers[0].send([message]) == (0, 0):
            return sent
    raise AssertionError("it is never full")


class AnyNetwork:
    """For every kind, including the one without a far side."""

    def test_takes_frames_in_bursts(self, site: Site) -> None:
        assert site.network.peers[0].send([frame(n) for n in range(20)]) == (20, 0)
        assert not site.network.peers[0].blocked

    def test_gives_nothing_when_nothing_came(self, site: Site) -> None:
        assert site.network.peers[0].recv() == []
        assert not site.network.peers[0].closed

    def test_is_told_any_offloads_and_carrier(self, site: Site) -> None:
        for caps in range(EVERYTHING + 1):
            site.network.offloads(caps)
        for on in (False, True, True):
            site.network.carrier(on)

    def test_counts_no_drops_before_there_are_any(self, site: Site) -> None:
        assert set(site.network.drops().values()) <= {0}

    def test_ends_any_number_of_times(self, site: Site) -> None:
        for _ in range(2):
            site.network.close()
        for _ in range(2):
            site.network.remove()
        assert site.network.name


class FrameNetwork(AnyNetwork):
    """Frames go both ways, whole, unchanged and in order."""

    def test_frames_out(self, site: Site) -> None:
        sent = [frame(n, 60 + n) for n in range(20)]
        assert site.network.peers[0].send(sent) == (20, 0)
        assert [site.far.recv() for _ in sent] == sent

    def test_frames_in(self, site: Site) -> None:
        sent = [frame(n, 60 + n) for n in range(20)]
        for message in sent:
            site.far.send(message)
        assert receive(site.network, 20) == sent

    def test_drain_takes_what_waits_and_no_more(self, site: Site) -> None:
        for n in range(7):
            site.far.send(frame(n))
        drained = 0
        while drained < 7:  # the kernel may hand them over a little later
            await_readable(site.network.peers[0].fd)
            drained += site.network.drain()
        assert drained == 7
        assert site.network.drain() == 0
        site.far.send(frame(9))
        assert receive(site.network, 1) == [frame(9)]


class OffloadNetwork:
    """A virtio_net_hdr with requests passes both ways, on frames of 64 KiB."""

    @pytest.mark.parametrize("version", [4, 6])
    def test_gso_out(self, site: Site, version: int) -> None:
        assert site.network.peers[0].send([big_tcp(version)]) == (1, 0)
        got = site.far.recv()
        assert got[HEADER.size :] == big_tcp(version)[HEADER.size :]
        assert asks(got) == asks(big_tcp(version))

    @pytest.mark.parametrize("version", [4, 6])
    def test_gso_in(self, site: Site, version: int) -> None:
        site.network.offloads(EVERYTHING)
        site.far.send(big_tcp(version))
        (got,) = receive(site.network, 1)
        assert got[HEADER.size :] == big_tcp(version)[HEADER.size :]
        assert asks(got) == asks(big_tcp(version))


def asks(message: bytes) -> tuple[int, ...]:
    """The header's requests; its header length is a hint that the kernel may round up."""
    flags, kind, _, *rest = HEADER.unpack_from(message)
    return flags, kind, *rest


class FillableNetwork:
    """A network that reports when it is full, and when no longer."""

    def test_backpressure(self, site: Site) -> None:
        site.choke()
        poll = select.poll()
        poll.register(site.network.peers[0].fd, select.POLLOUT)
        assert fill(site.network) > 20
        assert site.network.peers[0].blocked
        assert poll.poll(0) == []
        site.release()
        assert poll.poll(10_000)
        assert site.network.peers[0].send([frame(1)]) == (1, 0)
        assert not site.network.peers[0].blocked


class RefusingNetwork:
    """A network whose kernel link refuses frames while it is down or gone."""

    def test_link_down_refuses_and_comes_back(self, site: Site) -> None:
        ip(f"link set {site.network.name} down")
        assert site.network.peers[0].send([frame(1), frame(2)]) == (2, 2)
        assert not site.network.peers[0].blocked
        ip(f"link set {site.network.name} up")
        await_up(site.network.name)
        site.network.peers[0].send([frame(3)])  # a packet socket keeps the error for the next call
        assert site.network.peers[0].send([frame(4)]) == (1, 0)
        assert not site.network.peers[0].closed

    def test_a_removed_link_refuses(self, site: Site) -> None:
        name = site.network.name
        ip(f"link del {name}")
        assert site.network.peers[0].send([frame(1)]) == (1, 1)
        assert not site.network.peers[0].blocked
        assert site.network.name == name
        site.network.carrier(False)
        site.network.remove()


class LinkNetwork:
    """A network on a kernel link, which other programs rename, set down and remove."""

    def test_follows_a_rename(self, site: Site) -> None:
        before = site.network.name
        ip(f"link set {before} name other0")
        assert site.network.name == "other0"
        assert site.network.peers[0].send([frame(1)]) == (1, 0)
        assert site.far.recv() == frame(1)

    def test_knows_the_mtu(self, site: Site) -> None:
        assert site.network.mtu == 1500
        ip(f"link set {site.network.name} mtu 9000")
        assert site.network.mtu == 9000
        ip(f"link del {site.network.name}")
        assert site.network.mtu is None

    def test_knows_whether_its_link_is_up(self, site: Site) -> None:
        assert site.network.up
        ip(f"link set {site.network.name} down")
        assert not site.network.up
        ip(f"link set {site.network.name} up")
        ip(f"link del {site.network.name}")
        assert not site.network.up

    def test_is_unchanged_while_its_link_is_there(self, site: Site) -> None:
        assert site.network.check() is False
        ip(f"link set {site.network.name} name other0")
        assert site.network.check() is False
        assert site.network.follows == {socket.if_nametoindex("other0")}
        site.network.close()
        assert site.network.check() is False

    def test_shows_any_name_in_printable_characters(self, site: Site) -> None:
        subprocess.run(["ip", "link", "set", site.network.name, "name", b"a\x1b\xff\xc3\xbc"], check=True)
        assert site.network.name == r"a\x1b\udcff\xfc"
        assert site.network.mtu == 1500


STACKS = {
    "antispoof": ("antispoof", "antispoof"),
    "vlan": ("antispoof", "vlan,access=7"),
    "faults": ("faults,loss=0%", "antispoof"),
    "mirror": ("mirror,to=null", "antispoof"),
}
"""Two filters of which each lets the contract's frames pass, by name."""
TAG = b"\x81\0\0\x07"
ADDRESSES = Addresses(frame(0)[16:22])
"""Those of the sender of the contract's frames."""


class Filtered:
    """A network with two filters around its peers."""

    def __init__(self, network: Network, stack: Sequence[str]) -> None:
        self._network = network
        filters = Filters(parse_filters(stack), ADDRESSES, {"null": NullNetwork()})
        self.peers = tuple(map(filters.wrap, network.peers))

    def __getattr__(self, name: str) -> object:
        return getattr(self._network, name)


class Tagged:
    """The far side of an access port: takes the tag away and puts it on."""

    def __init__(self, far: FarLink | FarSocket) -> None:
        self._far = far

    def send(self, message: bytes) -> None:
        self._far.send(message[:22] + TAG + message[22:])

    def recv(self) -> bytes:
        message = self._far.recv()
        assert message[22:26] == TAG
        return message[:22] + message[26:]

    def __getattr__(self, name: str) -> object:
        return getattr(self._far, name)


class FilteredNetwork(FrameNetwork):
    """The same through filters, for every kind of filter that may let frames pass."""

    @pytest.fixture(params=STACKS)
    def stack(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def site(self, site: Site, stack: str) -> Site:
        network = cast(Network, Filtered(site.network, STACKS[stack]))
        far = Tagged(site.far) if stack == "vlan" and site.far else site.far
        return replace(site, network=network, far=cast(FarLink, far))

    def test_filters_change_nothing_of_their_peer(self, site: Site) -> None:
        for peer in site.network.peers:
            assert peer.recv() == []  # a device's pair is taken by the first call
            inner = peer.inner.inner  # type: ignore[attr-defined]
            assert (peer.fd, peer.caps, peer.closed) == (inner.fd, inner.caps, inner.closed)
            fd = os.dup(peer.fd) if peer.fd >= 0 else -1
            duplicate = peer.duplicate(fd)
            assert duplicate.send([frame(1)]) == (1, 0)
            assert site.far is None or site.far.recv() == frame(1)
            del duplicate
            if fd >= 0:
                os.close(fd)

    def test_what_a_filter_drops_is_done(self, site: Site) -> None:
        spoofed = PLAIN + b"\xff" * 6 + b"\x02\0\0\0\0\x66" + frame(3)[22:]
        others = [frame(1), spoofed, frame(2), spoofed, spoofed, frame(3)]
        if isinstance(site.network.peers[0], AntispoofPeer):
            assert site.network.peers[0].send(others) == (6, 0)
            assert [site.far.recv() for _ in range(3)] == [frame(1), frame(2), frame(3)]
