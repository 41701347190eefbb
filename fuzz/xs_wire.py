# SPDX-License-Identifier: Apache-2.0
"""Any bytes are packets or a WireError, independent of the chunking; at most one message is kept."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

from netback.abi.xs_wire import HEADER, PAYLOAD_MAX
from netback.xenstore.wire import Packet, Parser, WireError

LENGTHS = (0, 1, 15, 16, 17, PAYLOAD_MAX - 1, PAYLOAD_MAX)
MAX_BYTEWISE = 1000
LIES = (PAYLOAD_MAX + 1, 65536, 2**31 - 1, 2**31, 2**32 - 1)


@dataclass(frozen=True, slots=True)
class Case:
    stream: bytes
    cuts: tuple[int, ...]


WORDS = (Case,)


def message(rng: random.Random) -> bytes:
    length = rng.choice((rng.randint(0, 40), rng.randint(0, 40), rng.choice(LENGTHS)))
    kind, req_id, tx_id = (rng.choice((rng.randint(0, 23), rng.getrandbits(32))) for _ in range(3))
    return Packet(kind, req_id, tx_id, rng.randbytes(length)).encode()


def nonsense(rng: random.Random) -> bytes:
    kind = rng.randrange(3)
    if kind == 0:
        return rng.randbytes(rng.randint(0, 64))
    if kind == 1:
        return HEADER.pack(rng.randint(0, 23), 1, 0, rng.choice(LIES)) + rng.randbytes(rng.randint(0, 8))
    return message(rng)[: rng.randint(0, 30)]


def make(rng: random.Random) -> Case:
    parts = [message(rng) for _ in range(rng.randint(0, 12))]
    if rng.random() < 0.6:
        parts.append(nonsense(rng))
        parts += [message(rng) for _ in range(rng.randint(0, 2))]
    stream = b"".join(parts)
    cuts = sorted(rng.randint(0, len(stream)) for _ in range(rng.choice((0, 1, 5, 50))))
    return Case(stream, tuple(cuts))


def outcome(chunks: list[bytes]) -> tuple[list[Packet], str]:
    """The packets, and the error that ended them."""
    parser, found = Parser(), list[Packet]()
    for chunk in chunks:
        parser.feed(chunk)
        try:
            while packet := parser.next_packet():
                found.append(packet)
        except WireError as error:
            return found, str(error)
        assert len(parser._buffer) - parser._at < HEADER.size + PAYLOAD_MAX, "more than one message is kept"
    return found, ""


def play(case: Case) -> int:
    places = [0, *case.cuts, len(case.stream)]
    chunks = [case.stream[a:b] for a, b in pairwise(places)]
    found, error = outcome([case.stream])
    assert outcome(chunks) == (found, error)
    if len(case.stream) < MAX_BYTEWISE:
        assert outcome([case.stream[at : at + 1] for at in range(len(case.stream))]) == (found, error)
    again = b"".join(packet.encode() for packet in found)
    assert case.stream.startswith(again)
    assert error or len(case.stream) - len(again) < HEADER.size + PAYLOAD_MAX
    return len(found) + 1
