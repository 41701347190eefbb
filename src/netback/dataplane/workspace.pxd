# SPDX-License-Identifier: Apache-2.0
"""A worker's private memory for the current burst, and the budgets that bound a burst."""
from libc.stdint cimport int16_t, uint8_t, uint16_t, uint32_t, uint64_t
from netback.dataplane.abi cimport RING_SLOTS, copy_segment, tx_request
from netback.dataplane.extras cimport frame_meta
from netback.dataplane.arena cimport Arena, arena_t
from netback.dataplane.peers.peer cimport BURST_FRAMES, frame_t

cdef enum:
    BURST_BYTES = 128 * 1024     # a burst's frames stay in the second-level cache
    SEGMENTS_BYTES = 512 * 1024
    POLL_SEGMENTS = 256          # segments that one poll sends: the next poll continues a frame with more
    RECORD_BYTES = 1024 * 1024
    MAX_DATA_SLOTS = 20          # served; one more is answered ERROR, two more are fatal (XSA-39)
    BURST_SEGMENTS = 2 * RING_SLOTS
    CHAIN_MULTICAST = 2          # a chain's status, none of netif.h's: no frame, but a change of the multicast list


cdef struct chain_t:             # one frame of a TX ring
    uint8_t *data
    uint32_t length
    uint32_t slots               # with extras
    uint32_t extras
    uint32_t segment             # first of its copy segments
    uint32_t segments
    uint16_t flags
    int16_t status               # of every data slot; CHAIN_MULTICAST until the list is changed
    frame_meta meta
    uint16_t headroom            # of each RX slot, if its response does not name it
    uint8_t fixed_up
    uint8_t completed
    uint8_t dropped
    uint8_t hash_wrong           # at a frontend: its hash extra does not fit its bytes


cdef struct workspace_t:         # a worker's private memory: the current burst
    arena_t *pages               # for frames of a peer
    uint8_t *arena               # in them, right before a page begins: the position of the first frame's headroom
    uint8_t *tx_memory           # for frames of a TX ring, one after the other
    uint8_t *packed              # in it, likewise
    uint8_t *segment_memory      # segments made of them
    uint32_t segments_used       # bytes
    uint32_t segments_left       # segments that this poll may still send
    uint8_t *records
    uint32_t records_used
    uint64_t records_lost
    uint64_t captured_at         # ns, CLOCK_REALTIME: the time of the frames that this poll captures; 0: not read yet
    frame_t frames[BURST_FRAMES]
    uint32_t frame_chain[BURST_FRAMES]
    chain_t chains[BURST_FRAMES]
    uint32_t multicast_changes   # chains of the TX burst that change the multicast list
    tx_request requests[RING_SLOTS]
    copy_segment segments[BURST_SEGMENTS]
    uint16_t segment_body[BURST_SEGMENTS]
    copy_segment rest[BURST_SEGMENTS]            # segments whose pages are not staged ...
    uint16_t rest_segment[BURST_SEGMENTS]        # ... and which segment each of them is
    uint8_t bodies[RING_SLOTS * 12]      # response slots, in ring order
    uint32_t grefs[RING_SLOTS]


cdef workspace_t *workspace_new(Arena arena) except NULL
cdef void workspace_free(workspace_t *ws) noexcept
