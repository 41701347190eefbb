# SPDX-License-Identifier: Apache-2.0
"""Staging grants: pages that a guest lets a queue keep mapped, by gref (netif.h, Static Grants).

A copy between such a page and private memory is a memcpy, not a grant operation. The bytes are copied once and only
the copy is used, as from any page that the guest can still write (XSA-155).
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from netback.dataplane.platform.memory cimport grant_copy, memory_t
from netback.dataplane.workspace cimport workspace_t

cdef enum:
    MAX_STAGED = 512             # pages of a queue, as many as a list of netif.h has
    MAX_GREF = 1 << 16           # twice a guest's grant table by default; a page at a higher gref is not found
    WRITABLE = 1                 # in an entry, beside the page's address: the guest did not stage it read-only


# An entry for each gref, so no choice of grefs makes a look-up slow. Only pages of it that have entries take memory.
cdef struct staged_t:
    uint64_t *entries            # MAX_GREF


cdef inline uint8_t *find_staged(const staged_t *staged, uint32_t gref, bint writing) noexcept nogil:
    """The page behind a gref, NULL if it is not staged for this use: then the grant itself decides."""
    cdef uint64_t entry = staged.entries[gref] if gref < MAX_GREF else 0
    if writing and not entry & WRITABLE:
        return NULL
    return <uint8_t *><size_t>(entry & ~<uint64_t>WRITABLE)


cdef uint32_t copy_staged(memory_t *memory, const staged_t *staged, workspace_t *ws, uint32_t count) noexcept nogil


cdef inline uint32_t copy_segments(
        memory_t *memory, const staged_t *staged, workspace_t *ws, uint32_t count) noexcept nogil:
    """Make the copies of a burst and set their statuses; returns how many of them took a grant operation. `staged` is
    NULL for a queue without staged pages.
    """
    if staged != NULL:
        return copy_staged(memory, staged, ws, count)
    grant_copy(memory, ws.segments, count)
    return count


cdef class Staged:
    cdef staged_t staged
    cdef object keep
