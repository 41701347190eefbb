# SPDX-License-Identifier: Apache-2.0
"""Any recording, however damaged or made up, is refused with one line or replayed: it neither fails nor hangs.

The cases are recordings of random rings. Their polls' bytes are changed under right checksums, so that what the reader
of files lets pass comes to the native code.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

from tests.dataplane.ring_cases import case
from tests.dataplane.side_by_side import Pair

from netback.dataplane.flight import Flight
from netback.errors import ConfigError
from netback.observe import replay
from netback.observe.recording import MAGIC, Header, QueueHeader, decode, encode

SIZE = 1 << 20
SNAPLEN = 128
_WORDS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF, 65536, 4096, 1 << 19)


@dataclass(frozen=True, slots=True)
class Change:
    """`data` in place of as many bytes of a poll, or of the whole file if `poll` is -1; at a fraction of its length."""

    poll: int
    at: float
    data: bytes
    cut: bool
    """What follows is left out."""


@dataclass(frozen=True, slots=True)
class Case:
    seed: int
    """Of the rings that are recorded."""
    changes: tuple[Change, ...]


WORDS = (Case, Change)


def make(rng: random.Random) -> Case:
    changes = []
    for _ in range(rng.choice((1, 1, 2, 5))):
        word = rng.choice((*_WORDS, rng.getrandbits(32)))
        data = word.to_bytes(4, "little")[: rng.choice((1, 2, 4))]
        at = rng.random() ** rng.choice((1, 4))  # half of them near the beginning
        changes.append(Change(rng.choice((-1, *range(12))), at, data, rng.random() < 0.05))
    return Case(rng.randrange(1 << 30), tuple(changes))


def recorded(seed: int) -> list[bytes]:
    """The polls of random rings."""
    pair = Pair(case(random.Random(seed)))
    try:
        flight = Flight(SIZE, SNAPLEN)
        pair.bench.queue.record(flight)
        pair.play()
        return flight.polls()
    finally:
        pair.close()


def change(data: bytes, how: Change) -> bytes:
    at = int(how.at * len(data))
    return data[:at] + how.data[: len(data) - at] + (b"" if how.cut else data[at + len(how.data) :])


def file(polls: list[bytes]) -> bytes:
    queues = (QueueHeader(len(polls), len(polls), 0),)
    return encode(Header(device="vif7.0", saved=0.0, clock=0, snaplen=SNAPLEN, queues=queues), [polls])


def steps(data: bytes) -> int:
    """The steps of a file, 0 if it is refused."""
    try:
        return sum(isinstance(each, replay.Step) for each in replay.play(decode(data)))
    except (ValueError, ConfigError) as error:
        if not str(error).isprintable():
            raise AssertionError("more than a line") from error
        return 0


def play(case: Case) -> int:
    polls = recorded(case.seed)
    for how in case.changes:
        if 0 <= how.poll < len(polls):
            changed = change(polls[how.poll], how)
            polls[how.poll] = struct.pack("<I", len(changed)) + changed[4:] if len(changed) > 3 else changed
    data = file(polls)
    assert data.startswith(MAGIC)
    for how in case.changes:
        if how.poll < 0:
            data = change(data, how)
    steps(data)
    return len(polls)
