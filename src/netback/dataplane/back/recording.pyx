# SPDX-License-Identifier: Apache-2.0
"""Polls of a backend's queue that its recorder keeps. A queue without one has tx.pyx's and rx.pyx's polls themselves.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from netback.dataplane.back.rx cimport poll_rx
from netback.dataplane.back.tx cimport poll_tx
from netback.dataplane.clock cimport coarse_ns, now_ns
from netback.dataplane.flight cimport (
    ITEM_END, flight_counter, flight_item, flight_put, flight_put_frame, flight_t,
)
from netback.dataplane.link cimport COUNTERS_END, direction_t
from netback.dataplane.settings cimport MULTICAST_MAX, entry_load
from netback.dataplane.toeplitz cimport TOEPLITZ_KEY

cdef enum:
    BACKLOG_KEPT = 128           # bytes kept of a frame that waits when a poll begins


cdef void begin(back_queue *queue, flight_t *flight, poll_t *poll) noexcept nogil:
    """Begin a poll: `poll` has its ring, its time and its rsp_prod."""
    cdef direction_t *direction = direction_of(queue, poll.ring)
    cdef uint64_t entries[MULTICAST_MAX]
    cdef uint64_t entry
    cdef uint32_t i
    for i in range(<uint32_t>MULTICAST_MAX):
        entry = entry_load(&queue.settings.multicast[i])
        if entry:
            entries[poll.multicasts] = entry
            poll.multicasts += 1
    poll.state = direction.state
    poll.events = direction.events
    poll.period = direction.period
    poll.limited = direction.allowance.credit != NULL
    poll.poll_follows = queue.link.poll_follows
    poll.segments_sent = queue.tx_segments_sent
    poll.caps, poll.peer_caps = queue.caps, queue.link.peer.caps
    poll.sg, poll.rx_offset, poll.rx_extras = queue.sg, queue.rx_offset, queue.rx_extras
    poll.multicast_control, poll.rx_unannounced = queue.multicast_control, queue.link.rx_unannounced
    if queue.hash != NULL:
        poll.hashed, poll.hash_types = True, queue.hash.types
    poll.drain, poll.stall = queue.drain, queue.stall
    poll.read_at, poll.waits_since, poll.waited = queue.read_at, queue.waits_since, queue.habits.waited
    poll.most_posted, poll.large = queue.habits.most_posted, queue.habits.large
    poll.lone = queue.habits.lone
    poll.stalled_needed = queue.stalled_needed
    if queue.segmenting:
        poll.segmenting, poll.segments_gso = True, queue.segments.gso_size != 0
        poll.segment = <uint16_t>queue.segments.index
    poll.frames_per_read = queue.link.source.frames_per_read
    poll.backlog = queue.backlog.count if poll.ring == POLL_RX else 0
    flight.open, flight.full, flight.begin = True, False, flight.head
    flight_put(flight, poll, sizeof(poll_t))
    if poll.hashed:
        flight_put(flight, queue.hash.key, TOEPLITZ_KEY)
    flight_put(flight, entries, poll.multicasts * sizeof(uint64_t))
    for i in range(poll.backlog):
        flight_put_frame(flight, &queue.backlog.frames[(queue.backlog.first + i) % queue.backlog.capacity],
                         BACKLOG_KEPT)


cdef void end(back_queue *queue, flight_t *flight, const uint64_t *before, int state, bint notify) noexcept nogil:
    """End a poll, with the counters that it changed, and write its size at its beginning."""
    cdef flight_counter changed[COUNTERS_END]
    cdef flight_item item
    cdef uint32_t i, count = 0
    cdef uint32_t size
    for i in range(<uint32_t>COUNTERS_END):
        if queue.link.counters[i] != before[i]:
            changed[count].number = i
            changed[count].added = <uint32_t>(queue.link.counters[i] - before[i])
            count += 1
    item.kind, item.count, item.a, item.b, item.c = ITEM_END, <uint16_t>count, state, queue.link.broken, notify
    flight_put(flight, &item, sizeof(item))
    flight_put(flight, changed, count * sizeof(flight_counter))
    flight.open = False
    flight.polls += 1
    if flight.full:
        flight.lost += 1
        flight.head = flight.tail = flight.begin     # its bytes took the place of the polls before it
        return
    size = <uint32_t>(flight.head - flight.begin)
    for i in range(sizeof(size)):
        flight.memory[(flight.begin + i) & (flight.size - 1)] = size >> 8 * i & 0xff
    flight.begin = flight.head


cdef inline int recorded(link_t *link, workspace_t *ws, uint8_t which) noexcept nogil:
    """A poll of one ring, kept."""
    cdef back_queue *queue = <back_queue *>link
    cdef direction_t *direction = direction_of(queue, which)
    cdef uint64_t before[COUNTERS_END]
    cdef poll_t poll
    cdef int state
    memset(&poll, 0, sizeof(poll))
    memcpy(before, link.counters, sizeof(before))
    poll.ring = which
    poll.time = now_ns() if which == POLL_TX else coarse_ns()
    poll.rsp_prod = queue.tx.rsp_prod if which == POLL_TX else queue.rx.rsp_prod
    begin(queue, link.flight, &poll)
    state = poll_tx(link, ws) if which == POLL_TX else poll_rx(link, ws)
    end(queue, link.flight, before, state, direction.notify)
    return state


cdef int recorded_tx(link_t *link, workspace_t *ws) noexcept nogil:
    return recorded(link, ws, POLL_TX)


cdef int recorded_rx(link_t *link, workspace_t *ws) noexcept nogil:
    return recorded(link, ws, POLL_RX)
