# SPDX-License-Identifier: Apache-2.0
"""L2TPv3 sessions with a host that writes RFC 3931's header itself, and everything that it can do wrong."""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from netback.errors import ConfigError, PeerError
from netback.net.l2tpv3 import L2tpv3Network, read_end
from netback.net.spec import open_network, parse_spec

from .contract import FrameNetwork, Site, frame, receive
from .far import PLAIN, await_readable
from .namespace import ip, new_network
from .test_dgram import free_port

L2TP = 115


@dataclass
class FarHost:
    """The other end. `session`, `cookie`: of what it sends; `words`: bytes of the counter."""

    socket: socket.socket
    udp: bool
    strips: int
    session: int = 7
    cookie: bytes = b""
    words: int = 0
    headers: list[bytes] = field(default_factory=list)
    """Of the messages that came."""
    counter: int = 100

    def send(self, message: bytes) -> None:
        """Send a frame; its virtio_net_hdr stays here."""
        self.put(self.header() + message[len(PLAIN) :])

    def header(self) -> bytes:
        self.counter += 1
        start = struct.pack(">HH", 3, 0) if self.udp else b""
        key = struct.pack(">I", self.session) + self.cookie
        return start + key + struct.pack(">I", self.counter)[: self.words]

    def put(self, data: bytes) -> None:
        self.socket.send(data)

    def recv(self) -> bytes:
        await_readable(self.socket.fileno())
        data = self.socket.recv(70000)[self.strips :]
        size = 4 * self.udp + 4 + len(self.cookie) + self.words
        self.headers.append(data[:size])
        return PLAIN + data[size:]

    def close(self) -> None:
        self.socket.close()


@dataclass(frozen=True)
class Way:
    """A kind of session: both ends' addresses, and its options in a spec."""

    here: str
    there: str
    udp: bool
    options: str = ""
    cookie: str = ""
    words: int = 0

    def join(self) -> tuple[L2tpv3Network, FarHost]:
        family = socket.AF_INET6 if ":" in self.here else socket.AF_INET
        kind, protocol = (socket.SOCK_DGRAM, 0) if self.udp else (socket.SOCK_RAW, L2TP)
        sock = socket.socket(family, kind, protocol)
        sock.bind((self.there, 0))
        here = free_port(family) if self.udp else 0
        ends = [self.end(self.there, sock.getsockname()[1]), self.end(self.here, here)]
        network = open_network(
            parse_spec(f"l2tpv3:{ends[0]},local={ends[1]},session=7{self.options}"), name="vif1.0"
        )
        assert isinstance(network, L2tpv3Network)
        sock.connect((self.here, here))
        strips = 0 if self.udp or family == socket.AF_INET6 else 20
        return network, FarHost(sock, self.udp, strips, cookie=bytes.fromhex(self.cookie), words=self.words)

    def end(self, host: str, port: int) -> str:
        if not self.udp:
            return host
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


COOKIE = "1122334455667788"
WAYS = {
    "udp": Way("127.0.0.1", "127.0.0.1", True),
    "udp, everything": Way("127.0.0.1", "127.0.0.1", True, f",cookie={COOKIE},counter=on", COOKIE, 4),
    "udp, ipv6": Way("::1", "::1", True, ",cookie=11223344,counter=pin", "11223344", 4),
    "ip": Way("127.0.0.1", "127.0.0.2", False, ",cookie=11223344", "11223344"),
    "ip, ipv6": Way("fd00::1", "fd00::2", False, f",cookie={COOKIE},counter=on", COOKIE, 4),
}


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with new_network():
        ip("link set lo up")
        for host in ("fd00::1", "fd00::2"):
            ip(f"addr add {host}/128 dev lo nodad")
            await_route(host)
        yield


def await_route(host: str) -> None:
    """Wait until an address receives: Linux adds its route later, by a work queue (addrconf_dad_work)."""
    for _ in range(100):
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock, suppress(OSError):
            sock.settimeout(0.1)
            sock.bind((host, 0))
            sock.connect(sock.getsockname())
            sock.send(b"x")
            if sock.recv(1):
                return
    raise AssertionError(f"{host} does not receive")


@pytest.fixture(params=WAYS)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    network, far = WAYS[request.param].join()
    yield Site(network, far)  # type: ignore[arg-type]
    network.remove()
    far.close()


class TestL2tpv3(FrameNetwork):
    """By each kind of session."""

    def test_is_up_and_fine(self, site: Site) -> None:
        assert site.network.up
        assert site.network.check() is False
        assert site.network.queued()["bytes_max"] > 100_000
        assert site.network.drops() == {"rx_overflow": 0, "rx_wrong_session": 0}
        site.network.close()
        assert not site.network.up
        assert site.network.queued() == {}

    def test_the_header_is_rfc_3931_s(self, site: Site) -> None:
        far = site.far
        assert isinstance(far, FarHost)
        for number in range(70):
            site.network.peers[0].send([frame(number)])
            assert far.recv() == frame(number)
        for number, header in enumerate(far.headers, 1):
            if far.udp:
                assert header[:4] == b"\0\3\0\0"
                header = header[4:]
            assert header[:4] == b"\0\0\0\7"
            assert header[4 : 4 + len(far.cookie)] == far.cookie
            if far.words:
                (counter,) = struct.unpack(">I", header[-4:])
                assert counter == (0 if len(far.cookie) == 4 else number)

    def test_queues_share_the_counter(self, site: Site) -> None:
        (peer,) = site.network.peers
        further = peer.duplicate(peer.fd)
        for number, each in enumerate((peer, further, peer)):
            assert each.send([frame(number)] * 2) == (2, 0)
            assert [site.far.recv() for _ in range(2)] == [frame(number)] * 2
        assert isinstance(site.far, FarHost)
        assert site.far.headers == sorted(site.far.headers)

    def test_frames_of_many_pieces_and_a_full_burst(self, site: Site) -> None:
        sent = [frame(n, 60 + 20 * n) for n in range(64)]
        assert site.network.peers[0].send(sent) == (64, 0)
        assert [site.far.recv() for _ in sent] == sent

    def test_other_sessions_and_cookies_are_counted_and_dropped(self, site: Site) -> None:
        """Each byte of the key counts; so do control messages and other versions."""
        far = site.far
        assert isinstance(far, FarHost)
        good = bytearray(far.header())
        wrong = []
        for at in range(4 * far.udp, len(good) - far.words):
            bad = bytearray(good)
            bad[at] ^= 0x10
            wrong.append(bytes(bad))
        if far.udp:
            wrong += [b"\x80\3" + good[2:], b"\0\2" + good[2:]]
        for header in wrong:
            far.put(header + bytes(60))
        for size in range(1, len(good)):
            far.put(bytes(good[:size]))
        far.send(frame(1))
        assert receive(site.network, 1) == [frame(1)]
        assert site.network.drops()["rx_wrong_session"] == len(wrong) + len(good) - 1
        far.put(bytes(good))  # a header alone
        far.send(frame(2))
        assert receive(site.network, 1) == [frame(2)]
        assert site.network.drops()["rx_wrong_session"] == len(wrong) + len(good) - 1

    def test_any_bytes(self, site: Site) -> None:
        far, chance = site.far, random.Random(3931)
        assert isinstance(far, FarHost)
        for _ in range(500):
            far.put(far.header()[: chance.randrange(1, 24)] + chance.randbytes(chance.randrange(80)))
            site.network.peers[0].recv()
        site.network.drain()
        far.send(frame(1))
        assert receive(site.network, 1) == [frame(1)]

    def test_a_host_that_vanishes(self, site: Site) -> None:
        """ICMP tells of earlier frames; later ones are sent all the same."""
        site.far.close()  # type: ignore[union-attr]
        for _ in range(5):
            assert site.network.peers[0].send([frame(1)] * 3)[0] == 3
            assert site.network.peers[0].recv() == []
            assert not site.network.peers[0].down
        assert site.network.check() is False

    def test_the_longest_frame(self, site: Site) -> None:
        far = site.far
        assert isinstance(far, FarHost)
        longest = 65535 - (0 if ":" in far.socket.getsockname()[0] else 20) - 8 * far.udp - len(far.header())
        sent = [frame(1, longest), frame(2, longest + 1), frame(3)]
        assert site.network.peers[0].send(sent) == (3, 1)
        assert [far.recv(), far.recv()] == [sent[0], sent[2]]


def test_different_keys_of_both_directions() -> None:
    ports = [free_port(), free_port()]
    ends = [f"127.0.0.1:{port}" for port in ports]
    one = open_network(
        parse_spec(
            f"l2tpv3:{ends[0]},local={ends[1]},session=1,cookie=11111111,rx_session=2,rx_cookie={COOKIE}"
        ),
        name="vif1.0",
    )
    two = open_network(
        parse_spec(
            f"l2tpv3:{ends[1]},local={ends[0]},session=2,cookie={COOKIE},rx_session=1,rx_cookie=11111111"
        ),
        name="vif2.0",
    )
    for sender, receiver in ((one, two), (two, one)):
        assert sender.peers[0].send([frame(1)]) == (1, 0)
        assert receive(receiver, 1) == [frame(1)]
    for network in (one, two):
        network.remove()


def test_two_sessions_over_ip_hear_themselves_alone() -> None:
    """Each raw socket gets the packets of both; the other's are counted."""
    one, two = (
        L2tpv3Network("127.0.0.2", local=read_end("127.0.0.1"), session=session) for session in (1, 2)
    )
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, L2TP) as far:
        far.bind(("127.0.0.2", 0))
        for number in (1, 2):
            far.sendto(struct.pack(">I", number) + frame(number)[len(PLAIN) :], ("127.0.0.1", 0))
        for number, network in ((1, one), (2, two)):
            assert receive(network, 1) == [frame(number)]
    for network in (one, two):
        network.drain()
        network.remove()


# ---- what cannot be opened


def test_without_permission_for_raw_sockets() -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(ConfigError, match=r"l2tpv3:127\.0\.0\.2: L2TP over IP needs CAP_NET_RAW"):
            L2tpv3Network("127.0.0.2", local=read_end("127.0.0.1"), session=1)
    finally:
        os.seteuid(0)


def test_addresses_that_cannot_be_had() -> None:
    for ends in (("192.0.2.1", "192.0.2.2"), ("192.0.2.1:5000", "192.0.2.2:5000")):
        with pytest.raises(PeerError, match=f"l2tpv3:{ends[0]}: Cannot assign requested address"):
            L2tpv3Network(ends[0], local=read_end(ends[1]), session=1)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("l2tpv3", "it names no host: write for example 'l2tpv3:192.0.2.1:1701,local"),
        ("l2tpv3:host", "'host' is neither ADDRESS nor ADDRESS:PORT, in numbers"),
        ("l2tpv3:host:1701", "'host' is not an IPv4 address in numbers"),
        ("l2tpv3:127.0.0.1:0", "with a port from 1 to 65535"),
        ("l2tpv3:127.0.0.1", "it needs an address of this host: local="),
        ("l2tpv3:127.0.0.1,local=127.0.0.1:1701,session=1", "both ends need the same"),
        ("l2tpv3:127.0.0.1,local=::1,session=1", "both ends need the same"),
        ("l2tpv3:127.0.0.1,local=127.0.0.1", "it needs the session's number: session=NUMBER"),
        ("l2tpv3:127.0.0.1,local=127.0.0.1,session=0", "session='0' is not a number from 1 to 4294967295"),
        ("l2tpv3:127.0.0.1,local=127.0.0.1,session=4294967296", "is not a number from 1 to 4294967295"),
        ("l2tpv3:127.0.0.1,cookie=112233", "cookie='112233' is not 8 or 16 hexadecimal digits"),
        ("l2tpv3:127.0.0.1,cookie=0x112233", "is not 8 or 16 hexadecimal digits"),
        ("l2tpv3:127.0.0.1,rx_cookie=AABBCCDD", "is not 8 or 16 hexadecimal digits, in lower case"),
        ("l2tpv3:127.0.0.1,counter", "option counter needs a value: on or pin"),
        ("l2tpv3:127.0.0.1,udp", "l2tpv3 has no option 'udp'"),
    ],
)
def test_bad_specs(spec: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_spec(spec)
    assert str(caught.value).startswith(f"network '{spec}': ")
