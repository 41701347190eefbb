# SPDX-License-Identifier: Apache-2.0
"""For any frame and header, the verdict, completed checksum and segments equal the oracle's, bit by bit."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests import offload_oracle as oracle
from tests.dataplane import offload_frames as parts
from tests.offload_oracle import TCP, UDP, Header, number

from netback.dataplane import offload

EXTENSIONS = (
    parts.HOP_BY_HOP,
    parts.OPTIONS,
    parts.USED_ROUTE,
    parts.OPEN_ROUTE,
    parts.MOBILE_ROUTE,
    parts.SEGMENT_ROUTE,
    parts.STRANGE_ROUTE,
    parts.FRAGMENT,
)
IP_OPTIONS = (
    b"",
    b"",
    parts.LOOSE_ROUTE,
    parts.USED_LOOSE_ROUTE,
    parts.RECORD_ROUTE,
    parts.LOOSE_ROUTE + parts.RECORD_ROUTE,
)
TAGS = (b"", b"", b"", parts.C_TAG, parts.S_TAG + parts.C_TAG, parts.S_TAG + parts.C_TAG + parts.C_TAG)
SIZES = (0, 7, 8, 36, 100, 536, 1448, 0xFFFF)
TURNS = 16


@dataclass(frozen=True, slots=True)
class Turn:
    """One frame: how much of it is in the header's buffer, and its description on either side."""

    frame: bytes
    have: int
    says: tuple[bool, bool, int, int]
    """csum_blank, data_validated, gso_type, gso_size."""
    header: Header
    caps: int


@dataclass(frozen=True, slots=True)
class Case:
    ops: tuple[Turn, ...]


WORDS = (Case, Turn)


# --- drawing


def payload(rng: random.Random) -> bytes:
    most = rng.choice((64, 64, 64, 3000, 3000, 65000))
    return rng.randbytes(rng.randint(0, most))


def transport(rng: random.Random) -> tuple[int, bytes]:
    kind, check = rng.choice((TCP, TCP, UDP, UDP, 1, 4, 41, 47, 58, 132)), rng.getrandbits(16)
    if kind == TCP:
        options = rng.choice((b"", parts.TIMESTAMPS, bytes([1]) * 40))
        flags, seq = rng.getrandbits(8), rng.getrandbits(32)
        return kind, parts.tcp(payload(rng), options=options, flags=flags, seq=seq, check=check)
    return kind, parts.udp(payload(rng), check=check) if kind == UDP else rng.randbytes(rng.randint(0, 80))


def whole(rng: random.Random) -> bytes:
    """A frame that a kernel would send, with options, extensions, tags and padding."""
    kind, body = transport(rng)
    if rng.random() < 0.5:
        packet = parts.ipv4(body, kind, options=rng.choice(IP_OPTIONS), ident=rng.getrandbits(16))
    else:
        chain = tuple(rng.choice(EXTENSIONS) for _ in range(rng.choice((0, 0, 1, 2, 3))))
        packet = parts.ipv6(body, kind, extensions=chain)
    return parts.ethernet(packet, tags=rng.choice(TAGS)) + rng.choice((b"", b"", b"", b"padding"))


def broken(rng: random.Random) -> bytes:
    """The same with bytes changed, mostly in its headers, and perhaps truncated."""
    frame = bytearray(whole(rng))
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(12, min(len(frame) - 1, 140))
        frame[at] = rng.choice((rng.getrandbits(8), 0, 6, 17, 43, 44, 60, 0x45, 0x50, 0xFF))
    return bytes(frame[: rng.choice((len(frame), rng.randint(0, len(frame))))])


def header(rng: random.Random, frame: bytes) -> Header:
    """Usually a kernel's description of the frame, else anything."""
    l4 = 14 + (40 if number(frame, 12) == 0x86DD else 20)
    return (
        rng.choice((0, 1, 1, 1, 2, 3, 0xFF)),
        rng.choice((0, 0, 1, 3, 4, 5, 0x81, 0x84, 0x80, 7)),
        rng.getrandbits(16),
        rng.choice((*SIZES, rng.getrandbits(16))),
        rng.choice((l4, l4, rng.randint(0, len(frame) + 4) & 0xFFFF, rng.getrandbits(16))),
        rng.choice((6, 16, 6, 16, 8, 2, 0, rng.getrandbits(16))),
    )


def tunnel(rng: random.Random) -> tuple[bytes, Header]:
    """A GSO frame in a tunnel with the header that Linux gives, and sometimes a few bytes of either changed."""
    protocol = rng.choice((TCP, UDP))
    body = parts.tcp(payload(rng)) if protocol == TCP else parts.udp(payload(rng)[:60000])
    version, check = rng.choice((4, 6)), rng.choice((0, 0x1234))
    packet = parts.ipv4(body, protocol) if version == 4 else parts.ipv6(body, protocol)
    link = parts.ethernet(packet, tags=rng.choice(TAGS[:4]))
    kind = parts.IPV4 if version == 4 else parts.IPV6
    outer, carrier = rng.choice(
        (
            (parts.vxlan(link[:65000], check=check), UDP),
            (parts.geneve(link[:65000], check=check), UDP),
            (parts.geneve(packet[:65000], kind, options=parts.GENEVE_OPTION * 3, check=check), UDP),
            (parts.gre(link), 47),
            (parts.gre(packet, kind, key=b"key!"), 47),
            (packet, 4 if version == 4 else 41),
            (parts.gtp(packet[:65000]), UDP),
        )
    )
    size = None if len(outer) < 65000 else 0
    carrying = parts.ipv4 if rng.random() < 0.5 else parts.ipv6
    frame = parts.ethernet(carrying(outer, carrier, size=size), tags=rng.choice(TAGS))
    start = len(frame) - len(body) + rng.choice((0, 0, 0, 0, 2, -8))
    work = bytearray(frame + rng.choice((b"", b"", b"padding")))
    for _ in range(rng.choice((0, 0, 0, 1, 3))):
        work[rng.randint(12, min(len(work) - 1, 160))] = rng.choice((rng.getrandbits(8), 0, 4, 17, 41, 47))
    gso = rng.choice((4 if version == 6 else 1, 0x81)) if protocol == TCP else rng.choice((5, 5, 3))
    meta = (
        rng.choice((1, 1, 1, 3, 0)),
        gso,
        0,
        rng.choice((*SIZES, 1000)),
        start,
        16 if protocol == TCP else 6,
    )
    return bytes(work), meta


def described(rng: random.Random) -> tuple[bytes, Header]:
    frame = rng.choice((whole, whole, broken, broken, lambda r: r.randbytes(r.randint(0, 120))))(rng)
    return frame, header(rng, frame)


def turn(rng: random.Random) -> Turn:
    frame, meta = rng.choice((described, described, tunnel))(rng)
    have = rng.choice((len(frame), len(frame), rng.randint(0, len(frame))))
    says = rng.random() < 0.5, rng.random() < 0.5, rng.choice((0, 1, 2, 1, 2, 3)), rng.choice(SIZES)
    return Turn(frame, have, says, meta, rng.getrandbits(4))


def make(rng: random.Random) -> Case:
    return Case(tuple(turn(rng) for _ in range(TURNS)))


# --- comparing


def from_the_guest(op: Turn) -> None:
    blank, validated, gso_type, gso_size = op.says
    meta = {"csum_blank": blank, "data_validated": validated, "gso_type": gso_type, "gso_size": gso_size}
    verdict, made, fixed_up, after = oracle.to_virtio(op.frame, op.have, **meta, caps=op.caps)  # type: ignore[arg-type]
    work = bytearray(op.frame)
    got = offload.to_virtio(work, have=op.have, **meta, caps=op.caps)  # type: ignore[arg-type]
    assert got[0] == verdict
    if verdict != oracle.DROP:
        assert (got[1], got[2], bytes(work)) == (made, fixed_up, after)


def toward_the_guest(op: Turn) -> None:
    wanted = oracle.to_netif(op.frame, op.have, op.header, op.caps)
    assert offload.to_netif(op.frame, op.header, caps=op.caps, have=op.have) == wanted


def completed(op: Turn) -> None:
    work = bytearray(op.frame)
    offload.complete(work, op.header)
    assert bytes(work) == oracle.complete(op.frame, op.header)


def cut(op: Turn) -> None:
    """The identification of IPv6 fragments is arbitrary, so it is read from the first one."""
    packet, found = oracle.parse(op.frame, len(op.frame)), offload.segment(op.frame, op.header)
    fragments = (
        packet is not None
        and packet.version == 6
        and op.header[1] & 0x7F == oracle.GSO_UDP
        and len(found) > 1
    )
    identification = number(found[0], packet.l4 + 4, 4) if packet is not None and fragments else 0
    assert found == oracle.segment(op.frame, op.header, identification)
    if offload.to_netif(op.frame, op.header, caps=15)[0] == offload.SPLIT:
        assert offload.split(op.frame, op.header) == oracle.split(op.frame, op.header)


def play(case: Case) -> int:
    for op in case.ops:
        for compare in (from_the_guest, toward_the_guest, completed, cut):
            compare(op)
    return 4 * len(case.ops)
