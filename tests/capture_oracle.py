# SPDX-License-Identifier: Apache-2.0
"""A capture in plain Python: its memory as docs/capture.md describes it, and the blocks that its frames become.

Imports nothing of netback.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass

HEADER = struct.Struct("<6I")
"""magic, version, rings, ring_bytes, devices, waiting."""
MAGIC = 0x4643424E
PAGE = 4096
MAX_DEVICES = 4096
DEVICE = struct.Struct("<48sQQ")
"""name, lost TX, lost RX."""
RECORD = struct.Struct("<IIQIIIIHHHHHhHBB4sBBH")
CONTROLS = PAGE + MAX_DEVICES * DEVICE.size
TAIL = 64
TX, RX = 1, 2
HASHED = 16

FLAGS = {
    TX: ("NETTXF_", ("csum_blank", "data_validated", "more_data", "extra_info")),
    RX: ("NETRXF_", ("data_validated", "csum_blank", "more_data", "extra_info", "gso_prefix")),
}
GSO = ("NONE", "TCPV4", "TCPV6")
HASHES = ("ipv4", "ipv4_tcp", "ipv6", "ipv6_tcp")
STATUS = {-1: "ERROR", -2: "DROPPED"}


@dataclass(frozen=True)
class Frame:
    """A record's contents."""

    time: int = 1_700_000_000_123_456_789
    length: int = 0
    gref: int = 9
    index: int = 0
    lost: int = 0
    device: int = 0
    queue: int = 0
    flags: int = 0
    offset: int = 0
    slots: int = 1
    status: int = 0
    gso_size: int = 0
    gso_type: int = 0
    direction: int = TX
    hash: bytes = bytes(4)
    hash_type: int = 0
    extras: int = 0
    data: bytes = b""

    def pack(self) -> bytes:
        """The record, padded."""
        size = RECORD.size + len(self.data) + 7 & ~7
        head = RECORD.pack(
            size, len(self.data), self.time, self.length, self.gref, self.index, self.lost, self.device, self.queue,
            self.flags, self.offset, self.slots, self.status, self.gso_size, self.gso_type, self.direction, self.hash,
            self.hash_type, self.extras, 0,
        )  # fmt: skip
        return (head + self.data).ljust(size, b"\0")

    @property
    def text(self) -> str:
        """The comment."""
        ring = "TX" if self.direction == TX else "RX"
        prefix, names = FLAGS[self.direction]
        named = [prefix + name for bit, name in enumerate(names) if self.flags >> bit & 1]
        rest = self.flags >> len(names) << len(names)
        flags = "|".join(named + ([hex(rest)] if rest else [])) or "none"
        text = f"{ring} ring slot {self.index % 256} (index {self.index}), {self.slots} slot{'s' * (self.slots != 1)}"
        text += f", flags {flags}, first gref {self.gref} offset {self.offset}"
        if self.gso_type:
            kind = GSO[self.gso_type] if self.gso_type < len(GSO) else str(self.gso_type)
            text += f", GSO {kind} size {self.gso_size}"
        if self.extras & HASHED:
            kind = HASHES[self.hash_type] if self.hash_type < len(HASHES) else str(self.hash_type)
            text += f", hash {kind} 0x{self.hash.hex()}"
        return text + (f", answered {STATUS[self.status]}" if self.status else "")

    def block(self, interfaces: int = 2) -> bytes:
        """The Enhanced Packet Block."""
        interface = self.device * interfaces + (self.direction - 1) * (interfaces - 1)
        options = [(1, self.text.encode()), (2, struct.pack("<I", self.direction))]
        options += [(4, struct.pack("<Q", self.lost))] if self.lost else []
        options += [(6, struct.pack("<I", self.queue))]
        body = struct.pack(
            "<5I", interface, self.time >> 32, self.time & 0xFFFFFFFF, len(self.data), max(self.length, len(self.data))
        )  # fmt: skip
        body += padded(self.data)
        body += b"".join(struct.pack("<HH", code, len(value)) + padded(value) for code, value in options)
        body += bytes(4)
        length = len(body) + 12
        return struct.pack("<II", 6, length) + body + struct.pack("<I", length)


def padded(data: bytes) -> bytes:
    """To a multiple of four."""
    return data + bytes(-len(data) % 4)


class Producer:
    """The backend's end of a memory: rings that a test fills as it likes."""

    def __init__(
        self, rings: int = 1, ring_bytes: int = 1 << 18, devices: tuple[str, ...] = ("vif3.0",)
    ) -> None:
        self.fd = os.memfd_create("oracle")
        self.rings, self.ring_bytes = rings, ring_bytes
        self.heads = [0] * rings
        size = CONTROLS + rings * (PAGE + ring_bytes)
        os.ftruncate(self.fd, size)
        self.memory = mmap.mmap(self.fd, size)
        HEADER.pack_into(self.memory, 0, MAGIC, 1, rings, ring_bytes, len(devices), 0)
        for number, name in enumerate(devices):
            self.name(number, name)

    def name(self, number: int, name: str) -> None:
        """Fill in the next entry of the table."""
        DEVICE.pack_into(self.memory, PAGE + number * DEVICE.size, name.encode(), 0, 0)
        struct.pack_into("<I", self.memory, 16, number + 1)

    def lose(self, number: int, tx: int, rx: int) -> None:
        """Count so many frames of a device as lost."""
        struct.pack_into("<QQ", self.memory, PAGE + number * DEVICE.size + 48, tx, rx)

    def put(self, frame: Frame, ring: int = 0) -> None:
        """Append a record."""
        self.put_bytes(frame.pack(), ring)

    def put_bytes(self, record: bytes, ring: int = 0) -> None:
        """Append bytes."""
        begin = CONTROLS + self.rings * PAGE + ring * self.ring_bytes
        for byte in range(0, len(record), 8):
            at = begin + (self.heads[ring] + byte) % self.ring_bytes
            self.memory[at : at + 8] = record[byte : byte + 8]
        self.heads[ring] += len(record)
        struct.pack_into("<Q", self.memory, CONTROLS + ring * PAGE, self.heads[ring])

    def tail(self, ring: int = 0) -> int:
        """How far the reader is."""
        value: int = struct.unpack_from("<Q", self.memory, CONTROLS + ring * PAGE + TAIL)[0]
        return value

    def close(self) -> None:
        """Give the memory back."""
        self.memory.close()
        os.close(self.fd)
