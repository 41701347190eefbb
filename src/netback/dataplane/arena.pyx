# SPDX-License-Identifier: Apache-2.0
"""A worker's memory for the frames of a burst from a peer.

On real Xen a copy between two grants costs Linux less than one with an address: it neither looks up nor pins a local
page (`netback lab profile` measures the difference). So a platform may replace the first pages by pages that are
granted to this domain itself. TX frames are in other memory: a tap copies them more slowly out of such pages.
"""
from array import array

from libc.errno cimport errno
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from netback.dataplane.peers.peer cimport BURST_FRAMES, FRAME_STRIDE

cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef extern from "sys/mman.h" nogil:
    enum:
        MAP_ANONYMOUS
        MAP_FIXED
        MAP_PRIVATE
        MAP_SHARED
        PROT_READ
        PROT_WRITE
    void *MAP_FAILED
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)

ARENA_PAGES = 1 + BURST_FRAMES * FRAME_STRIDE // PAGE_SIZE


cdef class Arena:
    """Pages for a burst: BURST_FRAMES of the largest frames, and one for the headroom of the first."""

    def __cinit__(self):
        self.arena.memory = <uint8_t *>aligned_alloc(PAGE_SIZE, <size_t>ARENA_PAGES * PAGE_SIZE)
        if self.arena.memory == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.arena.named:             # restores the memory that the allocator gave
            self.map(-1, MAP_PRIVATE | MAP_ANONYMOUS, 0)
        free(self.arena.memory)

    cdef bint map(self, int fd, int flags, uint64_t offset) noexcept:
        cdef size_t length = <size_t>self.arena.named * PAGE_SIZE
        return mmap(self.arena.memory, length, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, offset) != MAP_FAILED

    def name(self, int fd, uint64_t offset, uint16_t domid, grefs) -> None:
        """Replace the first pages by those at `offset` of a device, which are granted to `domid`, this domain, as
        `grefs`.

        They stay granted as long as they are mapped here. May be called once, before the first burst. OSError: they
        cannot be mapped. ValueError: they are more than the arena has.
        """
        if not 0 < len(grefs) <= ARENA_PAGES:
            raise ValueError(f"an arena has {ARENA_PAGES} pages, and {len(grefs)} are to be named")
        self.grefs = array("I", grefs)
        cdef const uint32_t[::1] view = self.grefs
        self.arena.named = len(view)
        if not self.map(fd, MAP_SHARED, offset):
            failed = errno
            self.map(-1, MAP_PRIVATE | MAP_ANONYMOUS, 0)     # Linux may have unmapped the old pages before it failed
            self.arena.named = 0
            raise OSError(failed, "cannot map pages of the arena")
        self.arena.grefs = &view[0]
        self.arena.domid = domid

    def end_of(self, ssize_t at, uint32_t length) -> tuple[int, int, int] | None:
        """The local end of a copy of `length` bytes at `at` in the arena: (gref, offset, domid), or None for an
        address.
        """
        cdef copy_end end
        if not name_local(&self.arena, &end, self.arena.memory + at, length):
            return None
        return end.foreign.ref, end.foreign.offset, end.foreign.domid
