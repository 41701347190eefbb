# SPDX-License-Identifier: Apache-2.0
"""Ethernet frames: those that the drive sends, and what the checksum of a received one is. Pure."""

import struct
from typing import NamedTuple

ETHERNET = struct.Struct("!6s6sH")
_IP4 = struct.Struct("!BBHHHBBH4s4s")
_IP6 = struct.Struct("!IHBB16s16s")
_TCP = struct.Struct("!HHIIBBHHH")
_UDP = struct.Struct("!HHHH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")

TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
_TYPE_IP4, _TYPE_ARP, _TYPE_IP6, _TYPE_LOCAL = 0x0800, 0x0806, 0x86DD, 0x88B5
_TAGS = {0x8100, 0x88A8}
_CHECKSUM_AT = {TCP: 16, UDP: 6}


class Addresses(NamedTuple):
    """Both ends of the drive's packets."""

    guest_mac: bytes
    host_mac: bytes
    guest4: bytes
    host4: bytes
    guest6: bytes
    host6: bytes


class Transport(NamedTuple):
    """The TCP or UDP header of an IP frame."""

    version: int
    protocol: int
    start: int
    """Bytes before the header."""
    end: int
    """Bytes before the end of the IP packet."""
    addresses: bytes
    """Source and destination, as in the pseudo-header."""

    def pseudo(self, length: int) -> int:
        """The sum of the pseudo-header, folded and not inverted."""
        return fold(self.addresses + struct.pack("!IHBB", length, 0, 0, self.protocol))


def fold(data: bytes) -> int:
    """The ones' complement sum of 16-bit words (RFC 1071), not inverted; 0 only for zeros."""
    number = int.from_bytes(data + bytes(len(data) % 2), "big")
    return (number % 0xFFFF or 0xFFFF) if number else 0


def toeplitz(key: bytes, data: bytes) -> int:
    """The Toeplitz hash (netif.h): for each set bit of `data` the 32 bits of the key from its place on, by XOR."""
    window, bits, value = int.from_bytes(key, "big"), len(key) * 8, 0
    for place in range(len(data) * 8):
        if data[place // 8] >> (7 - place % 8) & 1:
            value ^= window >> (bits - 32 - place) & 0xFFFFFFFF
    return value


def find_transport(frame: bytes) -> Transport | None:
    """The TCP or UDP header behind at most two VLAN tags; None for other frames, fragments and extension headers."""
    if len(frame) < ETHERNET.size:
        return None
    kind, at = ETHERNET.unpack_from(frame)[2], ETHERNET.size
    for _ in range(2):
        if kind in _TAGS and len(frame) >= at + 4:
            kind, at = int.from_bytes(frame[at + 2 : at + 4], "big"), at + 4
    found = {_TYPE_IP4: _ip4, _TYPE_IP6: _ip6}.get(kind)
    return found(frame, at) if found is not None else None


def _ip4(frame: bytes, at: int) -> Transport | None:
    if len(frame) < at + _IP4.size:
        return None
    first, _, total, _, fragment, _, protocol, _, source, destination = _IP4.unpack_from(frame, at)
    start = at + (first & 15) * 4
    if first >> 4 != 4 or fragment & 0x3FFF or protocol not in _CHECKSUM_AT:
        return None
    return _bounded(frame, Transport(4, protocol, start, at + total, source + destination))


def _ip6(frame: bytes, at: int) -> Transport | None:
    if len(frame) < at + _IP6.size:
        return None
    first, length, protocol, _, source, destination = _IP6.unpack_from(frame, at)
    if first >> 28 != 6 or protocol not in _CHECKSUM_AT:
        return None
    start = at + _IP6.size
    return _bounded(frame, Transport(6, protocol, start, start + length, source + destination))


def _bounded(frame: bytes, found: Transport) -> Transport | None:
    head = _TCP.size if found.protocol == TCP else _UDP.size
    return found if found.start + head <= found.end <= len(frame) else None


def checksum_state(frame: bytes, transport: Transport) -> str:
    """Which checksum a TCP or UDP header has: "right", "pseudo" (of the pseudo-header alone, for hardware to complete),
    "none" (UDP over IPv4 without one) or "wrong".
    """
    body = frame[transport.start : transport.end]
    at = _CHECKSUM_AT[transport.protocol]
    field = int.from_bytes(body[at : at + 2], "big")
    pseudo = transport.pseudo(len(body))
    if transport.protocol == UDP and transport.version == 4 and field == 0:
        return "none"
    if fold(struct.pack("!H", pseudo) + body) == 0xFFFF:
        return "right"
    return "pseudo" if field in (pseudo, transport.pseudo(0)) else "wrong"


# ---- frames of the drive


def arp_request(ends: Addresses) -> bytes:
    """Who has the guest's IPv4 address?"""
    body = _ARP.pack(1, _TYPE_IP4, 6, 4, 1, ends.host_mac, ends.host4, bytes(6), ends.guest4)
    return ETHERNET.pack(b"\xff" * 6, ends.host_mac, _TYPE_ARP) + body


def arp_reply(frame: bytes, ends: Addresses) -> bytes | None:
    """The answer to an ARP request for the host's address, None for any other frame."""
    if len(frame) < ETHERNET.size + _ARP.size or frame[12:14] != _TYPE_ARP.to_bytes(2, "big"):
        return None
    *head, op, mac, address, _, wanted = _ARP.unpack_from(frame, ETHERNET.size)
    if op != 1 or wanted != ends.host4:
        return None
    body = _ARP.pack(*head, 2, ends.host_mac, ends.host4, mac, address)
    return ETHERNET.pack(mac, ends.host_mac, _TYPE_ARP) + body


def local(ends: Addresses, size: int, seed: int) -> bytes:
    """A frame of `size` bytes of the ethertype for local experiments."""
    head = ETHERNET.pack(ends.guest_mac, ends.host_mac, _TYPE_LOCAL)
    return head + bytes((seed + i * 7) & 0xFF for i in range(size - len(head)))


def echo_request(ends: Addresses, size: int, number: int) -> bytes:
    """An ICMP echo request with `size` bytes of payload."""
    body = struct.pack("!BBHHH", 8, 0, 0, 0x6E62, number) + bytes(i & 0xFF for i in range(size))
    body = body[:2] + (0xFFFF - fold(body)).to_bytes(2, "big") + body[4:]
    return ETHERNET.pack(ends.guest_mac, ends.host_mac, _TYPE_IP4) + _packet4(ends, ICMP, body)


def neighbour_solicitation(ends: Addresses) -> bytes:
    """Who has the guest's IPv6 address? To its solicited-node multicast group (RFC 4861)."""
    group = bytes.fromhex("ff0200000000000000000001ff") + ends.guest6[-3:]
    body = struct.pack("!BBHI16sBB6s", 135, 0, 0, 0, ends.guest6, 1, 1, ends.host_mac)
    pseudo = ends.host6 + group + struct.pack("!IHBB", len(body), 0, 0, ICMP6)
    body = body[:2] + (0xFFFF - fold(pseudo + body)).to_bytes(2, "big") + body[4:]
    head = _IP6.pack(6 << 28, len(body), ICMP6, 255, ends.host6, group)
    return ETHERNET.pack(b"\x33\x33" + group[-4:], ends.host_mac, _TYPE_IP6) + head + body


def transport(ends: Addresses, version: int, protocol: int, payload: bytes, *, blank: bool) -> bytes:
    """A TCP or UDP packet to the guest's port 9, `blank` with the sum of its pseudo-header alone."""
    if protocol == TCP:
        head = _TCP.pack(40000, 9, 1, 1, 5 << 4, 0x10, 65535, 0, 0)
    else:
        head = _UDP.pack(40000, 9, _UDP.size + len(payload), 0)
    body = head + payload
    both = ends.host4 + ends.guest4 if version == 4 else ends.host6 + ends.guest6
    found = Transport(version, protocol, 0, len(body), both)
    pseudo = found.pseudo(len(body))
    checksum = pseudo if blank else (0xFFFF - fold(struct.pack("!H", pseudo) + body)) or 0xFFFF
    at = _CHECKSUM_AT[protocol]
    body = body[:at] + checksum.to_bytes(2, "big") + body[at + 2 :]
    if version == 4:
        return ETHERNET.pack(ends.guest_mac, ends.host_mac, _TYPE_IP4) + _packet4(ends, protocol, body)
    ip6 = _IP6.pack(6 << 28, len(body), protocol, 64, ends.host6, ends.guest6)
    return ETHERNET.pack(ends.guest_mac, ends.host_mac, _TYPE_IP6) + ip6 + body


def _packet4(ends: Addresses, protocol: int, body: bytes) -> bytes:
    head = _IP4.pack(0x45, 0, _IP4.size + len(body), 0, 0x4000, 64, protocol, 0, ends.host4, ends.guest4)
    return head[:10] + (0xFFFF - fold(head)).to_bytes(2, "big") + head[12:] + body
