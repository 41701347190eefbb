# SPDX-License-Identifier: Apache-2.0
"""Plays recorded polls: the backend's own polls, on pages of this process, with all that they read from a recording."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from netback.dataplane import clock
from netback.dataplane.abi cimport EXTRA_TYPE_XDP, GNTST_okay, PAGE_SIZE, RING_SLOTS, RX_SLOT, TX_SLOT, copy_segment
from netback.dataplane.arena cimport Arena
from netback.dataplane.back.queue cimport BACKLOG_FRAMES, BackQueue, back_queue
from netback.dataplane.back.recording cimport POLL_RX, POLL_TX, direction_of, poll_t
from netback.dataplane.back.rx cimport poll_rx
from netback.dataplane.back.tx cimport poll_tx
from netback.dataplane.backlog cimport backlog_add, backlog_first
from netback.dataplane.credit cimport Credit
from netback.dataplane.flight cimport ITEM_END, flight_expect, flight_get, flight_get_frame, flight_item, flight_t
from netback.dataplane.journal import Journal
from netback.dataplane.link cimport COUNTERS_END, REASON_NONE, STATES_END, direction_t
from netback.dataplane.peers.null import NullPeer
from netback.dataplane.peers.peer cimport BURST_FRAMES, FRAME_BYTES, LARGE_BYTES, PEER_UP, frame_t, vnet_header
from netback.dataplane.platform.events cimport Events, events_t
from netback.dataplane.platform.memory cimport GuestMemory, memory_t
from netback.dataplane.ring cimport back_ring, rx_slot, tx_slot
from netback.dataplane.segment cimport segments_begin, segments_go_on
from netback.dataplane.settings cimport MULTICAST_MAX
from netback.dataplane.toeplitz cimport TOEPLITZ_KEY, Toeplitz
from netback.dataplane.workspace cimport workspace_free, workspace_new, workspace_t

cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef double UNLIMITED = 1e18     # bytes: the recording has what a credit allowed


cdef void copy_nothing(memory_t *memory, copy_segment *segments, int count) noexcept nogil:
    """The recording has the statuses, and the bytes that were copied."""
    cdef int i
    for i in range(count):
        segments[i].status = GNTST_okay


cdef class NoMemory(GuestMemory):
    """A guest's memory that is not there."""

    cdef memory_t own

    def __cinit__(self):
        self.own.copy = copy_nothing
        self.memory = &self.own


cdef class NoEvents(Events):
    """A handle without event channels: a poll that is played notifies nothing."""

    cdef events_t own

    def __cinit__(self):
        self.own.fd = -1
        self.events = &self.own


cdef bint is_sane(poll_t *poll) noexcept:
    """Whether values are in the bounds that the polls rely on, which a file may break."""
    return (
        (poll.ring == POLL_TX or poll.ring == POLL_RX) and poll.state < STATES_END
        and poll.multicasts <= MULTICAST_MAX and poll.backlog <= BACKLOG_FRAMES
        and 0 < poll.frames_per_read <= BURST_FRAMES and poll.rx_offset < PAGE_SIZE
        and not poll.rx_extras & ~(1 << EXTRA_TYPE_XDP)
    )


cdef class Replay:
    """A backend's queue whose guest, peer and clock are a recording.

    For one thread, in a process without workers: the clock of the data plane is fixed while it plays a poll.
    """

    cdef BackQueue queue
    cdef Arena arena
    cdef workspace_t *ws
    cdef flight_t flight
    cdef uint8_t *pages
    cdef Credit credit

    def __cinit__(self):
        self.pages = <uint8_t *>aligned_alloc(PAGE_SIZE, 2 * PAGE_SIZE)
        if self.pages == NULL:
            raise MemoryError
        memset(self.pages, 0, 2 * PAGE_SIZE)
        self.arena = Arena()
        self.ws = workspace_new(self.arena)
        self.credit = Credit(UNLIMITED, 1, now=0)
        self.queue = BackQueue(
            NoEvents(), NoMemory(), NullPeer(), Journal(), tx_page=<size_t>self.pages,
            rx_page=<size_t>self.pages + PAGE_SIZE, tx_name=1, rx_name=2, tx_port=1, rx_port=1, caps=0, sg=True,
        )
        self.flight.replaying = True
        self.queue.link.flight = self.queue.queue.tx.flight = self.queue.queue.rx.flight = &self.flight

    def __dealloc__(self):
        self.queue = None
        workspace_free(self.ws)
        free(self.pages)

    def poll(self, bytes poll, *, bytes slots, req_prod: int | None, rsp_event: int | None,
             Toeplitz hash: Toeplitz | None) -> tuple[int, int, bool, dict[int, int], int, int]:
        """Play a poll whose requests are `slots`, whose guest last wrote these indices (None: as before), and whose RX
        frames get this hash.

        Returns the state after it, the reason of the end, whether the guest is notified, how much each counter rose,
        and, if it went another way than the recorded one, the kinds of item that it wanted and that was there (else 0).
        ValueError: no poll begins so.
        """
        cdef poll_t head
        cdef back_queue *queue = &self.queue.queue
        cdef uint64_t before[COUNTERS_END]
        cdef flight_item item
        cdef direction_t *direction
        cdef int state, i
        self.flight.next = <const uint8_t *><const char *>poll
        self.flight.end = self.flight.next + len(poll)
        self.flight.differs = self.flight.found = 0
        if not flight_get(&self.flight, &head, sizeof(head)) or not is_sane(&head):
            raise ValueError("its head is damaged")
        queue.hash = NULL if hash is None else &hash.hash
        self.restore(&head)
        self.write_page(&queue.tx if head.ring == POLL_TX else &queue.rx, head.rsp_prod, req_prod, rsp_event, slots,
                        TX_SLOT if head.ring == POLL_TX else RX_SLOT)
        memcpy(before, self.queue.link.counters, sizeof(before))
        direction = direction_of(queue, head.ring)
        direction.notify = False
        self.flight.open = True
        clock.fix(max(head.time, <uint64_t>1))
        try:
            with nogil:
                state = poll_tx(self.queue.link, self.ws) if head.ring == POLL_TX else poll_rx(
                    self.queue.link, self.ws)
            flight_expect(&self.flight, &item, ITEM_END)
        finally:
            clock.fix(0)
            self.flight.open = False
        direction.state = state
        counters = {
            i: self.queue.link.counters[i] - before[i]
            for i in range(COUNTERS_END) if self.queue.link.counters[i] != before[i]
        }
        return state, self.queue.link.broken, bool(direction.notify), counters, self.flight.differs, self.flight.found

    cdef int restore(self, poll_t *head) except -1:
        """Set what the queue had when the poll began."""
        cdef back_queue *queue = &self.queue.queue
        cdef direction_t *direction = direction_of(queue, head.ring)
        cdef uint8_t key[TOEPLITZ_KEY]
        cdef int i
        direction.state, direction.events, direction.period = head.state, head.events, head.period
        direction.allowance.credit = &self.credit.credit if head.limited else NULL
        direction.allowance.claimed = direction.allowance.waiting = 0
        self.credit.credit.credit, self.credit.credit.claimed, self.credit.credit.waiting = UNLIMITED, 0, 0
        queue.link.broken = REASON_NONE
        queue.link.poll_follows = head.poll_follows
        queue.link.rx_unannounced = head.rx_unannounced
        queue.link.peer.caps, queue.link.peer.frames_per_read = head.peer_caps, head.frames_per_read
        queue.link.peer.condition = PEER_UP
        queue.link.peer.more = False
        queue.tx_segments_sent = head.segments_sent
        queue.caps, queue.sg = head.caps, head.sg
        queue.rx_offset, queue.rx_extras = head.rx_offset, head.rx_extras
        queue.multicast_control = head.multicast_control
        queue.drain, queue.stall = head.drain, head.stall
        queue.read_at, queue.waits_since, queue.habits.waited = head.read_at, head.waits_since, head.waited
        queue.habits.most_posted, queue.habits.large = head.most_posted, head.large
        queue.habits.lone = head.lone
        queue.stalled_needed = head.stalled_needed
        if head.hashed and not flight_get(&self.flight, key, TOEPLITZ_KEY):
            raise ValueError("its hash is damaged")
        for i in range(MULTICAST_MAX):
            queue.settings.multicast[i] = 0
        if not flight_get(&self.flight, queue.settings.multicast, head.multicasts * sizeof(uint64_t)):
            raise ValueError("its multicast list is damaged")
        if head.ring == POLL_RX:
            self.restore_backlog(head)
        return 0

    cdef int restore_backlog(self, poll_t *head) except -1:
        """Frames that wait stay as they are if an earlier poll left them: then more of their bytes are known."""
        cdef back_queue *queue = &self.queue.queue
        cdef bint known = queue.backlog.count == head.backlog
        cdef frame_t frame
        cdef uint32_t _i, largest = LARGE_BYTES if head.backlog == 1 else FRAME_BYTES
        if not known:
            queue.backlog.count = 0
        for _i in range(head.backlog):
            if not flight_get_frame(&self.flight, &frame, self.ws.arena, largest):
                raise ValueError("a frame that waits is damaged")
            if not known:
                backlog_add(&queue.backlog, &frame)
        queue.segmenting = head.segmenting and queue.backlog.count and self.segments_again(head)
        return 0

    cdef bint segments_again(self, poll_t *head) noexcept:
        """Begin to segment the first frame that waits, and go on where the poll did; False: it has no such segments."""
        cdef back_queue *queue = &self.queue.queue
        cdef frame_t *frame = backlog_first(&queue.backlog)
        return (
            segments_begin(&queue.segments, frame.data, frame.length, vnet_header(frame), head.segments_gso) == 0
            and segments_go_on(&queue.segments, head.segment)
        )

    cdef int write_page(self, back_ring *ring, uint32_t rsp_prod, object req_prod, object rsp_event, bytes slots,
                        uint32_t size) except -1:
        """Write what the guest wrote to a ring."""
        cdef const uint8_t *data = <const uint8_t *><const char *>slots
        cdef uint32_t i
        if len(slots) > RING_SLOTS * size:
            raise ValueError("it has more requests than a ring")
        ring.rsp_prod = ring.shared.rsp_prod = rsp_prod
        ring.shared.req_prod = ring.shared.req_prod if req_prod is None else <uint32_t>req_prod
        ring.shared.rsp_event = ring.shared.rsp_event if rsp_event is None else <uint32_t>rsp_event
        for i in range(len(slots) // size):
            memcpy(tx_slot(ring.shared, rsp_prod + i) if size == TX_SLOT else rx_slot(ring.shared, rsp_prod + i),
                   data + i * size, size)

    def snapshot(self) -> tuple[dict[str, tuple[bytes, bool, int]], int, int]:
        """Both rings and the frames that wait (BackQueue.snapshot); the times since responses are not of the recording.
        """
        return self.queue.snapshot()

    @property
    def states(self) -> tuple[int, int]:
        """The states of both directions."""
        return self.queue.link.ring_to_peer.state, self.queue.link.peer_to_ring.state
