# SPDX-License-Identifier: Apache-2.0
"""Parses the records of a traced queue, with the layout of record_t in dataplane/record.pxd."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

_RECORD = struct.Struct("<QIHHIIHHh2x")


class RecordKind(IntEnum):
    """RECORD_* of dataplane/record.pxd."""

    TX_SLOT = 1
    RX_SLOT = 2


@dataclass(frozen=True, slots=True)
class Record:
    """A slot."""

    time_ns: int
    link: int
    kind: int
    flags: int
    gref: int
    index: int
    offset: int
    size: int
    status: int


def parse_records(data: bytes) -> Iterator[Record]:
    """The records of one `Worker.records()`."""
    for values in _RECORD.iter_unpack(data):
        yield Record(*values)
