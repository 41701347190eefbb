# SPDX-License-Identifier: Apache-2.0
"""Captured frames as pcapng (draft-ietf-opsawg-pcapng): an interface for each device and direction, and with each frame
what no capture on a link shows: how it crossed the ring.

The blocks of frames are made by dataplane/capture_reader.pyx, the few others here. No maintained library fits:
python-pcapng had its last release in 2022; scapy's writer requires all of scapy, under the GPL.
"""

import enum
import struct
import sys
import time
from collections.abc import Iterable

import netback
from netback.dataplane.capture_reader import CaptureReader
from netback.observe.choice import Direction

BYTE_ORDER_MAGIC = 0x1A2B3C4D
LINKTYPE_ETHERNET = 1
NANOSECONDS = bytes([9])
ALL = 0xFFFFFFFF
"""No limit of frames."""


class Block(enum.IntEnum):
    """Block types."""

    SECTION_HEADER = 0x0A0D0D0A
    INTERFACE_DESCRIPTION = 1
    INTERFACE_STATISTICS = 5
    ENHANCED_PACKET = 6


class Option(enum.IntEnum):
    """Option codes; each block defines its own from 2 on."""

    END = 0
    SHB_OS = 3
    SHB_USERAPPL = 4
    IF_NAME = 2
    IF_DESCRIPTION = 3
    IF_TSRESOL = 9
    ISB_STARTTIME = 2
    ISB_ENDTIME = 3
    ISB_IFRECV = 4
    ISB_IFDROP = 5


HEAD = struct.Struct("<II")
TAIL = struct.Struct("<I")
OPTION = struct.Struct("<HH")
SECTION = struct.Struct("<IHHq")
INTERFACE = struct.Struct("<HHI")
STATISTICS = struct.Struct("<III")
TIME = struct.Struct("<II")
COUNT = struct.Struct("<Q")


def padded(data: bytes) -> bytes:
    """Pad with zeros to a multiple of four bytes, as the format requires for every value and body."""
    return data + bytes(-len(data) % 4)


def options(values: Iterable[tuple[Option, bytes]]) -> bytes:
    """An option list."""
    parts = [OPTION.pack(code, len(value)) + padded(value) for code, value in values]
    return b"".join([*parts, OPTION.pack(Option.END, 0)])


def block(kind: Block, body: bytes) -> bytes:
    """A block: its length is at both ends, so that a reader can go backwards."""
    length = HEAD.size + len(body) + TAIL.size
    return HEAD.pack(kind, length) + body + TAIL.pack(length)


def section() -> bytes:
    """A Section Header Block."""
    head = SECTION.pack(BYTE_ORDER_MAGIC, 1, 0, -1)
    program = f"netback {netback.__version__}".encode()
    return block(
        Block.SECTION_HEADER,
        head + options([(Option.SHB_OS, sys.platform.encode()), (Option.SHB_USERAPPL, program)]),
    )


def interface(name: str, description: str, snaplen: int) -> bytes:
    """An Interface Description Block: Ethernet, timestamps in ns."""
    values = [
        (Option.IF_NAME, name.encode()),
        (Option.IF_DESCRIPTION, description.encode()),
        (Option.IF_TSRESOL, NANOSECONDS),
    ]
    return block(Block.INTERFACE_DESCRIPTION, INTERFACE.pack(LINKTYPE_ETHERNET, 0, snaplen) + options(values))


def statistics(number: int, begun: int, ended: int, frames: int, lost: int) -> bytes:
    """An Interface Statistics Block: what passed from `begun` to `ended` (ns since 1970), `lost` frames of it with no
    packet block.
    """
    values = [
        (Option.ISB_STARTTIME, TIME.pack(*_halves(begun))),
        (Option.ISB_ENDTIME, TIME.pack(*_halves(ended))),
        (Option.ISB_IFRECV, COUNT.pack(frames + lost)),
        (Option.ISB_IFDROP, COUNT.pack(lost)),
    ]
    return block(Block.INTERFACE_STATISTICS, STATISTICS.pack(number, *_halves(ended)) + options(values))


def _halves(nanoseconds: int) -> tuple[int, int]:
    return nanoseconds >> 32, nanoseconds & 0xFFFFFFFF


_MEANINGS = {"tx": "what the guest of {} sends", "rx": "what the guest of {} receives"}


class Section:
    """A capture's frames as a section: `begin`, `read` any number of times, `end`. Sections may follow one another, in
    one file or in several.
    """

    def __init__(self, reader: CaptureReader, direction: Direction, snaplen: int) -> None:
        self._reader = reader
        self._snaplen = snaplen
        self._ways = ("tx", "rx") if direction == "both" else (direction,)
        self._devices: list[str] = []
        self._before: list[tuple[int, int, int, int]] = []
        """Of each device when the section began."""
        self._begun = 0

    @property
    def frames(self) -> int:
        """Frames of all sections so far."""
        return self._reader.taken

    @property
    def lost(self) -> dict[str, int]:
        """Frames that were lost so far, in all sections, by interface; those that lost none are left out."""
        return {name: lost for name, _, lost in self._interfaces(self._reader.devices(), []) if lost}

    def begin(self) -> bytes:
        """The blocks that a section begins with."""
        self._begun = time.time_ns()
        self._before = [self._reader.counts(number) for number in range(len(self._devices))]
        known, self._devices = self._devices, []
        return section() + self._describe(known) + self._describe(self._reader.devices(len(known)))

    def read(self, most: int = ALL) -> bytes:
        """The blocks of the frames that are there, of `most` at most; empty if there are none. ValueError: a record is
        damaged.
        """
        blocks = self._reader.blocks(interfaces=len(self._ways), most=min(most, ALL))
        # after the frames: a device is in the table before its first one is in a ring
        return self._describe(self._reader.devices(len(self._devices))) + blocks

    def end(self) -> bytes:
        """The blocks that a section ends with: how many frames each interface had, and lost."""
        now = time.time_ns()
        return b"".join(
            statistics(number, self._begun, now, frames, lost)
            for number, (_, frames, lost) in enumerate(self._interfaces(self._devices, self._before))
        )

    def _describe(self, devices: list[str]) -> bytes:
        self._devices += devices
        return b"".join(
            interface(f"{device} {way}", _MEANINGS[way].format(device), self._snaplen)
            for device in devices
            for way in self._ways
        )

    def _interfaces(
        self, devices: list[str], before: list[tuple[int, int, int, int]]
    ) -> list[tuple[str, int, int]]:
        """Of each interface of the devices: its name, the frames since `before`, and those that were lost."""
        found = []
        for number, device in enumerate(devices):
            then = before[number] if number < len(before) else (0, 0, 0, 0)
            tx, rx, tx_lost, rx_lost = (
                now - old for now, old in zip(self._reader.counts(number), then, strict=True)
            )
            counts = {"tx": (tx, tx_lost), "rx": (rx, rx_lost)}
            found += [(f"{device} {way}", *counts[way]) for way in self._ways]
        return found
