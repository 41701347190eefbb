# SPDX-License-Identifier: Apache-2.0
"""What the worker, the two backend directions and the two frontend directions share."""
from libc.stdint cimport int16_t, uint8_t, uint16_t, uint32_t, uint64_t
from netback.dataplane.abi cimport RING_SLOTS, copy_segment, rx_request, tx_request
from netback.dataplane.arena cimport Arena, arena_t
from netback.dataplane.platform.events cimport events_t
from netback.dataplane.platform.memory cimport memory_t
from netback.dataplane.journal cimport Journal, journal_t
from netback.dataplane.offload cimport segments_t
from netback.dataplane.peers.peer cimport BURST_FRAMES, FRAME_BYTES, FRAME_HEADROOM, FRAME_STRIDE, Peer, frame_t, peer_t
from netback.dataplane.ring cimport back_ring

cdef enum:
    BURST_BYTES = 128 * 1024    # a burst's frames stay in the second-level cache
    CUT_BYTES = 512 * 1024
    BURST_CUTS = 1024            # and no further frame once these may be cut into so many segments
    RECORD_BYTES = 1024 * 1024
    HELD_FRAMES = 16             # of one read from a peer that gives many
    MAX_DATA_SLOTS = 20          # served; one more is answered ERROR, two more are fatal (rules 1)
    BURST_SEGMENTS = 2 * RING_SLOTS

    # what one turn of a direction leaves: nothing to do, or
    LINK_MORE = 1                # the budget ended before the work did
    LINK_BROKEN = 2              # the far side broke the protocol: link.broken says how


cdef enum:                      # reason: why a link is broken; REASONS in queue.pyx has their texts
    REASON_NONE, REASON_TX_INDEX, REASON_RX_INDEX, REASON_TRUNCATED, REASON_SLOTS, REASON_EXTRA, REASON_GSO,
    REASON_RESPONSE


cdef enum:                      # counter: COUNTERS in queue.pyx has their names, in this order
    TX_FRAMES, TX_BYTES, TX_SLOTS, TX_BURSTS, TX_NOTIFIES, TX_ERRORS, TX_DROPPED, TX_REFUSED, TX_FIXED_UP, TX_COMPLETED,
    TX_SEGMENTED, TX_FULL,
    RX_FRAMES, RX_BYTES, RX_SLOTS, RX_BURSTS, RX_NOTIFIES, RX_ERRORS, RX_DROPPED, RX_TOO_BIG, RX_COMPLETED,
    RX_SEGMENTED, RX_STALLS, RX_FAULTS,
    EVENTS, EVENTS_EMPTY,
    COUNTERS_END


cdef enum:                      # record kind: what is written down of a traced or captured link
    RECORD_TX_SLOT = 1
    RECORD_RX_SLOT = 2
    RECORD_TX_FRAME = 3
    RECORD_RX_FRAME = 4


cdef struct record_t:            # followed by `length` bytes of the frame, padded to 8
    uint64_t time                # ns, CLOCK_REALTIME
    uint32_t link
    uint16_t kind
    uint16_t flags               # NETTXF_* or NETRXF_*
    uint32_t gref
    uint32_t index               # of the slot (the first one), free-running
    uint16_t offset
    uint16_t size
    uint16_t slots
    int16_t status
    uint16_t gso_size
    uint16_t gso_type
    uint32_t length


cdef struct chain_t:             # one frame of a TX ring
    uint8_t *data
    uint32_t length
    uint32_t slots               # with extras
    uint32_t extras
    uint32_t segment             # first of its copy segments
    uint32_t segments
    uint16_t flags
    int16_t status               # of every data slot
    uint16_t gso_size
    uint8_t gso_type
    uint8_t fixed_up
    uint8_t completed
    uint8_t dropped


cdef struct workspace_t:         # a worker's private memory: the burst at hand
    arena_t *pages               # for frames of a peer
    uint8_t *arena               # in them, right before a page begins: where the first frame's headroom does
    uint8_t *tx_memory           # for frames of a TX ring, one behind the other
    uint8_t *packed              # in it, likewise
    uint8_t *cuts                # segments that were cut from them
    uint32_t cuts_used
    uint8_t *records
    uint32_t records_used
    uint64_t records_lost
    frame_t frames[BURST_FRAMES]
    uint32_t frame_chain[BURST_FRAMES]
    chain_t chains[BURST_FRAMES]
    tx_request requests[RING_SLOTS]
    copy_segment segments[BURST_SEGMENTS]
    uint16_t segment_body[BURST_SEGMENTS]
    uint8_t bodies[RING_SLOTS * 12]      # response slots, in ring order
    uint32_t grefs[RING_SLOTS]


cdef struct link_t:              # a queue of either end, as the worker sees it
    int (*from_ring)(link_t *, workspace_t *) noexcept nogil
    int (*to_ring)(link_t *, workspace_t *) noexcept nogil
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


cdef struct back_queue:          # `link` is first: a link_t * of a backend queue is a back_queue *
    link_t link
    back_ring tx
    back_ring rx
    journal_t *tx_journal
    journal_t *rx_journal
    memory_t *memory
    uint32_t caps                # CAN_*: what the guest takes
    bint sg
    uint16_t rx_offset           # where a frame begins in its first page: 2 for qnic, 0 for vif
    uint32_t tx_cut              # segments already sent of the frame at the ring's head
    uint32_t rx_most             # the most requests that this guest ever had posted
    uint32_t rx_lone             # bursts in a row that brought one frame
    bint rx_large                # the last read brought frames of several slots
    bint cutting                 # the frame at hand is being cut
    segments_t cut
    frame_t held[HELD_FRAMES]    # frames that wait for slots: what one read brought, no more
    uint32_t held_first
    uint32_t held_count
    uint8_t *hold                # their memory


cdef void record(workspace_t *ws, link_t *link, record_t *entry, const uint8_t *bytes, uint32_t length) noexcept nogil
cdef workspace_t *workspace_new(Arena arena) except NULL
cdef void workspace_free(workspace_t *ws) noexcept


cdef class Link:
    cdef link_t *link
    cdef readonly Peer peer
    cdef object keep             # what the C structure points into
    cdef bint reported
    cdef bint newly_broken(self)


cdef class BackQueue(Link):
    cdef back_queue queue
    cdef readonly Journal journal
