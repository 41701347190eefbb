# SPDX-License-Identifier: Apache-2.0
"""The hash of a frame's flow in plain Python, bit by bit, from netif.h alone. It imports nothing of netback."""

from __future__ import annotations

from typing import NamedTuple

IPV4, IPV4_TCP, IPV6, IPV6_TCP = range(4)
"""Hash types as a hash extra has them; as flags they are bits."""
TOEPLITZ = 1
TCP, HOP_BY_HOP, ROUTING, DESTINATION, FRAGMENT = 6, 0, 43, 60, 44
MAX_EXTENSIONS = 256
"""Bytes of an IPv6 header with its extensions, beyond which no ports are looked for."""


class Flow(NamedTuple):
    """The addresses of a packet, and its ports if it is a TCP segment that is no fragment."""

    version: int
    addresses: bytes
    ports: bytes = b""


def toeplitz(key: bytes, data: bytes) -> int:
    """XOR, for each set bit of the data, of the 32 bits of the key that begin at its position."""
    stream = int.from_bytes(key.ljust(len(data) + 4, b"\0")[: len(data) + 4], "big")
    bits, value = 8 * len(data), 0
    for at in range(bits):
        if int.from_bytes(data, "big") >> (bits - 1 - at) & 1:
            value ^= stream >> (bits - at) & 0xFFFFFFFF
    return value


def untagged(frame: bytes) -> tuple[int, bytes]:
    """The EtherType after at most two tags, and what follows it."""
    at = 12
    for _ in range(3):
        if len(frame) < at + 2:
            return 0, b""
        kind = int.from_bytes(frame[at : at + 2], "big")
        if kind not in (0x8100, 0x88A8):
            return kind, frame[at + 2 :]
        at += 4
    return 0, b""


def ipv4(packet: bytes) -> Flow | None:
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return None
    head = 4 * (packet[0] & 15)
    fragment = int.from_bytes(packet[6:8], "big") & 0x3FFF
    tcp = packet[9] == TCP and not fragment and head >= 20 and len(packet) >= head + 4
    return Flow(4, packet[12:20], packet[head : head + 4] if tcp else b"")


def ipv6(packet: bytes) -> Flow | None:
    if len(packet) < 40 or packet[0] >> 4 != 6:
        return None
    protocol, at = packet[6], 40
    flow = Flow(6, packet[8:40])
    while protocol in (HOP_BY_HOP, ROUTING, DESTINATION):
        if len(packet) < at + 8 or (protocol == ROUTING and not known_route(packet[at : at + 8])):
            return flow
        protocol, at = packet[at], at + 8 + 8 * packet[at + 1]
        if at > MAX_EXTENSIONS or at > len(packet):
            return flow
    tcp = protocol == TCP and len(packet) >= at + 4
    return flow._replace(ports=packet[at : at + 4] if tcp else b"")


def known_route(header: bytes) -> bool:
    """A routing header that netback can follow: used up, or of type 0, 2 or 4 with whole addresses."""
    words = header[1]
    return header[3] == 0 or (words >= 2 and words % 2 == 0 and header[2] in (0, 2, 4))


def flow_hash(frame: bytes, types: int, key: bytes) -> tuple[int, int] | None:
    """(type, value) of a frame, of the maximal selected type; None if it is of none."""
    kind, packet = untagged(frame)
    flow = ipv4(packet) if kind == 0x0800 else ipv6(packet) if kind == 0x86DD else None
    if flow is None:
        return None
    plain, with_ports = (IPV4, IPV4_TCP) if flow.version == 4 else (IPV6, IPV6_TCP)
    if flow.ports and types >> with_ports & 1:
        return with_ports, toeplitz(key, flow.addresses + flow.ports)
    return (plain, toeplitz(key, flow.addresses)) if types >> plain & 1 else None
