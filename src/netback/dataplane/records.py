# SPDX-License-Identifier: Apache-2.0
"""Parses the records of a traced or captured queue, with the layout of record_t in dataplane/record.pxd."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

_RECORD = struct.Struct("<QIHHIIHHHhHHI")


class RecordKind(IntEnum):
    """RECORD_* of dataplane/record.pxd."""

    TX_SLOT = 1
    RX_SLOT = 2
    TX_FRAME = 3
    RX_FRAME = 4


@dataclass(frozen=True, slots=True)
class Record:
    """A slot, or a frame with its bytes."""

    time_ns: int
    link: int
    kind: int
    flags: int
    gref: int
    index: int
    offset: int
    size: int
    slots: int
    status: int
    gso_size: int
    gso_type: int
    frame: bytes


def parse_records(data: bytes) -> Iterator[Record]:
    """The records of one `Worker.records()`."""
    at = 0
    while at < len(data):
        *values, length = _RECORD.unpack_from(data, at)
        begin = at + _RECORD.size
        values.append(data[begin : begin + length])
        yield Record(*values)
        at = begin + (length + 7 & ~7)
