# SPDX-License-Identifier: Apache-2.0
"""A pair of virtqueues, RX and TX, and their buffers: pair.pyx.

The pair's owner allocates memory, tells the device where things are in it, and waits for the device's calls.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from netback.dataplane.peers.peer cimport FRAME_STRIDE, LARGE_STRIDES, frame_t, peer_t
from netback.dataplane.peers.vring cimport VRING_SLOTS, vring_t
from netback.dataplane.sockets cimport iovec

cdef enum:
    # Where things lie in a pair's memory. What this end writes is on other pages than what it reads.
    RX_DESC = 0
    TX_DESC = 4096
    RX_AVAIL = 8192
    TX_AVAIL = 8192 + 2048
    RX_USED = 12288
    TX_USED = 16384
    RX_AREA = 20480
    LARGE_BUFFER = FRAME_STRIDE  # an RX buffer that holds the largest frame, ...
    LENT_BUFFER = LARGE_STRIDES * FRAME_STRIDE   # ... and one for BIG TCP; untouched pages cost nothing
    SMALL_BUFFER = 2048          # of a device that spreads a frame over several (MRG_RXBUF)


cdef enum:                       # reason: why a pair is broken
    REASON_NONE, REASON_INDEX, REASON_ID, REASON_LENGTH, REASON_BUFFERS, REASON_STALLED, REASON_CALLS,
    REASON_ERROR


cdef struct pair_t:
    uint8_t *memory
    uint64_t address             # of `memory`, as the device is told
    vring_t rx
    vring_t tx
    uint32_t header              # bytes before each frame: VNET_HDR, and two more if the device has VERSION_1
    uint32_t caps                # CAN_*
    bint mergeable
    bint lends                   # the device is trusted: frames are used where they lie
    uint32_t buffers
    uint32_t buffer_stride
    uint32_t buffer_at           # where a buffer begins in its stride
    uint32_t buffer_bytes
    bint posted[VRING_SLOTS]     # RX buffers that the device has
    uint16_t read[VRING_SLOTS]   # and those to be posted again: of a pair that lends, once their frames were used
    uint32_t reads
    uint32_t tx_area             # where TX frames lie in `memory`, ...
    uint32_t tx_bytes            # ... in a ring of so many bytes
    uint32_t start[VRING_SLOTS]  # in it: where the frame of each descriptor begins,
    uint8_t state[VRING_SLOTS]   # FREE, IN_FLIGHT or USED
    uint16_t oldest              # descriptors from here ...
    uint16_t newest              # ... to here are not free
    uint32_t at                  # end of the newest frame, or of what was offered behind it
    uint32_t offer               # memory offered for frames to come ...
    uint32_t offer_end           # ... ends here; 0: none
    uint32_t offer_used          # ... and has sent frames up to here
    uint16_t offer_first         # the first descriptor that may lie in it
    uint64_t brought             # frames that the device has brought, ever,
    uint64_t taken               # and frames that it has taken
    int broken                   # reason


cdef void pair_init(pair_t *pair, uint8_t *memory, uint64_t address, uint32_t header, uint64_t features,
                    uint32_t large_buffers, uint32_t tx_bytes) noexcept nogil
cdef void pair_init_lending(
    pair_t *pair, uint8_t *memory, uint32_t large_buffers, uint32_t tx_bytes) noexcept nogil
cdef bint pair_has_frames(pair_t *pair) noexcept nogil
cdef int pair_receive(
    pair_t *pair, peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil
cdef void pair_release(pair_t *pair) noexcept nogil
cdef uint8_t *pair_offer(pair_t *pair, uint32_t size) noexcept nogil
cdef int pair_send(
    pair_t *pair, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil
cdef bint pair_reclaim(pair_t *pair) noexcept nogil
cdef uint32_t pair_in_flight(pair_t *pair) noexcept nogil
