# SPDX-License-Identifier: Apache-2.0
"""A backend queue beside a simulated guest memory in one process: only the data plane, for tests and benchmarks.

There is no hypervisor and no store: the harness writes pages, grants and event pages, and `step` drives the polls.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import socket

from netback.abi import netif
from netback.abi.grant_table import ENTRY, GrantFlag
from netback.abi.netif import ExtraType, GsoType, TxFlag
from netback.abi.ring import PAGE_SIZE, REQ_PROD, SRING, slot_offset
from netback.dataplane.back.queue import BackQueue
from netback.dataplane.journal import Journal
from netback.dataplane.peers.peer import Peer
from netback.dataplane.peers.socket import SocketPeer
from netback.dataplane.platform.emulated_events import EmulatedEvents
from netback.dataplane.platform.emulated_memory import EmulatedMemory
from netback.dataplane.settings import Settings
from netback.dataplane.shared_words import SharedWords
from netback.dataplane.worker import Worker

GUEST_DOMID = 7
LOCAL_DOMID = 0
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
PORT, RX_PORT = 3, 4
"""The backend's ports of the TX and of the RX ring; a shared one is PORT."""
FAR_PORT, FAR_RX_PORT = 5, 6
MASK_OFFSET = 4096 // 8
RING_PAGES = (1, 2)
"""Frames of the TX and RX ring pages; the grant table is frame 0."""


def address_of(memory: mmap.mmap, page: int = 0) -> int:
    """Where a page of a mapping lies."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory)) + page * PAGE_SIZE


class Bench:
    """One queue beside the memory of its guest: page 0 grants, 1 TX ring, 2 RX ring, then data.

    `peer_end` is the network's end of a socketpair. `attach` resumes the rings, as a restarted backend does.
    """

    def __init__(
        self,
        *,
        pages: int = 600,
        grant_pages: int = 1,
        vnet_hdr: bool = True,
        peer_caps: int = 15,
        caps: int = 15,
        sg: bool = True,
        rx_offset: int = 0,
        peer: Peer | None = None,
        start: int = 0,
        journal: str | None = None,
        settings: str | None = None,
        split: bool = False,
        rx_unannounced: bool = False,
    ) -> None:
        self.fd = os.memfd_create("guest", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        os.ftruncate(self.fd, pages * PAGE_SIZE)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS)
        self.memory = mmap.mmap(self.fd, pages * PAGE_SIZE)
        self.event_pages = mmap.mmap(-1, 2 * PAGE_SIZE)
        self.eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.guest_eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        far = {PORT: FAR_PORT, RX_PORT: FAR_RX_PORT}
        remote = (address_of(self.event_pages, 1), self.guest_eventfd)
        self.events = EmulatedEvents(
            self.eventfd, address_of(self.event_pages), lambda port: (*remote, far[port])
        )
        self.rx_port = RX_PORT if split else PORT
        self.guest = EmulatedMemory(self.fd, grant_pages, GUEST_DOMID, LOCAL_DOMID)
        self.peer_end: socket.socket | None = None
        self.our_end: socket.socket | None = None
        if peer is None:
            self.our_end, self.peer_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            for end in (self.our_end, self.peer_end):
                end.setblocking(False)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)
            peer = SocketPeer(self.our_end.fileno(), vnet_hdr=vnet_hdr, caps=peer_caps, owner=self.our_end)
        for page in RING_PAGES:
            SRING.pack_into(
                self.memory,
                page * PAGE_SIZE,
                start,
                (start + 1) & 0xFFFFFFFF,
                start,
                (start + 1) & 0xFFFFFFFF,
            )
        self.peer = peer
        self.options = {"caps": caps, "sg": sg, "rx_offset": rx_offset, "rx_unannounced": rx_unannounced}
        self.attach(journal, settings)

    def attach(self, journal: str | None = None, settings: str | Settings | None = None) -> None:
        """Start a backend's end on the rings as they stand."""
        shared = settings if isinstance(settings, Settings) else Settings(settings)
        self.queue = BackQueue(
            self.events,
            self.guest,
            self.peer,
            Journal(journal),
            tx_page=self.guest.page_address(RING_PAGES[0]),
            rx_page=self.guest.page_address(RING_PAGES[1]),
            tx_name=1,
            rx_name=2,
            tx_port=PORT,
            rx_port=self.rx_port,
            settings=shared,
            **self.options,
        )
        self.worker = Worker(self.events)
        self.worker.add(self.queue)

    def grant(
        self, gref: int, frame: int, *, flags: int = GrantFlag.PERMIT_ACCESS, domid: int = LOCAL_DOMID
    ) -> None:
        """Write a grant entry."""
        ENTRY.pack_into(self.memory, gref * ENTRY.size, flags, domid, frame)

    def write(self, frame: int, offset: int, data: bytes) -> None:
        """Write guest memory."""
        at = frame * PAGE_SIZE + offset
        self.memory[at : at + len(data)] = data

    def read(self, frame: int, offset: int, length: int) -> bytes:
        """Read guest memory."""
        at = frame * PAGE_SIZE + offset
        return self.memory[at : at + length]

    def run(self, limit: int = 1000) -> None:
        """Poll until the queue has no more to do."""
        for _ in range(limit):
            if not self.worker.step(self.queue):
                return
        raise AssertionError(f"the queue still had work after {limit} turns")

    def sent(self) -> list[bytes]:
        """The frames that reached the network since the last call, each with its header if the peer has one."""
        assert self.peer_end is not None
        frames = []
        while True:
            try:
                frames.append(self.peer_end.recv(1 << 17))
            except BlockingIOError:
                return frames

    def notified(self) -> bool:
        """Whether the guest was notified since the last call."""
        return bool(self.notified_ports())

    def notified_ports(self) -> set[int]:
        """The guest's ports that were notified since the last call."""
        word = ctypes.c_uint64.from_address(address_of(self.event_pages, 1))
        fired = {port for port in (FAR_PORT, FAR_RX_PORT) if word.value & 1 << port}
        word.value = 0
        return fired

    def ring_the_bell(self, port: int = PORT) -> None:
        """The guest notifies the backend."""
        words = SharedWords(self.event_pages)
        words.set64(0, 1 << port)
        if not words.load64(MASK_OFFSET) & 1 << port:
            os.eventfd_write(self.eventfd, 1)
        words.release()

    def is_masked(self, port: int) -> bool:
        """Whether the backend's port is masked."""
        words = SharedWords(self.event_pages)
        masked = bool(words.load64(MASK_OFFSET) & 1 << port)
        words.release()
        return masked

    def close(self) -> None:
        """Release everything."""
        self.worker.remove(self.queue)
        for fd in (self.fd, self.eventfd, self.guest_eventfd):
            os.close(fd)
        for end in (self.our_end, self.peer_end):
            if end is not None:
                end.close()


def post(bench: Bench, ring: int, slots: list[bytes], first: int = 0) -> None:
    """Write requests from index `first` on, and publish them."""
    for number, slot in enumerate(slots, first):
        bench.write(ring, slot_offset(number % 256, len(slot)), slot)
    bench.write(ring, REQ_PROD, (first + len(slots)).to_bytes(4, "little"))


TWO_SLOTS = 3000
"""Bytes in the first slot of `post_gso_frame`."""
TWO_SLOTS_FLAGS = TxFlag.CSUM_BLANK | TxFlag.DATA_VALIDATED | TxFlag.MORE_DATA | TxFlag.EXTRA_INFO


def post_gso_frame(bench: Bench, whole: bytes) -> None:
    """Have the guest send this TCP frame in two slots, at offset 96 of grant 8 and in grant 9, with a GSO extra."""
    bench.grant(8, 10)
    bench.grant(9, 11)
    bench.write(10, 96, whole[:TWO_SLOTS])
    bench.write(11, 0, whole[TWO_SLOTS:])
    post(
        bench,
        1,
        [
            netif.TX_REQUEST.pack(8, 96, TWO_SLOTS_FLAGS, 1, len(whole)),
            netif.EXTRA_GSO.pack(ExtraType.GSO, 0, 1448, GsoType.TCPV4, 0, 0) + bytes(4),
            netif.TX_REQUEST.pack(9, 0, 0, 2, len(whole) - TWO_SLOTS),
        ],
    )
