# SPDX-License-Identifier: Apache-2.0
"""Frames that a guest sends to the network `sandbox`: one of each kind that is answered, for tests and the fuzzer."""

import ipaddress
import struct

from netback.abi import virtio_net
from netback.net.sandbox.network import MAC
from netback.net.sandbox.packets import echo, icmpv6, packet

GUEST = bytes.fromhex("02000000000a")
OWN = bytes.fromhex(MAC.replace(":", ""))
HERE, THERE = bytes((10, 0, 2, 2)), bytes((10, 0, 2, 15))
HERE6, THERE6 = (ipaddress.IPv6Address(text).packed for text in ("fd00:10:0:2::2", "fd00:10:0:2::15"))
NODES = ipaddress.IPv6Address("ff02::1").packed


def vouched(source: bytes, to: bytes, protocol: int, segment: bytes, mac: bytes = OWN) -> bytes:
    """A frame whose checksum the link vouches for."""
    kind = 0x0800 if len(to) == 4 else 0x86DD
    header = virtio_net.HEADER.pack(virtio_net.F_DATA_VALID, 0, 0, 0, 0, 0)
    return header + mac + GUEST + kind.to_bytes(2, "big") + packet(source, to, protocol, segment)


def tcp(
    port: int, to: int, flags: int, sequence: int = 0, acknowledged: int = 0, payload: bytes = b""
) -> bytes:
    return struct.pack("!HHIIBBHHH", port, to, sequence, acknowledged, 5 << 4, flags, 0xFFFF, 0, 0) + payload


def udp(to: int, payload: bytes) -> bytes:
    return struct.pack("!HHHH", 5000, to, 8 + len(payload), 0) + payload


def dhcp(kind: int, **options: bytes) -> bytes:
    head = struct.pack("!BBBBIHH16x16s192x4s", 1, 1, 6, 0, 99, 0, 0, GUEST, bytes((99, 130, 83, 99)))
    more = b"".join(
        bytes((int(code.removeprefix("o")), len(value))) + value for code, value in options.items()
    )
    return head + bytes((53, 1, kind)) + more + b"\xff"


def query(name: str, kind: int = 1) -> bytes:
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


GOOD = (
    bytes(10)
    + b"\xff" * 6
    + GUEST
    + b"\x08\x06"
    + struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, GUEST, THERE, bytes(6), HERE),
    vouched(THERE, HERE, 1, echo(8, 1, 1, b"ping")),
    vouched(bytes(4), b"\xff" * 4, 17, udp(67, dhcp(1)), b"\xff" * 6),
    vouched(bytes(4), b"\xff" * 4, 17, udp(67, dhcp(3, o50=THERE, o54=HERE)), b"\xff" * 6),
    vouched(THERE, HERE, 17, udp(53, query("guest.sandbox"))),
    vouched(THERE, HERE, 17, udp(53, query("2.2.0.10.in-addr.arpa", 12))),
    vouched(THERE, HERE, 17, udp(7, b"echo")),
    vouched(THERE, HERE, 6, tcp(5000, 7, 2)),
    vouched(THERE, HERE, 6, tcp(5000, 7, 24, 1, 1, b"data")),
    vouched(THERE, HERE, 6, tcp(5000, 7, 17, 5, 1)),
    vouched(THERE, HERE, 6, tcp(5000, 19, 2)),
    vouched(THERE, HERE, 6, tcp(5000, 53, 2)),
    vouched(THERE, HERE, 6, tcp(5000, 80, 2)),
    vouched(THERE6, HERE6, 6, tcp(5000, 9, 2)),
    vouched(THERE6, HERE6, 17, udp(7, b"echo")),
    vouched(THERE6, HERE6, 58, icmpv6(THERE6, HERE6, 128, bytes(12))),
    vouched(THERE6, NODES, 58, icmpv6(THERE6, NODES, 133, bytes(4)), b"\x33\x33\0\0\0\2"),
    vouched(THERE6, NODES, 58, icmpv6(THERE6, NODES, 135, bytes(4) + HERE6), b"\x33\x33\xff\0\0\2"),
)
"""One of each kind that is answered, or could be."""
