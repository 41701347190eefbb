# SPDX-License-Identifier: Apache-2.0
"""Of any capture's memory the reader gives the oracle's blocks of the good records, then says which is damaged."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

from tests.capture_oracle import HASHED, RECORD, RX, TX, Frame, Producer

from netback.dataplane.capture_reader import CaptureReader

RING_BYTES = 1 << 18
WHOLE = 65553
FIELDS = {
    "size": (0, "<I"), "captured": (4, "<I"), "device": (32, "<H"), "direction": (47, "<B"), "status": (42, "<h"),
    "gso_type": (46, "<B"), "hash_type": (52, "<B"), "extras": (53, "<B"), "flags": (36, "<H"),
}  # fmt: skip
"""Where a field of a record is."""


@dataclass(frozen=True, slots=True)
class Put:
    """A record; of `field`, if it is one, the value is another."""

    frame: Frame
    field: str
    value: int

    def pack(self) -> bytes:
        record = bytearray(self.frame.pack())
        if self.field:
            at, kind = FIELDS[self.field]
            struct.pack_into(kind, record, at, self.value)
        return bytes(record)

    @property
    def damaged(self) -> bool:
        """Whether the reader must refuse it: it would read beyond the record, or name what does not exist."""
        record = self.pack()
        size, captured = struct.unpack_from("<II", record)
        device, direction = struct.unpack_from("<H", record, 32)[0], record[47]
        return (
            size != len(record)
            or captured > size - RECORD.size
            or device >= 4096
            or direction not in (TX, RX)
        )


@dataclass(frozen=True, slots=True)
class Case:
    ops: tuple[Put, ...]
    reads: tuple[int, ...]
    """How many records are put before each reading."""


WORDS = (Case, Put, Frame)


def frame(rng: random.Random, when: int) -> Frame:
    bits = rng.getrandbits
    data = rng.randbytes(rng.choice((0, 1, 3, 14, 60, 64, rng.randint(0, 1600))))
    if rng.random() < 0.01:
        data = bytes(rng.randint(0, WHOLE))
    return Frame(
        when, max(len(data), bits(16)), bits(32), bits(32), rng.choice((0, bits(32))), rng.choice((0, 4095, bits(12))),
        bits(16), rng.choice((0, bits(5), bits(16))), bits(16), rng.choice((1, bits(16))), rng.choice((0, -1, -2)),
        bits(16), rng.choice((0, 1, 2, bits(8))), rng.choice((TX, RX)), rng.randbytes(4), rng.choice((1, bits(8))),
        rng.choice((0, HASHED, bits(8))), data,
    )  # fmt: skip


def put(rng: random.Random, when: int) -> Put:
    field = rng.choice(("", "", "", "", "", *FIELDS))
    bound = 1 << 8 * struct.calcsize(FIELDS[field][1]) if field else 1
    value = rng.choice((0, 1, 7, 8, RECORD.size, RECORD.size - 8, bound - 1, rng.randrange(bound))) % bound
    return Put(frame(rng, when), field, value if field != "status" else rng.choice((0, -1, -2)))


def make(rng: random.Random) -> Case:
    ops = tuple(put(rng, when) for when in range(rng.randint(1, 60)))
    return Case(ops, tuple(rng.randint(1, 5) for _ in ops))


def seen(put: Put) -> Frame:
    """What is in the memory, in the oracle's terms."""
    record = put.pack()
    values = RECORD.unpack_from(record)
    _, captured, *rest, hashed, hash_type, extras, _ = values
    return Frame(*rest, hashed, hash_type, extras, record[RECORD.size : RECORD.size + captured])


def play(case: Case) -> int:
    producer = Producer(ring_bytes=RING_BYTES)
    try:
        reader, left = CaptureReader(producer.fd), [*case.ops]
        for count in case.reads:
            now, left = left[:count], left[count:]
            for each in now:
                producer.put_bytes(each.pack())
            good = now[: next((at for at, each in enumerate(now) if each.damaged), len(now))]
            before = reader.taken
            try:
                blocks = reader.blocks()
            except ValueError:
                assert len(good) < len(now), "a good record was refused"
                assert reader.taken - before == len(good)
                break
            assert len(good) == len(now), "a damaged record was taken"
            assert blocks == b"".join(seen(each).block() for each in good)
    finally:
        producer.close()
    return len(case.ops)
