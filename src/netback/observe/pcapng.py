# SPDX-License-Identifier: Apache-2.0
"""Writes pcapng captures: each frame has a comment on how it crossed the ring, which no capture on a link shows.

This module knows the file format (draft-ietf-opsawg-pcapng) and records, not vifs. No maintained library fits:
python-pcapng writes options for each packet, but had its last release in 2022 and is slow; scapy's writer requires all
of scapy, under the GPL.
"""

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import BinaryIO

from netback.abi.netif import RX_SLOTS, TX_SLOTS, GsoType, RxFlag, Status, TxFlag
from netback.dataplane.records import Record, RecordKind

BYTE_ORDER_MAGIC = 0x1A2B3C4D
LINKTYPE_ETHERNET = 1
NANOSECONDS = bytes([9])
MAX_OPTION = 0xFFFF
"""Maximum bytes of an option's value."""


class Block(enum.IntEnum):
    """Block types."""

    SECTION_HEADER = 0x0A0D0D0A
    INTERFACE_DESCRIPTION = 1
    ENHANCED_PACKET = 6


class Option(enum.IntEnum):
    """Option codes; each block defines its own from 2 on."""

    END = 0
    COMMENT = 1
    SHB_USERAPPL = 4
    IF_NAME = 2
    IF_DESCRIPTION = 3
    IF_TSRESOL = 9
    EPB_FLAGS = 2


class Direction(enum.IntEnum):
    """The lowest two bits of epb_flags, as seen by the backend."""

    INBOUND = 1
    OUTBOUND = 2


HEAD = struct.Struct("<II")
TAIL = struct.Struct("<I")
OPTION = struct.Struct("<HH")
SECTION = struct.Struct("<IHHq")
INTERFACE = struct.Struct("<HHI")
PACKET = struct.Struct("<IIIII")
FLAGS = struct.Struct("<I")


def padded(data: bytes) -> bytes:
    """Pad with zeros to a multiple of four bytes, as the format requires for every value and body."""
    return data + bytes(-len(data) % 4)


def options(values: dict[Option, bytes]) -> bytes:
    """An option list."""
    parts = [OPTION.pack(code, len(value)) + padded(value) for code, value in values.items()]
    return b"".join([*parts, OPTION.pack(Option.END, 0)])


def block(kind: Block, body: bytes) -> bytes:
    """A block: its length is at both ends, so that a reader can go backwards."""
    length = HEAD.size + len(body) + TAIL.size
    return HEAD.pack(kind, length) + body + TAIL.pack(length)


class PcapngWriter:
    """One section; interfaces may be added at any time before their first packet."""

    def __init__(self, stream: BinaryIO, *, program: str = "netback") -> None:
        self._stream = stream
        self._interfaces = 0
        head = SECTION.pack(BYTE_ORDER_MAGIC, 1, 0, -1)
        self._write(Block.SECTION_HEADER, head + options({Option.SHB_USERAPPL: program.encode()}))

    def interface(self, name: str, description: str) -> int:
        """Add an interface; returns its number, for `packet`."""
        values = {
            Option.IF_NAME: name.encode(),
            Option.IF_DESCRIPTION: description.encode(),
            Option.IF_TSRESOL: NANOSECONDS,
        }
        self._write(Block.INTERFACE_DESCRIPTION, INTERFACE.pack(LINKTYPE_ETHERNET, 0, 0) + options(values))
        self._interfaces += 1
        return self._interfaces - 1

    def packet(
        self, interface: int, time_ns: int, frame: bytes, *, length: int, direction: Direction, comment: str
    ) -> None:
        """Write a frame of `length` bytes, the first of which are `frame`, at `time_ns` (since 1970)."""
        values = {Option.COMMENT: comment.encode()[:MAX_OPTION], Option.EPB_FLAGS: FLAGS.pack(direction)}
        head = PACKET.pack(interface, time_ns >> 32, time_ns & 0xFFFFFFFF, len(frame), length)
        self._write(Block.ENHANCED_PACKET, head + padded(frame) + options(values))

    def _write(self, kind: Block, body: bytes) -> None:
        self._stream.write(block(kind, body))


@dataclass(frozen=True, slots=True)
class Ring:
    """How the records of each ring are written."""

    name: str
    slots: int
    prefix: str
    flags: type[TxFlag] | type[RxFlag]
    direction: Direction


RINGS = {
    RecordKind.TX_FRAME: Ring("TX", TX_SLOTS, "NETTXF", TxFlag, Direction.INBOUND),
    RecordKind.RX_FRAME: Ring("RX", RX_SLOTS, "NETRXF", RxFlag, Direction.OUTBOUND),
}


@lru_cache(256)
def flag_names(prefix: str, flags: TxFlag | RxFlag) -> str:
    """The flags' names in netif.h; bits without a name as a number."""
    names = [f"{prefix}_{flag.name.lower()}" for flag in type(flags) if flag.name and flag & flags]
    unknown = int(flags) & ~sum(type(flags))
    return "|".join([*names, *([hex(unknown)] if unknown else [])]) or "none"


def describe(record: Record) -> str:
    """One line that describes how a frame crossed its ring: slots, flags, grant, GSO, status."""
    ring = RINGS[RecordKind(record.kind)]
    parts = [
        f"{ring.name} ring slot {record.index % ring.slots} (index {record.index})",
        f"{record.slots} slots",
        f"flags {flag_names(ring.prefix, ring.flags(record.flags))}",
        f"first gref {record.gref} offset {record.offset}",
    ]
    if record.gso_type != GsoType.NONE:
        parts.append(f"GSO {GsoType(record.gso_type).name} size {record.gso_size}")
    if record.status != Status.OKAY:
        parts.append(f"answered {Status(record.status).name}")
    return ", ".join(parts)


class Capture:
    """A pcapng file for the frames of any number of queues, one interface for each ring.

    An error of the file ends the capture, not the worker; `error` keeps it. `frames` counts the frames written.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._lock = Lock()
        self._writer = PcapngWriter(stream)
        self.frames = 0
        self.error: OSError | None = None

    def sink(self, vif: str, queue: int = 0) -> Callable[[Record], None]:
        """Return the function that accepts the records of one queue (`Vif.capture`), from any thread."""
        with self._lock:
            numbers = {
                kind: self._writer.interface(
                    f"{vif}-q{queue}-{ring.name.lower()}", f"{ring.name} ring of {vif}, queue {queue}"
                )
                for kind, ring in RINGS.items()
            }
        return lambda record: self._take(numbers, record)

    def _take(self, numbers: dict[RecordKind, int], record: Record) -> None:
        kind = RecordKind(record.kind)
        if kind not in numbers or self.error:
            return
        try:
            with self._lock:
                self._writer.packet(
                    numbers[kind],
                    record.time_ns,
                    record.frame,
                    length=max(record.size, len(record.frame)),
                    direction=RINGS[kind].direction,
                    comment=describe(record),
                )
                self.frames += 1
        except OSError as error:
            self.error = error
