# SPDX-License-Identifier: Apache-2.0
"""offload against a foreign witness: the Linux kernel completes and cuts the same frames, bit for bit.

A thread enters a network namespace of its own, makes a tap there that takes no offload, and sends frames with
a virtio_net_hdr on a packet socket: what the kernel must do before the tap's reader sees them is what offload
does. The namespace lives as long as the two descriptors.

Where the kernel differs: the identification of IPv6 fragments (it draws them at random); padding (it sums
and cuts up to the frame's end, not the packet's); fragments behind IPv6 extension headers, whose offsets it
counts up by the extensions too, so that no receiver can join them; and TCP frames that fit one segment only
because their options do not count: it drops them.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from netback.abi import virtio_net
from netback.dataplane import offload
from tests import offload_oracle as oracle
from tests.dataplane import offload_frames as make
from tests.offload_oracle import TCP, UDP, Header, number

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
SIOCSIFFLAGS, SIOCSIFMTU, IFF_UP = 0x8914, 0x8922, 1
SOL_PACKET, PACKET_VNET_HDR = 263, 15
NAME = b"witness"
ALL_CAPS = 15
MARK = make.MACS + b"\x88\xb5the end of what one frame became"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A packet socket and the tap behind it."""

    tap: int
    packet: socket.socket

    def frames(self, frame: bytes, header: Header) -> list[bytes]:
        """The output for one input frame; other traffic of the namespace is recognised by its addresses."""
        self.packet.send(virtio_net.HEADER.pack(*header) + frame)
        self.packet.send(virtio_net.HEADER.pack(*oracle.NO_HEADER) + MARK)
        got = []
        while (one := self.next()) != MARK:
            if one.startswith(make.MACS):
                got.append(one)
        return got

    def next(self) -> bytes:
        assert select.select([self.tap], [], [], 10)[0], "the kernel sent nothing"
        return os.read(self.tap, 70000)


def enter_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET): this test needs root")


def make_kernel() -> Kernel:
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", NAME, IFF_TAP | IFF_NO_PI))
    packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    packet.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    fcntl.ioctl(packet, SIOCSIFMTU, struct.pack("16si20x", NAME, 9000))
    fcntl.ioctl(packet, SIOCSIFFLAGS, struct.pack("16sH22x", NAME, IFF_UP))
    packet.bind((NAME.decode(), 0))
    return Kernel(tap, packet)


T = TypeVar("T")


def apart(make: Callable[[], T]) -> T:
    """Call `make` in a thread with a network namespace of its own, which lives as long as what it opened there."""
    made: list[T | OSError] = []

    def run() -> None:
        try:
            enter_namespace()
            made.append(make())
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    made = apart(make_kernel)
    yield made
    made.packet.close()
    os.close(made.tap)


def from_guest(frame: bytes, gso_type: int = 0, gso_size: int = 0) -> tuple[bytes, Header]:
    """The frame as the backend sends it to a peer that accepts everything."""
    work = bytearray(frame)
    verdict, header, _ = offload.to_virtio(
        work, csum_blank=True, gso_type=gso_type, gso_size=gso_size, caps=ALL_CAPS
    )
    assert verdict == offload.PASS
    return bytes(work), header


def completed(frame: bytes, header: Header) -> bytes:
    out = bytearray(frame)
    offload.complete(out, header)
    return bytes(out)


HEADS = {
    "plain": (b"", b"", ()),
    "tagged": (make.C_TAG, b"", ()),
    "QinQ": (make.S_TAG + make.C_TAG, b"", ()),
    "options": (b"", make.RECORD_ROUTE, (make.HOP_BY_HOP, make.USED_ROUTE)),
    "tagged options": (make.C_TAG, make.RECORD_ROUTE, (make.OPTIONS,)),
}


def with_head(version: int, protocol: int, body: bytes, head: str, ident: int = 0x1234) -> bytes:
    tags, options, extensions = HEADS[head]
    if version == 4:
        return make.ethernet(make.ipv4(body, protocol, options=options, ident=ident), tags=tags)
    return make.ethernet(make.ipv6(body, protocol, extensions=extensions), tags=tags)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_checksums_are_completed_equally(kernel: Kernel, version: int, protocol: int, head: str) -> None:
    body = make.tcp(b"seven b", options=make.TIMESTAMPS) if protocol == TCP else make.udp(b"seven b")
    frame, header = from_guest(with_head(version, protocol, body, head))
    assert kernel.frames(frame, header) == [completed(frame, header)]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("version", [4, 6])
def test_tcp_is_segmented_equally(kernel: Kernel, version: int, head: str) -> None:
    """CWR only first, FIN and PSH only last; identifications and sequence numbers that wrap."""
    body = make.tcp(bytes(range(256)) * 20, options=make.TIMESTAMPS, flags=0xFF & ~6, seq=2**32 - 3000)
    frame = with_head(version, TCP, body, head, ident=0xFFFE)
    frame, header = from_guest(frame, 1 if version == 4 else 2, 1000)
    ecn = (header[0], header[1] | oracle.GSO_ECN, *header[2:])
    cut = kernel.frames(frame, ecn)
    assert len(cut) == 6
    assert cut == offload.segment(frame, ecn)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("version", [4, 6])
def test_udp_is_segmented_equally(kernel: Kernel, version: int, head: str) -> None:
    frame, header = from_guest(with_head(version, UDP, make.udp(bytes(range(256)) * 20), head))
    header = (1, oracle.GSO_UDP_L4, header[4] + 8, 1000, *header[4:])
    cut = kernel.frames(frame, header)
    assert len(cut) == 6
    assert cut == offload.segment(frame, header)


@pytest.mark.parametrize(
    ("version", "head"), [*((4, head) for head in HEADS), (6, "plain"), (6, "tagged"), (6, "QinQ")]
)
def test_udp_is_fragmented_equally(kernel: Kernel, version: int, head: str) -> None:
    frame, header = from_guest(with_head(version, UDP, make.udp(bytes(range(256)) * 20), head))
    header = (1, oracle.GSO_UDP, header[4] + 8, 1000, *header[4:])
    ours, cut = offload.segment(frame, header), kernel.frames(frame, header)
    assert len(cut) == 6
    if version == 6:
        at = header[4] + 4
        assert len({one[at : at + 4] for one in cut}) == 1
        cut = [one[:at] + ours[0][at : at + 4] + one[at + 4 :] for one in cut]
    assert cut == ours


def test_udp_checksum_of_zero_equally(kernel: Kernel) -> None:
    for version in (4, 6):
        frame, header = from_guest(make.build(version, UDP, b"\0\0ab"))
        at = header[4] + 8
        missing = number(completed(frame, header), at - 2)
        frame = frame[:at] + missing.to_bytes(2, "big") + frame[at + 2 :]
        (sent,) = kernel.frames(frame, header)
        assert sent == completed(frame, header)
        assert number(sent, at - 2) == 0xFFFF


def test_inner_checksum_of_a_tunnel_equally(kernel: Kernel) -> None:
    inner, header = from_guest(make.build(6, TCP, b"inside"))
    frame = make.ethernet(make.ipv4(make.udp(bytes([8, 0, 0, 0, 0, 0, 7, 0]) + inner, ports=(5, 4789)), UDP))
    header = (1, 0, 0, 0, len(frame) - len(inner) + header[4], 16)
    assert kernel.frames(frame, header) == [completed(frame, header)]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    version=st.sampled_from([4, 6]),
    head=st.sampled_from(list(HEADS)),
    payload=st.integers(1, 20000),
    size=st.integers(100, 1400),
    flags=st.integers(0, 255),
    options=st.sampled_from([b"", make.TIMESTAMPS]),
    seq=st.integers(0, 2**32 - 1),
)
def test_any_tcp_segmented_equally(
    kernel: Kernel, version: int, head: str, payload: int, size: int, flags: int, options: bytes, seq: int
) -> None:
    assume(payload > size or payload + len(options) <= size)
    body = make.tcp(bytes(i * 7 & 255 for i in range(payload)), options=options, flags=flags, seq=seq)
    frame, header = from_guest(with_head(version, TCP, body, head, ident=seq & 0xFFFF))
    header = (1, 1 if version == 4 else 4, header[4] + 20 + len(options), size, *header[4:])
    assert kernel.frames(frame, header) == offload.segment(frame, header)


# --- Linux' own tunnels: what a packet socket reads of a GSO frame, beside what the kernel cuts the same frame into


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A VXLAN over one end of a cable; at its other end a packet socket, and a bridge to a tap without offloads."""

    vxlan: socket.socket
    near: socket.socket
    far: socket.socket
    tap: int

    def pass_through(self, frame: bytes, header: Header) -> tuple[bytes, Header, list[bytes]]:
        """Send a frame into the tunnel: what leaves it as one frame, its header, and what the kernel makes of that."""
        self.vxlan.send(virtio_net.HEADER.pack(*header) + frame)
        self.near.send(virtio_net.HEADER.pack(*oracle.NO_HEADER) + MARK)
        whole: list[bytes] = []
        while (one := self.read())[10:] != MARK:
            if one[24:].find(frame[:12]) >= 0:
                whole.append(one)
        cut: list[bytes] = []
        while (one := os.read(self.tap, 70000)) != MARK:
            if one.find(frame[:12]) >= 0:
                cut.append(one)
        (only,) = whole
        numbers = virtio_net.HEADER.unpack(only[: virtio_net.HEADER.size])
        return only[virtio_net.HEADER.size :], numbers, cut

    def read(self) -> bytes:
        assert select.select([self.far], [], [], 10)[0], "the kernel sent nothing"
        return self.far.recv(1 << 20)


def packet_socket(link: str, protocol: int = 0) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    made.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    made.bind((link, protocol))
    return made


TUNNEL = """
link add near type veth peer name far
link add bridge type bridge
link add vxlan type vxlan id 9 local {a} remote {b} dstport 4789 dev near {options}
address add {a}/{bits}
link set near up
link set far master bridge up
link set witness master bridge up
link set bridge up
link set vxlan up
neighbour replace {b} lladdr 02:00:00:00:00:09 dev near
"""
OUTER = {
    4: {"a": "192.0.2.1", "b": "192.0.2.2", "bits": "24 dev near"},
    6: {"a": "fd00::1", "b": "fd00::2", "bits": "64 dev near nodad"},
}


def make_tunnel(version: int, options: str) -> Tunnel:
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", NAME, IFF_TAP | IFF_NO_PI))
    for line in TUNNEL.strip().format(**OUTER[version], options=options).splitlines():
        subprocess.run(["ip", *line.split()], check=True)
    return Tunnel(packet_socket("vxlan"), packet_socket("near"), packet_socket("far", 3), tap)


@pytest.fixture(
    scope="module",
    params=[(4, ""), (4, "udpcsum"), (6, "udp6zerocsumtx"), (6, "udpcsum")],
    ids=["v4", "v4 summed", "v6", "v6 summed"],
)
def vxlan(request: pytest.FixtureRequest) -> Iterator[Tunnel]:
    tunnel = apart(lambda: make_tunnel(*request.param))
    yield tunnel
    for end in (tunnel.vxlan, tunnel.near, tunnel.far):
        end.close()
    os.close(tunnel.tap)


@pytest.mark.parametrize("head", ["plain", "tagged"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_gso_in_vxlan_is_segmented_equally(vxlan: Tunnel, protocol: int, version: int, head: str) -> None:
    payload = bytes(range(256)) * 20
    body = make.tcp(payload, flags=0x98, seq=2**32 - 3000) if protocol == TCP else make.udp(payload)
    inner, header = from_guest(with_head(version, protocol, body, head))
    gso = (1 if version == 4 else 4) if protocol == TCP else oracle.GSO_UDP_L4
    ours = (1, gso, header[4] + (20 if protocol == TCP else 8), 1000, *header[4:])
    frame, given, cut = vxlan.pass_through(inner, ours)
    assert given[1] == gso
    assert given[4] == header[4] + len(frame) - len(inner)
    assert len(cut) == 6
    assert offload.segment(frame, given) == cut


@pytest.mark.parametrize("version", [4, 6])
def test_one_frame_in_vxlan_is_completed_equally(vxlan: Tunnel, version: int) -> None:
    inner, header = from_guest(make.build(version, TCP, b"hello"))
    frame, given, cut = vxlan.pass_through(inner, header)
    assert [completed(frame, given)] == cut
