# SPDX-License-Identifier: Apache-2.0
"""A queue of either end as the worker sees it: `link_t`, what ends it, what it counts."""
from libc.stdint cimport uint32_t, uint64_t
from netback.dataplane.peers.peer cimport Peer, peer_t
from netback.dataplane.platform.events cimport events_t
from netback.dataplane.workspace cimport workspace_t

cdef enum:                      # what one poll of a direction leaves: nothing to do, or
    LINK_MORE = 1                # the budget ended before the work did
    LINK_BROKEN = 2              # the far side broke the protocol: link.broken has the reason


cdef enum:                      # reason: why a link is broken; REASONS in link.pyx has their texts
    REASON_NONE, REASON_TX_INDEX, REASON_RX_INDEX, REASON_TRUNCATED, REASON_SLOTS, REASON_EXTRA, REASON_GSO,
    REASON_RESPONSE


cdef enum:                      # counter: COUNTERS in link.pyx has their names, in this order
    TX_FRAMES, TX_BYTES, TX_SLOTS, TX_BURSTS, TX_NOTIFIES, TX_ERRORS, TX_DROPPED, TX_REFUSED, TX_FIXED_UP, TX_COMPLETED,
    TX_SEGMENTED, TX_FULL,
    RX_FRAMES, RX_BYTES, RX_SLOTS, RX_BURSTS, RX_NOTIFIES, RX_ERRORS, RX_DROPPED, RX_TOO_BIG, RX_COMPLETED,
    RX_SEGMENTED, RX_STALLS, RX_FAULTS,
    EVENTS, EVENTS_EMPTY,
    COUNTERS_END


cdef enum:                      # condition, as notices.py has it
    LINK_READY = 0
    LINK_STALLED = 1
    LINK_PEER_GONE = 2
    LINK_IS_BROKEN = 3


cdef struct link_t:              # a queue of either end, as the worker sees it
    int (*ring_to_peer)(link_t *, workspace_t *) noexcept nogil
    int (*peer_to_ring)(link_t *, workspace_t *) noexcept nogil
    uint64_t (*moved)(link_t *) noexcept nogil       # changes whenever the far side produced something
    peer_t *peer
    events_t *events
    uint32_t from_port           # event channels of the two rings: the same one unless split
    uint32_t to_port
    bint to_blocked              # no slots: the peer is not read until the far side's event
    bint polls                   # ... which never comes: it has no feature-rx-notify
    bint traced
    bint captured
    bint frozen                  # RX refused: the vif is Closing
    int broken                   # reason
    int reported                 # the condition that Python knows
    uint32_t index               # in the worker's table
    uint32_t interest            # epoll events that the worker has asked of the peer's descriptor
    bint active                  # among the worker's runnable links
    bint to_due                  # its next turn has to look at the peer, too
    bint looks_again             # this turn has a next one, whatever it finds in the ring that it takes from
    bint from_notify             # the far side asked to be told of this turn's answers on from_port ...
    bint to_notify               # ... or on to_port
    uint64_t seen                # `moved` at the last event
    uint32_t empties             # events since then that brought nothing
    uint64_t unmask_at           # ns: the port stays masked until then; 0: not delayed
    uint64_t counters[COUNTERS_END]


cdef dict ring_indices(size_t page, uint32_t private)


cdef inline int condition(link_t *link) noexcept nogil:
    return LINK_IS_BROKEN if link.broken else LINK_PEER_GONE if link.peer.closed else LINK_READY


cdef class Link:
    cdef link_t *link
    cdef readonly Peer peer
    cdef object keep             # what the C structure points into
