# SPDX-License-Identifier: Apache-2.0
"""The platform's copy verb: what guest_tx and guest_rx move frames with."""
from libc.stdint cimport uint16_t
from netback.dataplane.abi cimport copy_segment


cdef struct memory_t:            # the first member of each platform's own
    uint16_t domid               # whose memory it is
    void (*copy)(memory_t *, copy_segment *segments, int count) noexcept nogil


cdef inline void grant_copy(memory_t *memory, copy_segment *segments, int count) noexcept nogil:
    """Copy every segment between granted pages and local memory, leaving a GNTST status in each.

    Each is judged by itself: a bad one shares no fate with its neighbours (rules 3).
    """
    memory.copy(memory, segments, count)


cdef class GuestMemory:
    cdef memory_t *memory
