# SPDX-License-Identifier: Apache-2.0
"""A frontend's queue: the state shared by its two directions."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from netback.dataplane.backlog cimport backlog_t
from netback.dataplane.abi cimport PAGE_SIZE, RING_SLOTS
from netback.dataplane.segment cimport segments_t
from netback.dataplane.link cimport Link, link_t
from netback.dataplane.ring cimport front_ring
from netback.dataplane.toeplitz cimport Toeplitz, toeplitz_t

cdef enum:
    # Slots used at a time while frames are small: more only let an overload build up. With 256 in its place
    # `python -m bench --only endtoend` shows 0.42 to 0.52 of the UDP packets, and a flood ping takes 1.24 of the time.
    FEW_SLOTS = 64
    SENT_FRAME = 1
    SENT_CHANGE = 2              # a change of the backend's multicast list
    LARGE_BURSTS = 64            # after a frame of several slots, so many reads or bursts provide for more of them


cdef inline uint32_t slots_at_a_time(uint32_t most, uint32_t large) noexcept nogil:
    return most if large else min(most, <uint32_t>FEW_SLOTS)


cdef struct front_queue:         # `link` is first: a link_t * of a frontend queue is a front_queue *
    link_t link
    front_ring tx
    front_ring rx
    uint8_t *tx_pages[RING_SLOTS]        # granted to the backend for the queue's life, as are rx_pages
    uint8_t *rx_pages[RING_SLOTS]        # by slot: page i is posted in slot i only
    uint32_t tx_grefs[RING_SLOTS]
    uint32_t rx_grefs[RING_SLOTS]
    uint16_t free[RING_SLOTS]    # free TX pages, the last used one on top, since it is still in the cache
    uint32_t free_count
    uint8_t sent[RING_SLOTS]     # SENT_* by id, which is the page's number: a request without a response yet
    int change_status            # of the last change of the multicast list: NETIF_RSP_NULL until it is answered
    uint32_t extras_sent         # extra infos without a response yet
    uint32_t tx_single_reads     # after GSO that had to be segmented, this many reads take one frame at a time
    uint32_t tx_slots            # most of the ring's slots used at a time
    uint32_t rx_slots
    bint rx_notify               # events tell the backend of posted buffers
    uint32_t caps                # CAN_*: offloads that the backend accepts
    bint sg                      # ... and whether it accepts more than one slot per frame
    const toeplitz_t *hash       # NULL: the guest selected no hash
    # Frames are read directly into granted pages. Measured (TCP from a guest over packet:, iperf3 of 3 GB): 0.64 CPU
    # seconds of `netback guest` for each GB, 0.68 with a copy through private memory.
    bint direct
    uint32_t tx_large            # this many more reads provide for frames of several slots
    uint32_t rx_large            # this many more bursts do
    backlog_t backlog            # frames of one read beyond the slots, in order; nothing is read while any waits
    uint32_t needed              # slots that the first of them lacks
    uint64_t waits_since         # ns: when they began to lack slots
    bint segmenting                 # ... or its next segment
    segments_t segments
    uint32_t rx_segments_sent    # segments already sent of the frame at the RX ring's head


cdef class FrontQueue(Link):
    cdef front_queue queue
    cdef Toeplitz hash           # keeps alive what queue.hash points to
