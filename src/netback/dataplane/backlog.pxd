# SPDX-License-Identifier: Apache-2.0
"""Frames that a read returned while the ring lacks slots for them, in order. The memory is touched only then."""
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from netback.dataplane.peers.peer cimport BURST_FRAMES, FRAME_HEADROOM, FRAME_STRIDE, VNET_HDR, frame_t, vnet_header

cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t size)


cdef struct backlog_t:
    frame_t frames[BURST_FRAMES]
    uint8_t *memory              # FRAME_STRIDE for each of `capacity` frames
    uint32_t capacity
    uint32_t first
    uint32_t count


cdef inline int backlog_init(backlog_t *backlog, uint32_t capacity) except -1:
    memset(backlog, 0, sizeof(backlog_t))
    backlog.capacity = capacity
    backlog.memory = <uint8_t *>aligned_alloc(64, <size_t>capacity * FRAME_STRIDE)
    if backlog.memory == NULL:
        raise MemoryError
    return 0


cdef inline void backlog_free(backlog_t *backlog) noexcept:
    free(backlog.memory)


cdef inline void backlog_add(backlog_t *backlog, frame_t *frame) noexcept nogil:
    """Keep a copy of a frame with its header. The caller adds no more than one read of at most `capacity` frames
    brings; a frame of several strides comes alone, so it finds the backlog empty.
    """
    cdef uint32_t at
    cdef frame_t *kept
    if backlog.count == 0:
        backlog.first = 0
    at = (backlog.first + backlog.count) % backlog.capacity
    kept = &backlog.frames[at]
    kept.data = backlog.memory + <size_t>at * FRAME_STRIDE + FRAME_HEADROOM
    kept.length = frame.length
    memcpy(vnet_header(kept), vnet_header(frame), frame.length + VNET_HDR)
    backlog.count += 1


cdef inline frame_t *backlog_first(backlog_t *backlog) noexcept nogil:
    return &backlog.frames[backlog.first]


cdef inline void backlog_pop(backlog_t *backlog) noexcept nogil:
    backlog.first = (backlog.first + 1) % backlog.capacity
    backlog.count -= 1
