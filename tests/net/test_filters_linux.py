# SPDX-License-Identifier: Apache-2.0
"""Filters beside Linux's TCP/IP: two namespaces, a tap in each, and a filter around the host's tap.

The relay between the two is a few lines of Python; each stack believes that the other is on its link.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from netback.abi.virtio_net import HEADER
from netback.dataplane.caps import EVERYTHING
from netback.dataplane.peers.peer import Peer
from netback.net.base import Network
from netback.net.filters import Addresses, Filters, count, parse_filters
from netback.net.packet import PacketNetwork
from netback.net.tap import TapNetwork

from .namespace import await_up, inside, ip, new_network, other_network, send_to

MAC = "00:16:3e:00:00:01"
BYTES = 8 << 20
CLIENT = f"""
import hashlib, socket, sys
data = bytes(range(256)) * {BYTES // 256}
with socket.create_connection(("192.0.2.1", 5001), timeout=30) as sock:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
    got = b"".join(iter(lambda: sock.recv(1 << 20), b""))
print(hashlib.sha256(got).hexdigest() == hashlib.sha256(data[::-1]).hexdigest())
"""


class Relay(threading.Thread):
    """Passes frames between the peers of the guest and of the host until it is stopped; counts those with GSO."""

    def __init__(self, guest: Peer, host: Peer) -> None:
        super().__init__()
        self.guest, self.host = guest, host
        self.gso = {"tx": 0, "rx": 0}
        self._end, self._told = os.pipe()

    def run(self) -> None:
        poll = select.poll()
        for fd in (self.guest.fd, self.host.fd, self._end):
            poll.register(fd, select.POLLIN)
        while self._end not in dict(poll.poll()):
            for way, source, target in (("tx", self.guest, self.host), ("rx", self.host, self.guest)):
                while frames := source.recv():
                    self.gso[way] += sum(HEADER.unpack_from(frame)[1] != 0 for frame in frames)
                    while frames:
                        done, _ = target.send(frames)
                        frames = frames[done:]

    def stop(self) -> None:
        os.close(self._told)
        self.join()
        os.close(self._end)


class Site:
    """A guest's stack behind filters."""

    def __init__(self, pid: int, host: TapNetwork, guest: TapNetwork) -> None:
        self.pid, self.host, self.guest = pid, host, guest
        self.peer: Peer = host.peers[0]
        self._relay: Relay | None = None

    def filter(
        self,
        *texts: str,
        ips: str | None = None,
        network: TapNetwork | None = None,
        others: Mapping[str, Network] | None = None,
    ) -> None:
        """Put these filters around the host's tap, or another one; `others` are networks that they name."""
        self.stop()
        filters = Filters(parse_filters(texts), Addresses.read(MAC, ips), others or {})
        self.peer = filters.wrap((network or self.host).peers[0])
        self._relay = Relay(self.guest.peers[0], self.peer)
        self._relay.start()

    def stop(self) -> dict[str, int]:
        """The GSO frames that passed."""
        if (relay := self._relay) is None:
            return {}
        self._relay = None
        relay.stop()
        return relay.gso

    def pings(self, *words: str) -> bool:
        command = [
            "nsenter",
            "-t",
            str(self.pid),
            "-n",
            "ping",
            "-q",
            "-c",
            "2",
            "-i",
            "0.05",
            "-W",
            "1",
            *words,
        ]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def site() -> Iterator[Site]:
    with ExitStack() as undo:
        undo.enter_context(new_network())
        pid = undo.enter_context(other_network())
        host, guest = TapNetwork("vif1.0"), TapNetwork("eth0")
        for network in (host, guest):
            undo.callback(network.remove)
            network.offloads(EVERYTHING)
        ip(f"link set eth0 address {MAC}")
        send_to("eth0", pid)
        for words in ("addr add 192.0.2.2/24 dev eth0", "link set eth0 up", "link set lo up"):
            inside(pid, f"ip {words}")
        ip("link set vif1.0 up")
        host.carrier(True)
        guest.carrier(True)
        made = Site(pid, host, guest)
        undo.callback(made.stop)
        yield made


def serve_once() -> tuple[socket.socket, threading.Thread]:
    """A server, in this namespace, that answers with what it got, backwards."""
    listener = socket.create_server(("192.0.2.1", 5001))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            data = b"".join(iter(lambda: connection.recv(1 << 20), b""))
            connection.sendall(data[::-1])

    thread = threading.Thread(target=serve)
    thread.start()
    return listener, thread


def tcp(pid: int) -> bool:
    """Whether 8 MiB each way arrive whole."""
    listener, thread = serve_once()
    with listener:
        done = subprocess.run(
            ["nsenter", "-t", str(pid), "-n", sys.executable, "-c", CLIENT],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        thread.join()
    return done.stdout == "True\n"


def tags_of(link: str, site: Site) -> set[str]:
    """The VLANs that tshark sees on a link while the guest pings; "" for a frame without a tag."""
    command = [
        "tshark",
        "-i",
        link,
        "-f",
        "",
        "-c",
        "4",
        "-a",
        "duration:10",
        "-T",
        "fields",
        "-e",
        "vlan.id",
        "-e",
        "eth.type",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as tshark:
        assert tshark.stderr is not None
        while "Capturing" not in tshark.stderr.readline():
            assert tshark.poll() is None
        assert site.pings("-c", "9", "192.0.2.1")
        out, _ = tshark.communicate()
    return {line.partition("\t")[0] for line in out.splitlines()}


@pytest.fixture
def trunk(site: Site) -> Iterator[TapNetwork]:
    """A tap whose other side, Linux's, leads to the host's stack through a packet socket and an access port of VLAN 10:
    this kernel may have no links of the kind `vlan`.

    Linux takes each tag out of its frame and puts it in again, and checks what a virtio_net_hdr says of such a frame.
    """
    with ExitStack() as undo:
        trunk = TapNetwork("trunk0")
        undo.callback(trunk.remove)
        trunk.offloads(EVERYTHING)
        ip("link set trunk0 up")
        trunk.carrier(True)
        await_up("trunk0")
        wire = PacketNetwork("trunk0")
        undo.callback(wire.close)
        far = Filters(parse_filters(["vlan,access=10"]), Addresses()).wrap(wire.peers[0])
        relay = Relay(far, site.host.peers[0])
        undo.callback(relay.stop)
        relay.start()
        ip("addr add 192.0.2.1/24 dev vif1.0")
        yield trunk


@pytest.mark.parametrize("offloads", [EVERYTHING, 0])
def test_an_access_port_under_linux(site: Site, trunk: TapNetwork, offloads: int) -> None:
    """The host reaches the guest in its VLAN alone; tshark sees the tag there. TCP with GSO and blank checksums, whole
    both ways; without offloads Linux segments the tagged frames for the guest.
    """
    site.filter("vlan,access=10", network=trunk)
    trunk.offloads(offloads)
    assert site.pings("192.0.2.1")
    assert tags_of("trunk0", site) == {"10"}
    assert tcp(site.pid)
    gso = site.stop()
    assert gso["tx"] > 10
    assert (gso["rx"] > 10) is bool(offloads)
    assert sum(count(site.peer).values()) == 0


def test_other_vlans_under_linux(site: Site, trunk: TapNetwork) -> None:
    """A port of another VLAN, and trunks: without a native VLAN nothing of an untagged guest passes."""
    for port, reaches in (
        ("access=11", False),
        ("trunk=10", False),
        ("trunk=10,native=11", False),
        ("trunk=11,native=10", True),
    ):
        site.filter(f"vlan,{port}", network=trunk)
        assert site.pings("192.0.2.1") is reaches


def test_a_guest_of_linux_that_takes_another_address(site: Site) -> None:
    """It is cut off, by ARP and by IP; with its own address it is back. Its IPv6 stack starts up: nothing of that is
    dropped.
    """
    ip("addr add 192.0.2.1/24 dev vif1.0")
    inside(site.pid, "sysctl -q -w net.ipv6.conf.eth0.disable_ipv6=0 net.ipv6.conf.eth0.addr_gen_mode=0")
    Path("/proc/sys/net/ipv6/conf/vif1.0/disable_ipv6").write_text("0")
    ip("addr add 2001:db8::ff/64 dev vif1.0 nodad")
    site.filter("antispoof", ips="192.0.2.2 2001:db8::1")
    inside(site.pid, "ip link set eth0 down")
    inside(site.pid, "ip link set eth0 up")
    inside(site.pid, "ip addr add 2001:db8::1/64 dev eth0")
    assert site.pings("192.0.2.1")
    assert tcp(site.pid)
    assert sum(count(site.peer).values()) == 0
    inside(site.pid, "ip addr add 192.0.2.3/24 dev eth0")
    assert not site.pings("-I", "192.0.2.3", "192.0.2.1")
    assert count(site.peer)["tx_antispoof_ipv4"] >= 2
    assert site.pings("-I", "192.0.2.2", "192.0.2.1")
    inside(site.pid, "ip addr flush dev eth0 scope global")
    inside(site.pid, "ip addr add 192.0.2.3/24 dev eth0")
    inside(site.pid, "ip neigh flush dev eth0")
    assert not site.pings("192.0.2.1")
    assert count(site.peer)["tx_antispoof_arp"] >= 1
    before = count(site.peer)["tx_antispoof_ipv6"] + count(site.peer)["tx_antispoof_nd"]
    inside(site.pid, "ip addr add 2001:db8::99/64 dev eth0 nodad")
    assert not site.pings("-I", "2001:db8::99", "2001:db8::ff")
    assert count(site.peer)["tx_antispoof_ipv6"] + count(site.peer)["tx_antispoof_nd"] > before


def test_a_guest_of_linux_with_another_mac_address(site: Site) -> None:
    ip("addr add 192.0.2.1/24 dev vif1.0")
    site.filter("antispoof")
    assert site.pings("192.0.2.1")
    inside(site.pid, "ip link set eth0 address 02:00:00:00:00:99")
    ip("neigh flush dev vif1.0")
    assert not site.pings("192.0.2.1")
    assert count(site.peer)["tx_antispoof_mac"] >= 1


def test_tcp_of_linux_over_a_bad_network(site: Site) -> None:
    """Everything arrives whole: Linux's checksum finds what was damaged, its TCP what is missing or twice there."""
    ip("addr add 192.0.2.1/24 dev vif1.0")
    for network in (site.host, site.guest):
        network.offloads(0)  # no GSO frame, which would be lost instead of damaged
    site.filter("faults,loss=0.5%,duplicate=1%,corrupt=1%,reorder=1%,seed=3")
    assert tcp(site.pid)
    counters = count(site.peer)
    for way in ("tx", "rx"):
        for what in ("lost", "duplicated", "corrupted", "reordered"):
            assert counters[f"{way}_faults_{what}"] > 5
    errors = inside(site.pid, "cat /proc/net/snmp")
    header, values = (line.split() for line in errors.splitlines() if line.startswith("Tcp:"))
    assert int(values[header.index("InCsumErrors")]) > 0


def test_a_mirror_under_linux(site: Site) -> None:
    """tshark sees the copies at another tap, of both directions."""
    ip("addr add 192.0.2.1/24 dev vif1.0")
    monitor = TapNetwork("mon0")
    try:
        ip("link set mon0 up")
        monitor.carrier(True)
        await_up("mon0")
        site.filter("mirror,to=tap:mon0", others={"tap:mon0": monitor})
        command = ["tshark", "-i", "mon0", "-f", "icmp", "-c", "4", "-a", "duration:10", "-T", "fields"]
        with subprocess.Popen(
            [*command, "-e", "ip.src"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as tshark:
            assert tshark.stderr is not None
            while "Capturing" not in tshark.stderr.readline():
                assert tshark.poll() is None
            assert site.pings("-c", "9", "192.0.2.1")
            out, _ = tshark.communicate()
        assert set(out.split()) == {"192.0.2.1", "192.0.2.2"}
        assert tcp(site.pid)
    finally:
        site.stop()
        monitor.remove()
