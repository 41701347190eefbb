# SPDX-License-Identifier: Apache-2.0
"""Headers and checksums of ARP, IPv4, IPv6, ICMP, UDP and TCP. A frame is led by its virtio_net_hdr."""

import struct
from enum import IntFlag

from netback.abi import virtio_net

ARP = struct.Struct("!HHBBH6s4s6s4s")
ETHERNET = struct.Struct("!6s6sH")
IPV4 = struct.Struct("!BBHHHBBH4s4s")
IPV6 = struct.Struct("!IHBB16s16s")
TCP = struct.Struct("!HHIIBBHHH")
UDP = struct.Struct("!HHHH")
ECHO = struct.Struct("!BBHHH")
ICMPV6 = struct.Struct("!BBH")

PLAIN = virtio_net.HEADER.pack(0, 0, 0, 0, 0, 0)
TYPE_IPV4, TYPE_ARP, TYPE_IPV6 = 0x0800, 0x0806, 0x86DD
ICMP_PROTOCOL, TCP_PROTOCOL, UDP_PROTOCOL, ICMPV6_PROTOCOL = 1, 6, 17, 58
ARP_REQUEST, ARP_REPLY = 1, 2
ECHO_REPLY, ECHO_REQUEST = 0, 8
ECHO6_REQUEST, ECHO6_REPLY = 128, 129
BROADCAST = b"\xff" * 6
EVERYONE = b"\xff" * 4
UNASSIGNED = bytes(4)
"""The source of a host that has no address yet."""

L2 = ETHERNET.size
MTU = 1500
TCP_CSUM_AT, UDP_CSUM_AT = 16, 6


class Flag(IntFlag):
    """Flags of a TCP header (RFC 9293)."""

    FIN = 1
    SYN = 2
    RST = 4
    PSH = 8
    ACK = 16


def folded(data: bytes) -> int:
    """RFC 1071's sum: 16-bit words added with end-around carry equal the whole number modulo 65535."""
    return int.from_bytes(data + b"\0" * (len(data) & 1), "big") % 0xFFFF


def checksum(data: bytes) -> int:
    return 0xFFFF - folded(data)


def is_right(data: bytes) -> bool:
    """Whether a checksum that lies in the data is right."""
    return checksum(data) in (0, 0xFFFF)


def pseudo(source: bytes, to: bytes, protocol: int, length: int) -> bytes:
    """The pseudo header of a checksum; both addresses have 4 bytes, or 16 (RFC 8200, 8.1)."""
    return source + to + struct.pack("!II", length, protocol)


def echo(kind: int, number: int, sequence: int, payload: bytes) -> bytes:
    """An ICMP echo request or reply."""
    blank = ECHO.pack(kind, 0, 0, number, sequence) + payload
    return ECHO.pack(kind, 0, checksum(blank), number, sequence) + payload


def icmpv6(source: bytes, to: bytes, kind: int, body: bytes) -> bytes:
    """An ICMPv6 message; `body` follows type, code and checksum."""
    blank = ICMPV6.pack(kind, 0, 0) + body
    return ICMPV6.pack(kind, 0, checksum(pseudo(source, to, ICMPV6_PROTOCOL, len(blank)) + blank)) + body


def packet(source: bytes, to: bytes, protocol: int, segment: bytes) -> bytes:
    """An IP packet, of the version of its addresses."""
    if len(to) == len(EVERYONE):
        blank = IPV4.pack(0x45, 0, IPV4.size + len(segment), 0, 0x4000, 64, protocol, 0, source, to)
        return blank[:10] + checksum(blank).to_bytes(2, "big") + blank[12:] + segment
    return IPV6.pack(6 << 28, len(segment), protocol, 255, source, to) + segment


def ip_size(address: bytes) -> int:
    """Bytes of the IP header with such an address."""
    return IPV4.size if len(address) == len(EVERYONE) else IPV6.size
