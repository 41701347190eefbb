# SPDX-License-Identifier: Apache-2.0
"""The platform's copy operation, by which a backend moves frames from and to a guest's granted pages."""
from libc.stdint cimport uint16_t
from netback.dataplane.abi cimport copy_segment


cdef struct memory_t:            # the first member of each platform's structure
    uint16_t domid               # the domain that owns the memory
    void (*copy)(memory_t *, copy_segment *segments, int count) noexcept nogil


cdef inline void grant_copy(memory_t *memory, copy_segment *segments, int count) noexcept nogil:
    """Copy every segment between granted pages and local memory, and set its GNTST status.

    A bad segment fails alone (docs/decisions.md, Grant copies). Bytes count only where their segment's status is OKAY.
    """
    memory.copy(memory, segments, count)


cdef class GuestMemory:
    cdef memory_t *memory
