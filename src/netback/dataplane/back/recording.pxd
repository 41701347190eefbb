# SPDX-License-Identifier: Apache-2.0
"""A recorded poll of a backend's queue: how it begins and ends."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from netback.dataplane.back.queue cimport back_queue
from netback.dataplane.link cimport direction_t, link_t
from netback.dataplane.workspace cimport workspace_t

cdef enum:                      # poll_t.ring
    POLL_TX = 1
    POLL_RX = 2


# The queue's private state and settings when the poll begins, so that it can be played without those before it. Then
# follow the key of the hash if it is `hashed`, the entries of the multicast list, and the frames of the backlog
# (flight_frame, and bytes).
cdef struct poll_t:
    uint32_t size                # bytes of the whole poll
    uint8_t ring                 # POLL_*
    uint8_t state                # of the direction
    uint8_t events               # since its last poll
    uint8_t poll_follows
    uint64_t time                # ns, CLOCK_MONOTONIC; of an RX poll CLOCK_MONOTONIC_COARSE, by which frames age
    uint64_t period              # ns of the direction's timer
    uint64_t read_at
    uint64_t waits_since
    uint64_t waited
    uint64_t drain
    uint64_t stall
    uint32_t rsp_prod
    uint32_t segments_sent
    uint32_t stalled_needed
    uint32_t most_posted
    uint32_t lone
    uint32_t caps
    uint32_t peer_caps
    uint32_t frames_per_read
    uint32_t hash_types
    uint16_t rx_offset
    uint16_t multicasts          # entries of the list
    uint8_t backlog              # frames
    uint8_t sg
    uint8_t multicast_control
    uint8_t rx_unannounced
    uint8_t rx_extras
    uint8_t segmenting           # the frame at the backlog's head is being segmented: it began before this poll
    uint8_t large
    uint8_t limited              # by a credit
    uint8_t hashed
    uint8_t segments_gso         # its segments are GSO frames themselves
    uint16_t segment             # the next one
    uint8_t zero[4]


cdef inline direction_t *direction_of(back_queue *queue, uint8_t ring) noexcept nogil:
    """The direction that a poll of this ring serves."""
    return &queue.link.ring_to_peer if ring == POLL_TX else &queue.link.peer_to_ring


cdef int recorded_tx(link_t *link, workspace_t *ws) noexcept nogil
cdef int recorded_rx(link_t *link, workspace_t *ws) noexcept nogil
