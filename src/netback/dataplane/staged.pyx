# SPDX-License-Identifier: Apache-2.0
"""Tables of staged pages, and the copies of a burst that uses them: see staged.pxd."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from netback.dataplane.abi cimport GNTCOPY_source_gref, GNTST_okay, PAGE_SIZE, copy_segment
from netback.dataplane.platform.memory cimport grant_copy

cdef extern from *:
    """
    /* Hides that a length is at most a page: for such copies GCC has rep movs, which begins slowly, not memcpy. */
    static inline size_t any_length(size_t length) { __asm__("" : "+r"(length)); return length; }
    """
    size_t any_length(size_t length) noexcept nogil

MAX_PAGES = MAX_STAGED
GREFS_END = MAX_GREF


cdef inline bint copy_one(const staged_t *staged, copy_segment *segment) noexcept nogil:
    """Make one copy if its page is staged; False if it takes a grant operation."""
    cdef uint8_t *page
    if segment.flags == GNTCOPY_source_gref:
        page = find_staged(staged, segment.source.foreign.ref, False)
        if page == NULL or <uint32_t>segment.source.foreign.offset + segment.len > PAGE_SIZE:
            return False
        memcpy(segment.dest.virt, page + segment.source.foreign.offset, any_length(segment.len))
    else:
        page = find_staged(staged, segment.dest.foreign.ref, True)
        if page == NULL or <uint32_t>segment.dest.foreign.offset + segment.len > PAGE_SIZE:
            return False
        memcpy(page + segment.dest.foreign.offset, segment.source.virt, any_length(segment.len))
    segment.status = GNTST_okay
    return True


cdef uint32_t copy_staged(memory_t *memory, const staged_t *staged, workspace_t *ws, uint32_t count) noexcept nogil:
    """Copy what is staged, then the rest by one grant operation; returns the size of the rest. The local end of every
    segment is an address.
    """
    cdef uint32_t i, rest = 0
    for i in range(count):
        if not copy_one(staged, &ws.segments[i]):
            ws.rest[rest] = ws.segments[i]
            ws.rest_segment[rest] = i
            rest += 1
    if rest:
        grant_copy(memory, ws.rest, rest)
    for i in range(rest):
        ws.segments[ws.rest_segment[i]].status = ws.rest[i].status
    return rest


cdef class Staged:
    """A queue's staged pages: `pages` has the page's address and whether the backend may write to it, by gref.

    `keep` is kept alive. ValueError: more than MAX_PAGES, or an address of 0.
    """

    def __cinit__(self, object pages, object keep=None):
        cdef uint32_t number
        if len(pages) > MAX_STAGED:
            raise ValueError(f"a queue has at most {MAX_STAGED} staged pages")
        self.keep = keep
        self.staged.entries = <uint64_t *>calloc(MAX_GREF, sizeof(uint64_t))
        if self.staged.entries == NULL:
            raise MemoryError
        for gref, (address, writable) in pages.items():
            if address == 0:
                raise ValueError("a staged page has no address")
            number = gref
            if number < MAX_GREF:
                self.staged.entries[number] = <size_t>address | (WRITABLE if writable else 0)

    def __dealloc__(self):
        free(self.staged.entries)

    def find(self, uint32_t gref, *, bint writing) -> int:
        """The address of a gref's page, 0 if it is not staged for this use. For tests."""
        return <size_t>find_staged(&self.staged, gref, writing)
