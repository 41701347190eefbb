# SPDX-License-Identifier: Apache-2.0
"""A worker's memory for the frames of a burst from a peer."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from netback.dataplane.abi cimport PAGE_SIZE, copy_end


cdef struct arena_t:
    uint8_t *memory              # whole pages
    uint32_t named               # number of leading pages that may be granted to this domain itself ...
    const uint32_t *grefs        # ... and their grefs; 0, which Linux reserves: none
    uint16_t domid               # this domain


cdef inline bint name_local(const arena_t *arena, copy_end *end, const uint8_t *data, uint32_t length) noexcept nogil:
    """Fill in the local end of a copy: gref if within one self-granted page, and then True; else address."""
    cdef size_t at = <size_t>data - <size_t>arena.memory     # far beyond all of them if it is not in the arena
    cdef size_t page = at // PAGE_SIZE
    cdef uint32_t offset = at % PAGE_SIZE
    if page >= arena.named or offset + length > PAGE_SIZE or arena.grefs[page] == 0:
        end.virt = <void *>data
        return False
    end.foreign.ref = arena.grefs[page]
    end.foreign.offset = offset
    end.foreign.domid = arena.domid
    return True


cdef class Arena:
    cdef arena_t arena
    cdef object grefs
    cdef bint map(self, int fd, int flags, uint64_t offset) noexcept
