# SPDX-License-Identifier: Apache-2.0
"""A backend queue and a guest's memory in this process, with rings that are refilled in one copy, and no hypervisor.

The guest's requests are prepared in advance, so that a measurement contains the backend's work alone.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
from dataclasses import dataclass

from netback.abi import grant_table, netif, virtio_net
from netback.dataplane import clock
from netback.dataplane.back.queue import BackQueue
from netback.dataplane.credit import Credit
from netback.dataplane.flight import Flight
from netback.dataplane.journal import Journal
from netback.dataplane.peers.antispoof import AntispoofPeer
from netback.dataplane.peers.null import NullPeer
from netback.dataplane.peers.peer import Peer
from netback.dataplane.platform.emulated_events import EmulatedEvents
from netback.dataplane.platform.emulated_memory import EmulatedMemory
from netback.dataplane.staged import Staged
from netback.dataplane.worker import Worker
from netback.net.sandbox.packets import checksum
from netback.observe.choice import RecordMode
from netback.observe.recorder import MEMORY

PAGE = 4096
SLOTS = 256
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
GRANT_PAGES = 2
EVENT_PAGE, RING_PAGE, DATA_PAGE = 2, 3, 4
PAGES = DATA_PAGE + SLOTS
FIRST_GREF = grant_table.RESERVED_ENTRIES
DOMID = 1
ALL_CAPS = 15
GSO_SIZE = 1448
SOURCE, ADDRESS = bytes.fromhex("00163e000001"), b"\x0a\x63\0\1"
"""The guest's own addresses."""
HEADERS = 54
BURST_BYTES = 256 * 1024
BURST_FRAMES = 64
LIMITED = (10**15, 10**9)
"""Bytes in each period of ns: a limit that costs its work and never waits."""
WORD = struct.Struct("<I")
RING_HEADER = 64
REQ_PROD, RSP_PROD, RSP_EVENT = 0, 8, 12


@dataclass(frozen=True, slots=True)
class Shape:
    """The size and form of every frame of a measurement."""

    length: int
    gso: bool

    @property
    def pieces(self) -> list[int]:
        """The bytes in each data slot."""
        return [min(PAGE, self.length - at) for at in range(0, self.length, PAGE)]

    @property
    def slots(self) -> int:
        return len(self.pieces) + self.gso

    @property
    def frames(self) -> int:
        """Frames that a ring holds."""
        return SLOTS // self.slots

    @property
    def page_of_slot(self) -> list[int | None]:
        """The data page of each slot of a full ring; an extra uses none, though one was posted for it."""
        extras = {frame * self.slots + 1 for frame in range(self.frames) if self.gso}
        return [None if slot in extras else slot for slot in range(self.frames * self.slots)]

    def frame(self) -> bytes:
        """TCP over IPv4 with a blank checksum, as Linux sends it."""
        total = self.length - 14
        ethernet = bytes.fromhex("00163e000002") + SOURCE + b"\x08\0"
        ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, total, 0, 0x4000, 64, 6, 0, ADDRESS, b"\x0a\x63\0\2")
        ip = ip[:10] + checksum(ip).to_bytes(2, "big") + ip[12:]
        tcp = struct.pack(">HHIIBBHHH", 5001, 5002, 1, 1, 0x50, 0x10, 512, 0, 0)
        return (ethernet + ip + tcp).ljust(self.length, b"x")

    def template(self) -> bytes:
        gso = (virtio_net.GSO_TCPV4, HEADERS, GSO_SIZE) if self.gso else (virtio_net.GSO_NONE, 0, 0)
        return virtio_net.HEADER.pack(virtio_net.F_NEEDS_CSUM, *gso, 34, 16) + self.frame()


SHAPES = {
    "64 B": Shape(64, gso=False),
    "1500 B": Shape(1500, gso=False),
    "64 KiB GSO": Shape(65535, gso=True),
}


def tx_frame(shape: Shape, first: int) -> bytes:
    """A frame's requests; the first one holds the size of the frame."""
    flags = (
        netif.TxFlag.CSUM_BLANK | netif.TxFlag.DATA_VALIDATED | (netif.TxFlag.EXTRA_INFO if shape.gso else 0)
    )
    last = len(shape.pieces) - 1
    slots = []
    for at, piece in enumerate(shape.pieces):
        page = first + at + (shape.gso and at > 0)
        more = netif.TxFlag.MORE_DATA if at < last else 0
        size = piece if at else shape.length
        slots.append(netif.TX_REQUEST.pack(FIRST_GREF + page, 0, (0 if at else flags) | more, page, size))
    if shape.gso:
        extra = netif.EXTRA_GSO.pack(netif.ExtraType.GSO, 0, GSO_SIZE, netif.GsoType.TCPV4, 0, 0)
        slots.insert(1, extra.ljust(netif.TX_SLOT, b"\0"))
    return b"".join(slots)


def tx_requests(shape: Shape) -> bytes:
    return b"".join(tx_frame(shape, frame * shape.slots) for frame in range(shape.frames))


def rx_requests(shape: Shape) -> bytes:
    return b"".join(
        netif.RX_REQUEST.pack(slot, 0, FIRST_GREF + slot) for slot in range(shape.frames * shape.slots)
    )


def guest_memory() -> tuple[mmap.mmap, EmulatedMemory]:
    """A guest's memory with every data page granted, as the guest and as the backend map it."""
    fd = os.memfd_create("bench", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, PAGES * PAGE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        own = mmap.mmap(fd, PAGES * PAGE)
        for slot in range(SLOTS):
            entry = (grant_table.GrantFlag.PERMIT_ACCESS, 0, DATA_PAGE + slot)
            grant_table.ENTRY.pack_into(own, (FIRST_GREF + slot) * grant_table.ENTRY.size, *entry)
        return own, EmulatedMemory(fd, GRANT_PAGES, DOMID, 0)
    finally:
        os.close(fd)


class Ring:
    """One ring of a queue, filled by `fill` and emptied by `worker.step(queue)`; the queue's other ring stays empty.

    Without `peer` the network is a null peer.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        tx: bool,
        rate: tuple[int, int] | None = None,
        peer: Peer | None = None,
        filtered: bool = False,
        record: RecordMode = "off",
    ) -> None:
        self.shape = shape
        inner = peer or NullPeer(caps=ALL_CAPS, template=b"" if tx else shape.template())
        self._peer = AntispoofPeer(inner, mac=SOURCE, networks=[(ADDRESS, 32)]) if filtered else inner
        self.tx = tx
        self.own, self.memory = guest_memory()
        self._requests = ctypes.create_string_buffer(tx_requests(shape) if tx else rx_requests(shape))
        self._slot = netif.TX_SLOT if tx else netif.RX_SLOT
        self._count = shape.frames * shape.slots
        self._page = ctypes.addressof(ctypes.c_char.from_buffer(self.own)) + RING_PAGE * PAGE
        self._idle = mmap.mmap(-1, PAGE)  # the other direction's ring
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK)
        events = EmulatedEvents(self._eventfd, self.memory.page_address(EVENT_PAGE), lambda port: None)
        self.worker = Worker(events)
        self.queue = self._queue(events)
        if record != "off":
            self.queue.record(Flight(*MEMORY[record]))
        if rate is not None:
            self.worker.limit(self.queue, *(Credit(*rate, now=clock.now()) for _ in range(2)))
        for slot in range(SLOTS if tx else 0):
            at = (DATA_PAGE + slot) * PAGE
            self.own[at : at + PAGE] = shape.frame()[:PAGE].ljust(PAGE, b"x")

    def _queue(self, events: EmulatedEvents) -> BackQueue:
        busy = self.memory.page_address(RING_PAGE)
        idle = ctypes.addressof(ctypes.c_char.from_buffer(self._idle))
        return BackQueue(
            events, self.memory, self._peer, Journal(),
            tx_page=busy if self.tx else idle, rx_page=idle if self.tx else busy, tx_name=1, rx_name=2,
            tx_port=1, rx_port=1, caps=ALL_CAPS, sg=True, keep=self._idle,
        )  # fmt: skip

    def stage(self) -> None:
        """Stage every data page, as a guest does by its control ring."""
        pages = {FIRST_GREF + slot: self.memory.page_address(DATA_PAGE + slot) for slot in range(SLOTS)}
        self.queue.set_staged(Staged({gref: (address, not self.tx) for gref, address in pages.items()}))

    def fill(self) -> None:
        """Post a full ring of requests; set rsp_event to the last response."""
        base = RING_PAGE * PAGE
        (produced,) = WORD.unpack_from(self.own, base + REQ_PROD)
        at = produced % SLOTS
        run = min(self._count, SLOTS - at) * self._slot
        slots, requests = self._page + RING_HEADER, ctypes.addressof(self._requests)
        ctypes.memmove(slots + at * self._slot, requests, run)
        ctypes.memmove(slots, requests + run, self._count * self._slot - run)
        end = (produced + self._count) & 0xFFFFFFFF
        WORD.pack_into(self.own, base + RSP_EVENT, end)
        WORD.pack_into(self.own, base + REQ_PROD, end)

    @property
    def answered(self) -> int:
        """The ring's index of responses."""
        return int(WORD.unpack_from(self.own, RING_PAGE * PAGE + RSP_PROD)[0])

    def check(self) -> None:
        """RuntimeError unless every request has its response and every frame was moved."""
        (produced,), answered = WORD.unpack_from(self.own, RING_PAGE * PAGE + REQ_PROD), self.answered
        counted = self.queue.counters
        way = "tx" if self.tx else "rx"
        bad = counted[f"{way}_errors"] + counted[f"{way}_dropped"]
        whole = counted[f"{way}_bytes"] == counted[f"{way}_frames"] * self.shape.length
        if self.queue.broken or produced != answered or bad or not whole:
            raise RuntimeError(f"the ring stands at {answered} of {produced}: {self.queue.broken}, {counted}")

    def copies(self, private: int) -> list[tuple[int, int, int]]:
        """(to, from, length) of each copy of a full ring: TX into private memory, RX from one frame there."""
        made = []
        used = 0
        pages = [page for page in self.shape.page_of_slot if page is not None]
        for frame in range(self.shape.frames):
            at = 0
            for number, piece in enumerate(self.shape.pieces):
                page = self.memory.page_address(DATA_PAGE + pages[frame * len(self.shape.pieces) + number])
                made.append((private + used + at, page, piece) if self.tx else (page, private + at, piece))
                at += piece
            used = self.next_place(frame, used)
        return made

    def next_place(self, frame: int, used: int) -> int:
        """The offset of a burst's next frame, on its own cache lines; 0 again after a full burst."""
        used += (self.shape.length + 127) & ~63
        return used if used < BURST_BYTES and (frame + 1) % BURST_FRAMES else 0
