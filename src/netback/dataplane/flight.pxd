# SPDX-License-Identifier: Apache-2.0
"""A flight recorder of one queue: what entered its last polls from outside, and what the polls made of it.

A poll's outcome depends on its queue's private state and on what it reads: the guest's indices and slots, the statuses
and bytes of copies, the peer's frames and answers, the clock, and the credit that its vif's queues share. A recorded
poll has all of these, so the same code can be given them again. Each function below stands right behind a reading. It
appends what was read, or, when a poll is played again, replaces it by what was recorded: so the two cannot differ in
their order or meaning.

The memory has a fixed size. A new poll takes the place of the oldest ones, so what is there begins with a poll. One
that does not fit is lost together with those before it, for they would not lead to those after it.

Everything is little-endian and without padding; observe/flight.py reads it.
"""
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from netback.dataplane.peers.peer cimport VNET_HDR, frame_t, peer_t
from netback.dataplane.workspace cimport workspace_t

cdef enum:                      # item kind
    ITEM_NONE
    ITEM_INDEX                   # a: the guest's index as it was read
    ITEM_SLOTS                   # requests as they were read: `count` slots; b: bytes of each
    ITEM_CLAIM                   # a: frames that pass by the vif's credit
    ITEM_COPIES                  # `count` copies, each a flight_copy and its bytes; a: grant operations among them
    ITEM_SENT                    # a: frames that the peer is done with, of b; c: refused ones; `count`: blocked
    ITEM_FRAMES                  # a: what `receive` returned, each a flight_frame and its bytes; b, c: its losses
    ITEM_RESPONSES               # `count` slots, which were published
    ITEM_END                     # `count` flight_counters; a: the next state, b: the reason of the end, c: notify


cdef struct flight_item:
    uint16_t kind
    uint16_t count
    uint32_t a
    uint32_t b
    uint32_t c


cdef struct flight_copy:
    uint32_t gref
    uint16_t offset
    uint16_t length
    uint16_t status              # GNTST_*, as 16 bits
    uint16_t kept                # bytes that follow


cdef struct flight_frame:
    uint32_t length
    uint32_t kept                # bytes that follow
    uint8_t header[VNET_HDR]
    uint16_t zero


cdef struct flight_counter:
    uint32_t number
    uint32_t added


cdef struct flight_t:
    uint8_t *memory
    uint64_t size                # a power of two
    uint64_t head                # bytes written
    uint64_t tail                # where the oldest poll begins
    uint64_t begin               # where the present one does
    uint32_t snaplen             # bytes kept of a frame
    bint open                    # a poll is being recorded or played
    bint full                    # ... and does not fit
    uint64_t polls               # recorded
    uint64_t lost                # polls that did not fit
    bint replaying
    const uint8_t *next          # the rest of a poll that is played
    const uint8_t *end
    uint16_t differs             # the kind of item at which the poll went another way; 0: none
    uint16_t found               # the kind that was recorded there


cdef void flight_put(flight_t *flight, const void *data, uint32_t length) noexcept nogil
cdef void flight_put_frame(flight_t *flight, frame_t *frame, uint32_t snaplen) noexcept nogil
cdef bint flight_expect(flight_t *flight, flight_item *item, uint16_t kind) noexcept nogil
cdef bint flight_get(flight_t *flight, void *data, uint32_t length) noexcept nogil
cdef bint flight_get_frame(flight_t *flight, frame_t *frame, uint8_t *at, uint32_t largest) noexcept nogil

cdef uint32_t flight_index(flight_t *flight, uint32_t index) noexcept nogil
cdef void flight_slots(flight_t *flight, const void *slots, uint32_t count, uint32_t size) noexcept nogil
cdef uint32_t flight_claim(flight_t *flight, uint32_t allowed) noexcept nogil
cdef uint32_t flight_copies(
    flight_t *flight, workspace_t *ws, uint32_t chains, uint32_t segments, uint32_t copies) noexcept nogil
cdef uint32_t flight_sent(
    flight_t *flight, peer_t *peer, uint32_t count, uint32_t done, int *refused) noexcept nogil
cdef int flight_frames(
    flight_t *flight, peer_t *peer, uint8_t *arena, frame_t *frames, int count, int got, bint kept) noexcept nogil
cdef void flight_responses(flight_t *flight, const void *bodies, uint32_t count, uint32_t size) noexcept nogil


cdef class Flight:
    cdef flight_t flight
