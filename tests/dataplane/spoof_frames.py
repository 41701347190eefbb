# SPDX-License-Identifier: Apache-2.0
"""Frames of a guest that may be lying about its addresses: every kind that `antispoof` judges."""

from __future__ import annotations

import random
import struct
from ipaddress import ip_address

MAC = bytes.fromhex("00163e000001")
OTHER = bytes.fromhex("00163e0000ff")
BROADCAST = b"\xff" * 6
OWN4, OTHER4, NONE4 = (ip_address(text).packed for text in ("192.0.2.1", "198.51.100.7", "0.0.0.0"))
OWN6, OTHER6, NONE6 = (ip_address(text).packed for text in ("2001:db8::1", "2001:db9::7", "::"))
LINK6 = ip_address("fe80::216:3eff:fe00:1").packed
OTHER_LINK6 = ip_address("fe80::1").packed
ALL_NODES6 = ip_address("ff02::1").packed
EVERYONE4 = b"\xff" * 4
C_TAG, S_TAG = bytes.fromhex("8100000a"), bytes.fromhex("88a80014")
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION, ICMPV6, UDP = 0, 43, 44, 51, 60, 58, 17


def ethernet(kind: int, payload: bytes, *, source: bytes = MAC, tags: bytes = b"") -> bytes:
    return BROADCAST + source + tags + struct.pack(">H", kind) + payload


def snap(kind: int, payload: bytes, *, source: bytes = MAC, oui: bytes = b"\0\0\0") -> bytes:
    """An 802.3 frame whose EtherType is in a SNAP header."""
    body = b"\xaa\xaa\x03" + oui + struct.pack(">H", kind) + payload
    return ethernet(min(len(body), 1500), body, source=source)


def arp(
    *,
    sender: bytes = MAC,
    ip: bytes = OWN4,
    operation: int = 1,
    target: bytes = bytes(6),
    target_ip: bytes = OTHER4,
) -> bytes:
    return bytes.fromhex("000108000604") + struct.pack(">H", operation) + sender + ip + target + target_ip


def ipv4(
    source: bytes = OWN4,
    target: bytes = OTHER4,
    *,
    protocol: int = UDP,
    body: bytes = bytes(20),
    fragment: int = 0,
    options: bytes = b"",
) -> bytes:
    words = 5 + len(options) // 4
    head = struct.pack(">BBHHHBBH", 0x40 | words, 0, 4 * words + len(body), 7, fragment, 64, protocol, 0)
    return head + source + target + options + body


def dhcp(*, ports: tuple[int, int] = (68, 67)) -> bytes:
    return struct.pack(">HHHH", *ports, 248, 0) + bytes(240)


def ipv6(
    source: bytes = OWN6,
    target: bytes = ALL_NODES6,
    *,
    protocol: int = ICMPV6,
    body: bytes = bytes(20),
    chain: tuple[tuple[int, bytes], ...] = (),
    size: int | None = None,
) -> bytes:
    """`chain`: extension headers, each a number and its bytes, of which the first is filled in here."""
    kinds = [number for number, _ in chain] + [protocol]
    extensions = b"".join(bytes([kinds[at + 1]]) + data[1:] for at, (_, data) in enumerate(chain))
    length = len(extensions) + len(body) if size is None else size
    return struct.pack(">IHBB", 6 << 28, length, kinds[0], 255) + source + target + extensions + body


def extension(kind: int, size: int = 8) -> tuple[int, bytes]:
    """An extension header of so many bytes."""
    return kind, bytes([0, size // 4 - 2 if kind == AUTHENTICATION else size // 8 - 1]) + bytes(size - 2)


def fragment(offset: int = 0, *, more: bool = True) -> tuple[int, bytes]:
    return FRAGMENT, struct.pack(">BBHI", 0, 0, offset << 3 | more, 9)


def option(kind: int, mac: bytes = MAC) -> bytes:
    return bytes([kind, 1]) + mac


def nd(kind: int, *, target: bytes = OWN6, options: bytes = b"") -> bytes:
    fixed = {133: bytes(4), 134: bytes(12), 137: bytes(4) + target + bytes(16)}.get(kind, bytes(4) + target)
    return bytes([kind, 0, 0, 0]) + fixed + options


# --- drawn at random


def _mac(rng: random.Random) -> bytes:
    return rng.choice((MAC, MAC, MAC, MAC, OTHER, BROADCAST))


def _ip4(rng: random.Random) -> bytes:
    return rng.choice((OWN4, OWN4, OTHER4, NONE4, EVERYONE4))


def _ip6(rng: random.Random) -> bytes:
    return rng.choice((OWN6, OWN6, OTHER6, NONE6, LINK6, OTHER_LINK6, ALL_NODES6))


def _framed(rng: random.Random, kind: int, payload: bytes) -> bytes:
    if rng.random() < 0.15:
        return snap(kind, payload, source=_mac(rng), oui=rng.choice((b"\0\0\0", b"\0\0\xf8", b"\0\0\1")))
    tags = rng.choice((b"", b"", b"", C_TAG, S_TAG + C_TAG, C_TAG * 3))
    return ethernet(kind, payload, source=_mac(rng), tags=tags) + rng.choice((b"", bytes(6)))


def _arp(rng: random.Random) -> bytes:
    made = arp(
        sender=_mac(rng),
        ip=_ip4(rng),
        operation=rng.choice((1, 2, 3, 4, 8)),
        target=_mac(rng),
        target_ip=_ip4(rng),
    )
    return _framed(rng, rng.choice((0x0806, 0x0806, 0x8035)), made)


def _ipv4(rng: random.Random) -> bytes:
    body = rng.choice((dhcp(), dhcp(ports=(67, 68)), bytes(20), b""))
    fragment = rng.choice((0, 0, 0, 0x4000, 0x2000, 5))
    options = rng.choice((b"", b"", bytes(8)))
    return _framed(rng, 0x0800, ipv4(_ip4(rng), _ip4(rng), body=body, fragment=fragment, options=options))


def _ipv6(rng: random.Random) -> bytes:
    body = rng.choice(
        (
            nd(
                rng.randint(133, 137),
                target=_ip6(rng),
                options=b"".join(
                    option(rng.randint(1, 3), _mac(rng)) for _ in range(rng.choice((0, 1, 2, 70)))
                ),
            ),
            bytes([rng.choice((128, 130, 131, 132, 143))]) + bytes(23),
            bytes(rng.randint(0, 24)),
        )
    )
    chain = tuple(
        rng.choice(
            (
                extension(rng.choice((HOP_BY_HOP, ROUTING, DESTINATION)), rng.choice((8, 8, 24))),
                extension(AUTHENTICATION, rng.choice((12, 24))),
                fragment(rng.choice((0, 0, 3)), more=rng.random() < 0.5),
            )
        )
        for _ in range(rng.choice((0, 0, 0, 1, 2, 3, 17)))
    )
    made = ipv6(
        _ip6(rng),
        _ip6(rng),
        protocol=rng.choice((ICMPV6, ICMPV6, ICMPV6, 6, UDP, 59)),
        body=body,
        chain=chain,
        size=rng.choice((None, None, None, 0, 30)),
    )
    return _framed(rng, 0x86DD, made)


def _other(rng: random.Random) -> bytes:
    return _framed(rng, rng.choice((0x88CC, 0x9100, 0x8847, 0x26, 0x5DD, 0x0800, 0x86DD)), rng.randbytes(50))


MAKERS = (_arp, _ipv4, _ipv6, _ipv6, _other)
"""Each draws a frame."""
