# SPDX-License-Identifier: Apache-2.0
"""A guest's own VXLAN over `packet:`: real TCP and UDP GSO pass between two kernels' tunnel ends, through the rings.

One namespace has the far end of the link that the backend reads, the other the guest's tap; each has a VXLAN on it.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from netback.frontend import Frontend
from netback.net.packet import PacketNetwork
from netback.net.tap import TapNetwork
from netback.platforms.emulated import Emulator
from tests.frontend.backend import HandBackend
from tests.net.namespace import await_up, ip, new_network, veth

SECONDS = 30.0
BYTES = 8 << 20
UDP_SEGMENT = 103
INSIDE = {"host": "198.51.100.1", "guest": "198.51.100.2"}
PATHS = {
    "v4": ({"host": "192.0.2.1", "guest": "192.0.2.2"}, 24, "noudpcsum"),
    "v4 summed": ({"host": "192.0.2.1", "guest": "192.0.2.2"}, 24, "udpcsum"),
    "v6": ({"host": "fd00::1", "guest": "fd00::2"}, 64, "udp6zerocsumtx udp6zerocsumrx"),
    "v6 summed": ({"host": "fd00::1", "guest": "fd00::2"}, 64, "noudp6zerocsumtx"),
}
OTHER = {"host": "guest", "guest": "host"}


@dataclass(frozen=True)
class End:
    """One side: a TCP listener and a UDP socket in its namespace, made while the thread was there."""

    tcp: socket.socket
    udp: socket.socket


def tunnel(side: str, link: str, path: str) -> None:
    """A VXLAN from `link` to the other side, with an address inside it."""
    outside, bits, options = PATHS[path]
    ip(f"link set {link} up")
    ip(f"address add {outside[side]}/{bits} dev {link}" + (" nodad" if bits == 64 else ""))
    near, far = outside[side], outside[OTHER[side]]
    ip(f"link add vxlan type vxlan id 9 local {near} remote {far} dstport 4789 dev {link} {options}")
    ip("link set vxlan up")
    ip(f"address add {INSIDE[side]}/24 dev vxlan")


def end(side: str) -> End:
    tcp = socket.create_server((INSIDE[side], 0))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((INSIDE[side], 0))
    for sock in (tcp, udp):
        sock.setblocking(False)
    return End(tcp, udp)


def client(side: str) -> socket.socket:
    made = socket.socket()
    made.setblocking(False)
    made.bind((INSIDE[side], 0))
    return made


@dataclass(frozen=True)
class Both:
    link: PacketNetwork
    tap: TapNetwork
    host: End
    guest: End
    callers: dict[str, socket.socket]


@contextmanager
def both_ends(path: str) -> Iterator[Both]:
    """The namespaces live as long as the sockets that were made in them."""
    with ExitStack() as undo:
        with new_network():
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("0")
            veth("near", "far")
            ip("link set far mtu 9000")
            ip("link set near mtu 9000")
            tunnel("host", "far", path)
            link = PacketNetwork("near")
            host, from_host = end("host"), client("host")
        with new_network():
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("0")
            tap = TapNetwork("eth0")
            ip("link set eth0 mtu 9000")
            tap.carrier(True)
            tunnel("guest", "eth0", path)
            await_up("eth0")
            guest, from_guest = end("guest"), client("guest")
        for closed in (link, tap, host.tcp, host.udp, guest.tcp, guest.udp, from_host, from_guest):
            undo.callback(closed.close)
        yield Both(link, tap, host, guest, {"host": from_host, "guest": from_guest})


@asynccontextmanager
async def served(tmp_path: Path, path: str) -> AsyncIterator[tuple[Both, HandBackend]]:
    with both_ends(path) as both, Emulator(tmp_path / "xen") as emulator:
        xen = emulator.directory
        async with (
            Frontend(xen, both.tap) as vif,
            HandBackend(xen, vif.guest.domid, network=both.link) as back,
        ):
            await asyncio.wait_for(vif.connected(), SECONDS)
            yield both, back
            await vif.close()


async def sent(caller: socket.socket, listener: socket.socket, data: bytes) -> bytes:
    """What the listener's side receives of `data`."""
    loop = asyncio.get_running_loop()
    _, (accepted, _) = await asyncio.gather(
        loop.sock_connect(caller, listener.getsockname()), loop.sock_accept(listener)
    )
    with accepted:
        accepted.setblocking(False)
        sending = asyncio.create_task(loop.sock_sendall(caller, data))
        got = bytearray()
        while len(got) < len(data):
            got += await loop.sock_recv(accepted, 1 << 18)
        await sending
    return bytes(got)


@pytest.mark.parametrize("path", PATHS)
async def test_tcp_passes_through_vxlan(tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    data = hashlib.shake_128(path.encode()).digest(BYTES)
    async with served(tmp_path_factory.mktemp("x"), path) as (both, back), asyncio.timeout(SECONDS):
        assert await sent(both.callers["host"], both.guest.tcp, data) == data
        assert await sent(both.callers["guest"], both.host.tcp, data) == data
        assert back.queue is not None
        counters = back.queue.counters
        assert counters["rx_segmented"] > 0
        assert counters["rx_dropped"] == 0


@pytest.mark.parametrize("path", PATHS)
async def test_udp_gso_passes_through_vxlan(tmp_path_factory: pytest.TempPathFactory, path: str) -> None:
    datagrams = [bytes([i]) * 1000 for i in range(20)]
    async with served(tmp_path_factory.mktemp("x"), path) as (both, back), asyncio.timeout(SECONDS):
        # TCP tries again until each end knows its neighbours; the kernel drops a datagram that waits for them too long
        assert await sent(both.callers["host"], both.guest.tcp, b"hello") == b"hello"
        both.host.udp.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        both.host.udp.sendto(b"".join(datagrams), both.guest.udp.getsockname())
        got = [await asyncio.get_running_loop().sock_recv(both.guest.udp, 2000) for _ in datagrams]
        assert got == datagrams
        assert back.queue is not None
        assert back.queue.counters["rx_segmented"] == 1
