# SPDX-License-Identifier: Apache-2.0
"""The queue of a frame in plain Python, from netif.h and docs/decisions.md alone. It imports nothing of netback."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from tests.hash_oracle import (
    DESTINATION,
    FRAGMENT,
    HOP_BY_HOP,
    MAX_EXTENSIONS,
    ROUTING,
    flow_hash,
    known_route,
)

WITH_PORTS = (6, 17, 132)
"""TCP, UDP, SCTP."""
FACTOR, WORD = 0x9E3779B97F4A7C15, 1 << 64


def number(words: Sequence[int]) -> int:
    """32 bits of the words, each mixed into what those before it gave."""
    value = 0
    for word in words:
        value = (value ^ word) * FACTOR % WORD
        value ^= value >> 32
    return value % (1 << 32)


def split(data: bytes) -> list[int]:
    return [int.from_bytes(data[at : at + 4], "big") for at in range(0, len(data), 4)]


def ports(packet: bytes, protocol: int, at: int) -> list[int]:
    return split(packet[at : at + 4]) if protocol in WITH_PORTS and len(packet) >= at + 4 else []


def of_ipv4(packet: bytes) -> list[int]:
    protocol = packet[9]
    fragment = struct.unpack_from(">H", packet, 6)[0] & 0x3FFF
    found = [] if fragment else ports(packet, protocol, 4 * (packet[0] & 15))
    return [*split(packet[12:20]), protocol, *found]


def of_ipv6(packet: bytes) -> list[int]:
    words, protocol, at = split(packet[8:40]), packet[6], 40
    while protocol in (HOP_BY_HOP, ROUTING, DESTINATION):
        if len(packet) < at + 8 or (protocol == ROUTING and not known_route(packet[at : at + 8])):
            return words
        protocol, at = packet[at], at + 8 + 8 * packet[at + 1]
        if at > MAX_EXTENSIONS or at > len(packet):
            return words
    return words if protocol == FRAGMENT else [*words, protocol, *ports(packet, protocol, at)]


def words_of(frame: bytes) -> list[int]:
    """What makes a frame's flow: addresses, protocol and ports; of a frame that is not IP its MACs and EtherType."""
    at = 12
    while at <= 20 and frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    kind, packet = frame[at : at + 2], frame[at + 2 :]
    if at > 20 or len(frame) < at + 2:
        kind = b""
    if kind == b"\x08\x00" and len(packet) >= 20 and packet[0] >> 4 == 4:
        return of_ipv4(packet)
    if kind == b"\x86\xdd" and len(packet) >= 40 and packet[0] >> 4 == 6:
        return of_ipv6(packet)
    return [*split(frame[:12]), int.from_bytes(frame[12:14], "big")] if len(frame) >= 14 else []


def flow_number(frame: bytes) -> int:
    return number(words_of(frame))


def queue_of(frame: bytes, queues: int, types: int = 0, key: bytes = b"", mapping: Sequence[int] = ()) -> int:
    """With types: by the Toeplitz hash, 0 for a frame of no such type, and the mapping; else by the frame's flow."""
    if not types:
        return flow_number(frame) % queues
    hashed = flow_hash(frame, types, key)
    value = hashed[1] if hashed else 0
    return mapping[value % len(mapping)] if mapping else value % queues
