# SPDX-License-Identifier: Apache-2.0
"""Messages (a virtio_net_hdr and a frame) that a guest's or host's stack would give, and what they are on the wire."""

from __future__ import annotations

import random
from collections.abc import Iterable

from netback.abi import virtio_net
from netback.abi.virtio_net import F_NEEDS_CSUM, GSO_NONE, GSO_TCPV4, GSO_TCPV6
from tests import offload_oracle as oracle
from tests.dataplane.offload_frames import (
    C_TAG,
    DESTINATION4,
    DESTINATION6,
    SOURCE4,
    SOURCE6,
    build,
    with_pseudo,
)
from tests.offload_oracle import TCP, UDP

PLAIN = virtio_net.HEADER.pack(0, 0, 0, 0, 0, 0)


def plain(frame: bytes) -> bytes:
    """A frame that is complete."""
    return PLAIN + frame


def blank(version: int, protocol: int, payload: bytes, *, mss: int = 0, tags: bytes = b"") -> bytes:
    """A TCP or UDP packet whose checksum is the receiver's to do, with `mss` one to be cut."""
    frame = build(version, protocol, payload, tags=tags)
    start = 14 + len(tags) + (20 if version == 4 else 40)
    addresses = SOURCE4 + DESTINATION4 if version == 4 else SOURCE6 + DESTINATION6
    frame = with_pseudo(frame, start, protocol, addresses)
    gso = GSO_NONE if not mss else GSO_TCPV4 if version == 4 else GSO_TCPV6
    offset, head = (16, 20) if protocol == TCP else (6, 8)
    return virtio_net.HEADER.pack(F_NEEDS_CSUM, gso, start + head if mss else 0, mss, start, offset) + frame


def ones(seed: int, size: int) -> bytes:
    """Pseudo-random bytes."""
    return random.Random(seed).randbytes(size)


def ethernet(seed: int, length: int) -> bytes:
    """A frame of a protocol that has no offload."""
    return (bytes.fromhex("00163e00000200163e00000188b5") + ones(seed, length))[:length]


ONE_SLOT = tuple(plain(ethernet(size, size)) for size in (14, 60, 64, 1514, 4032, 4033, 4096))
MANY_SLOTS = tuple(plain(ethernet(size, size)) for size in (4097, 8128, 9014, 65472, 65473, 65535))
BLANK4 = tuple(blank(4, protocol, ones(protocol, 1000)) for protocol in (TCP, UDP))
BLANK6 = tuple(blank(6, protocol, ones(protocol, 1000)) for protocol in (TCP, UDP))
GSO4 = tuple(blank(4, TCP, ones(size, size), mss=1448) for size in (1449, 4000, 30000, 65160))
GSO6 = tuple(blank(6, TCP, ones(size, size), mss=1428) for size in (1429, 4000, 30000, 65160))
TAGGED = (
    plain(build(4, UDP, b"tagged", tags=C_TAG)),
    blank(4, TCP, ones(4, 900), tags=C_TAG),
    blank(6, TCP, ones(6, 9000), mss=1400, tags=C_TAG),
)


def on_the_wire(message: bytes) -> list[bytes]:
    """The finished frames that a message stands for."""
    header, frame = virtio_net.HEADER.unpack(message[:10]), message[10:]
    if header[1] != GSO_NONE:
        return oracle.segment(frame, header)
    return [oracle.complete(frame, header) if header[0] & F_NEEDS_CSUM else frame]


def all_on_the_wire(messages: Iterable[bytes]) -> list[bytes]:
    return [frame for message in messages for frame in on_the_wire(message)]


def random_message(rng: random.Random, most: int = 65000) -> bytes:
    """Anything that a Linux stack could send through a link with every offload."""
    size = rng.choice((rng.randint(46, 1500), rng.randint(46, 9000), rng.randint(46, most)))
    version = rng.choice((4, 6))
    return rng.choice(
        (
            lambda: plain(ethernet(size, min(14 + size, 65535))),
            lambda: blank(version, rng.choice((TCP, UDP)), ones(size, min(size, 1400))),
            lambda: blank(version, TCP, ones(size, size), mss=rng.choice((536, 1400, 1448))),
        )
    )()
