# SPDX-License-Identifier: Apache-2.0
"""A backend's queue: its two rings, the guest's memory and the peer, tied together for the worker.

Knows what a queue is made of; how frames move is in guest_tx and guest_rx, when in worker.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from netback.errors import GuestError
from netback.dataplane.abi cimport PAGE_SIZE, RX_SLOT, TX_SLOT
from netback.dataplane.arena cimport Arena
from netback.dataplane.platform.events cimport Events
from netback.dataplane.platform.memory cimport GuestMemory
from netback.dataplane.back.rx cimport serve_rx
from netback.dataplane.back.tx cimport serve_tx
from netback.dataplane.journal cimport Journal, complete_journal
from netback.dataplane.peers.peer cimport Peer
from netback.dataplane.ring cimport back_attach, back_pending, load_acquire, sring

cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef enum:
    CACHE_LINE = 64              # frames begin on one: copies to elsewhere are slower

REASONS = {
    REASON_TX_INDEX: "TX req_prod is impossible",
    REASON_RX_INDEX: "RX req_prod is impossible",
    REASON_TRUNCATED: "TX chain runs past req_prod",
    REASON_SLOTS: "TX frame has too many slots",
    REASON_EXTRA: "TX extra info of an unknown type",
    REASON_GSO: "TX GSO extra with an impossible type or size",
    REASON_RESPONSE: "a response that cannot be: unknown id or impossible rsp_prod",
}

COUNTERS = (
    "tx_frames", "tx_bytes", "tx_slots", "tx_bursts", "tx_notifies", "tx_errors", "tx_dropped", "tx_refused",
    "tx_fixed_up", "tx_completed", "tx_segmented", "tx_full",
    "rx_frames", "rx_bytes", "rx_slots", "rx_bursts", "rx_notifies", "rx_errors", "rx_dropped", "rx_too_big",
    "rx_completed", "rx_segmented", "rx_stalls", "rx_faults",
    "events", "events_empty",
)


cdef void record(workspace_t *ws, link_t *link, record_t *entry, const uint8_t *bytes, uint32_t length) noexcept nogil:
    """Append a record; where the reader is behind it is lost and counted, never waited for."""
    cdef uint32_t size = (sizeof(record_t) + length + 7) & ~<uint32_t>7
    cdef timespec now
    if ws.records_used + size > RECORD_BYTES:
        ws.records_lost += 1
        return
    clock_gettime(CLOCK_REALTIME, &now)
    entry.time = <uint64_t>now.tv_sec * 1000000000 + now.tv_nsec
    entry.link = link.index
    entry.length = length
    memcpy(ws.records + ws.records_used, entry, sizeof(record_t))
    if length:                   # no bytes, no address: memcpy must not see NULL
        memcpy(ws.records + ws.records_used + sizeof(record_t), bytes, length)
    ws.records_used += size


cdef workspace_t *workspace_new(Arena arena) except NULL:
    cdef workspace_t *ws = <workspace_t *>calloc(1, sizeof(workspace_t))
    if ws != NULL:
        ws.pages = &arena.arena
        # a frame begins at a page: then a grant copy of a page is one, and not split in two by Linux
        ws.arena = ws.pages.memory + PAGE_SIZE - FRAME_HEADROOM
        ws.tx_memory = <uint8_t *>aligned_alloc(PAGE_SIZE, PAGE_SIZE + BURST_BYTES + FRAME_STRIDE)
        ws.packed = ws.tx_memory + PAGE_SIZE - FRAME_HEADROOM
        ws.cuts = <uint8_t *>aligned_alloc(CACHE_LINE, CUT_BYTES)
        ws.records = <uint8_t *>aligned_alloc(CACHE_LINE, RECORD_BYTES)
    if ws == NULL or ws.tx_memory == NULL or ws.cuts == NULL or ws.records == NULL:
        workspace_free(ws)
        raise MemoryError
    return ws


cdef void workspace_free(workspace_t *ws) noexcept:
    if ws != NULL:
        free(ws.tx_memory)
        free(ws.cuts)
        free(ws.records)
        free(ws)


cdef class Link:
    """A queue of either end, as a worker serves it."""

    @property
    def broken(self) -> str | None:
        """Why the far side's misbehaviour ended it, or None."""
        return REASONS[self.link.broken] if self.link.broken else None

    cdef bint newly_broken(self):
        cdef bint new = self.link.broken and not self.reported
        self.reported |= new
        return new

    @property
    def index(self) -> int:
        """Its place in its worker's table: the `link` of its records."""
        return self.link.index

    @property
    def counters(self) -> dict[str, int]:
        """A snapshot of everything that this queue counts, since it was made."""
        cdef int i
        return {COUNTERS[i]: self.link.counters[i] for i in range(COUNTERS_END)}

    @property
    def blocked(self) -> tuple[bool, bool]:
        """(the peer is full, slots lack)."""
        return bool(self.link.peer.blocked), bool(self.link.to_blocked)

    def watch(self, *, bint traced, bint captured) -> None:
        """Write down each slot and/or each frame from now on: Worker.records."""
        self.link.traced = traced
        self.link.captured = captured

    def freeze(self, bint frozen=True) -> None:
        """Refuse RX: the frontend is Closing."""
        self.link.frozen = frozen


cdef uint64_t back_moved(link_t *link) noexcept nogil:
    cdef back_queue *queue = <back_queue *>link
    return <uint64_t>load_acquire(&queue.tx.shared.req_prod) << 32 | load_acquire(&queue.rx.shared.req_prod)


cdef int attach(back_queue *queue, size_t tx_page, size_t rx_page) except -1:
    """Indices first, then the journal: a guest whose index is impossible gets nothing completed."""
    back_attach(&queue.tx, <void *>tx_page)
    back_attach(&queue.rx, <void *>rx_page)
    if back_pending(&queue.tx) < 0:
        raise GuestError(REASONS[REASON_TX_INDEX])
    if back_pending(&queue.rx) < 0:
        raise GuestError(REASONS[REASON_RX_INDEX])
    complete_journal(&queue.tx, queue.tx_journal)
    complete_journal(&queue.rx, queue.rx_journal)
    back_attach(&queue.tx, <void *>tx_page)
    back_attach(&queue.rx, <void *>rx_page)
    return 0


def ring_state(size_t page, uint32_t private) -> dict[str, int]:
    """A ring's four shared indices, and the private one of the end that asks."""
    cdef sring *shared = <sring *>page
    return {
        "req_prod": load_acquire(&shared.req_prod),
        "req_event": load_acquire(&shared.req_event),
        "rsp_prod": load_acquire(&shared.rsp_prod),
        "rsp_event": load_acquire(&shared.rsp_event),
        "private": private,
    }


cdef class BackQueue(Link):
    """The backend's end of one queue.

    `tx_page` and `rx_page` are addresses of the mapped ring pages; `tx_name` and `rx_name` are 64-bit
    names of these rings that another process would give them too (gref and remote port): a journal of
    other rings is void. `tx_port` and `rx_port` are our bound ports (the same unless split). `caps` are
    CAN_* bits of what the guest takes; `sg` whether it takes frames of more than a page; `rx_offset`
    where a frame begins in its first page, in bytes. Everything handed in is kept alive.

    Attaching follows rules 2: the caller has bound the port; here indices are checked, the journal is
    completed, and the rings are taken up at rsp_prod. The worker drains and arms both when the queue is
    added to it, and notifies once.
    """

    def __cinit__(
        self, Events events, GuestMemory memory, Peer peer, Journal journal, *, size_t tx_page, size_t rx_page,
        uint64_t tx_name, uint64_t rx_name, uint32_t tx_port, uint32_t rx_port, uint32_t caps, bint sg,
        uint16_t rx_offset=0, bint polls=False, object keep=None,
    ):
        self.peer = peer
        self.journal = journal
        self.keep = (events, memory, keep)
        self.link = &self.queue.link
        self.link.from_ring = serve_tx
        self.link.to_ring = serve_rx
        self.link.moved = back_moved
        self.link.peer = &peer.peer
        self.link.events = events.events
        self.link.from_port = tx_port
        self.link.to_port = rx_port
        self.link.polls = polls
        self.queue.memory = memory.memory
        self.queue.caps = caps
        self.queue.sg = sg
        self.queue.rx_offset = rx_offset
        self.queue.tx_journal = journal.of_ring(0, tx_name, TX_SLOT)
        self.queue.rx_journal = journal.of_ring(1, rx_name, RX_SLOT)
        # memory that is touched only where frames wait
        self.queue.hold = <uint8_t *>aligned_alloc(CACHE_LINE, HELD_FRAMES * FRAME_STRIDE)
        if self.queue.hold == NULL:
            raise MemoryError
        attach(&self.queue, tx_page, rx_page)

    def __dealloc__(self):
        free(self.queue.hold)

    @property
    def rings(self) -> dict[str, dict[str, int]]:
        """The indices of both rings as they stand in the shared pages, and ours."""
        return {"tx": ring_state(<size_t>self.queue.tx.shared, self.queue.tx.rsp_prod),
                "rx": ring_state(<size_t>self.queue.rx.shared, self.queue.rx.rsp_prod)}
