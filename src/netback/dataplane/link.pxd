# SPDX-License-Identifier: Apache-2.0
"""A queue of either end for the worker: two directions with a state each, the reason of its end, its counters."""
from libc.stdint cimport uint32_t, uint64_t
from netback.dataplane.capture cimport sink_t
from netback.dataplane.clock cimport now_ns
from netback.dataplane.credit cimport allowance_t
from netback.dataplane.peers.peer cimport PEER_BUSY, PEER_FULL, PEER_UP, Peer, peer_t
from netback.dataplane.platform.events cimport events_t
from netback.dataplane.timers cimport timer_t
from netback.dataplane.workspace cimport workspace_t

cdef enum:                      # state of a direction: states.py has the table and the meanings
    STATE_RING_IDLE, STATE_RING_MORE, STATE_PEER_FULL, STATE_PEER_BUSY, STATE_NO_CREDIT,
    STATE_PEER_IDLE, STATE_PEER_MORE, STATE_NO_SLOTS, STATE_NO_SLOTS_LONG, STATE_NO_FRAME, STATE_STALLED,
    STATE_NO_SLOTS_UNANNOUNCED,
    STATE_REFUSED, STATE_PEER_CLOSED, STATE_BROKEN,
    STATES_END


cdef enum:                      # event
    EVENT_POLL = 1
    EVENT_RING = 2
    EVENT_FRAMES = 4
    EVENT_ROOM = 8
    EVENT_TIMER = 16


cdef enum:                      # condition of a link: the values of notices.Notice
    LINK_READY, LINK_STALLED, LINK_PEER_GONE, LINK_BROKEN


cdef enum:                      # reason: why a link is broken; REASONS in link.pyx has the texts
    REASON_NONE, REASON_TX_INDEX, REASON_RX_INDEX, REASON_TRUNCATED, REASON_SLOTS, REASON_EXTRA, REASON_GSO,
    REASON_RESPONSE


cdef enum:                      # counter: counters.py has the names in this order, and the meanings
    TX_FRAMES, TX_BYTES, TX_SLOTS, TX_BURSTS, TX_NOTIFIES, TX_ERRORS, TX_DROPPED, TX_FIXED_UP, TX_COMPLETED,
    TX_SEGMENTED, TX_FULL, TX_REFUSED, TX_STALLS, TX_FAULTS, TX_SHORT, TX_TRUNCATED, TX_THROTTLED,
    TX_HASHED, TX_COPIES, TX_STAGED,
    RX_FRAMES, RX_BYTES, RX_SLOTS, RX_BURSTS, RX_NOTIFIES, RX_ERRORS, RX_DROPPED, RX_COMPLETED,
    RX_SEGMENTED, RX_TOO_BIG, RX_FULL, RX_REFUSED, RX_STALLS, RX_FAULTS, RX_SHORT, RX_TRUNCATED, RX_THROTTLED,
    RX_HASHED, RX_COPIES, RX_STAGED,
    EVENTS, EVENTS_EMPTY, TX_MULTICAST, TX_MULTICAST_FULL, RX_FILTERED, RX_EXPIRED,
    RX_HASH_WRONG, RX_INBOX_FULL,
    COUNTERS_END


cdef enum:
    BUSY_WAIT = 20 * 1000 * 1000         # ns that a link waits for a busy peer ...
    BUSY_WINDOW = 200 * 1000 * 1000      # ... in any period of this many ns


cdef struct row_t:               # a row of states.TABLE
    uint32_t polled              # events
    uint32_t watch               # events
    uint64_t timer               # ns; 0: none
    int expires                  # the state after the timer, if nothing moved while it ran; -1: unchanged
    bint early                   # the timer ends at direction_t.due, if that is before
    bint again


cdef struct direction_t:
    int (*poll)(link_t *, workspace_t *) noexcept nogil      # serves one burst; returns the next state
    int state
    uint32_t events              # since the last poll
    uint32_t port                # event channel of this direction's ring; both directions may share one
    const uint32_t *producer     # the index in this ring by which the far side publishes
    uint32_t producer_seen       # its value at the last event of the port
    # The back-off of the port; a shared port's is in ring_to_peer.
    uint32_t spurious_events     # events in a row before which no index moved
    timer_t unmask               # set while the back-off lasts: the port stays masked
    bint notify                  # the far side asked for an event after this poll
    uint32_t progress            # changes with every poll that moved something
    uint32_t progress_then       # when the timer was set
    uint64_t period              # ns that the timer was set for
    uint64_t due                 # ns: when a state with `early` can go on
    timer_t timer
    allowance_t allowance        # zeros: no limit


cdef struct link_t:
    direction_t ring_to_peer
    direction_t peer_to_ring
    peer_t *peer                 # where the ring's frames go, and by default
    peer_t *source               # where those for the ring come from; a queue whose frames are steered has an inbox
    events_t *events
    bint rx_unannounced          # the frontend has no feature-rx-notify: no event follows the slots that it posts
    bint traced
    sink_t *sinks                # of its captures; NULL: none
    int broken                   # reason
    int reported                 # the condition last reported to Python
    bint noticed                 # in the worker's list of notices
    uint32_t index               # index in the worker's table
    uint32_t interest            # epoll events requested for the peer's descriptor ...
    uint32_t source_interest     # ... and for the source's, if it is another one
    int bell                     # the peer's, once it is watched
    timer_t due                  # set while the peer has a time at which it is polled
    bint runnable                # in the worker's list of runnable links
    bint poll_follows            # another poll follows this one, so arming the ring can wait
    uint64_t busy_since          # ns: when the current BUSY_WINDOW began
    uint64_t counters[COUNTERS_END]


cdef row_t *state_rows() noexcept nogil
cdef dict ring_indices(size_t page, uint32_t private)
cdef tuple copy_ring(size_t page)


cdef inline int link_condition(link_t *link) noexcept nogil:
    """The condition to report to Python: the first of these that holds."""
    if link.broken:
        return LINK_BROKEN
    if link.peer.condition != PEER_UP:
        return LINK_PEER_GONE
    return LINK_STALLED if link.peer_to_ring.state == STATE_STALLED else LINK_READY


cdef inline int break_link(link_t *link, int reason) noexcept nogil:
    link.broken = reason
    return STATE_BROKEN


cdef inline int peer_refuses(link_t *link) noexcept nogil:
    """The state of a direction whose peer did not accept everything."""
    return STATE_PEER_FULL if link.peer.blocked == PEER_FULL else STATE_PEER_BUSY


cdef inline void note_rx_losses(link_t *link, int got) noexcept nogil:
    """Count the frames that a read of the source could not return."""
    cdef peer_t *source = link.source
    link.counters[RX_FAULTS] += got < 0
    link.counters[RX_SHORT] += source.short_frames
    link.counters[RX_TRUNCATED] += source.truncated
    source.short_frames = source.truncated = 0


cdef inline bint lacks_slots(int state) noexcept nogil:
    return STATE_NO_SLOTS <= state <= STATE_NO_SLOTS_UNANNOUNCED


cdef inline bint gives_up(link_t *link) noexcept nogil:
    """Whether the frame that a busy peer just refused is lost, instead of tried again in a millisecond.

    AF_PACKET reports each drop of an egress filter, a shaper or the far end as ENOBUFS, including those that it will
    repeat for ever (docs/decisions.md, TX backpressure). So a link waits for 20 ms from the first refusal on, and not
    again before 200 ms have passed since; a refusal outside that time is a loss, as on a wire.
    """
    cdef uint64_t now
    if link.peer.blocked != PEER_BUSY:
        return False
    now = now_ns()
    if now - link.busy_since >= BUSY_WINDOW:
        link.busy_since = now
    return now - link.busy_since >= BUSY_WAIT


cdef class Link:
    cdef link_t *link
    cdef readonly Peer peer
    cdef readonly Peer source
    cdef void join(self, Peer peer, Peer source) noexcept
    cdef object keep             # keeps alive what the C structure points to, as
    cdef object credits          # does this
    cdef tuple captures          # and this
