# SPDX-License-Identifier: Apache-2.0
"""Grant copies on emulated Xen: the hypervisor's checks, then one memcpy per segment.

Each segment is checked separately: a bad one gets its GNTST status and does not affect the others (docs/decisions.md,
Grant copies).
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

import fcntl
import os

from netback.errors import PlatformError
from netback.dataplane.abi cimport (
    GNTCOPY_dest_gref, GNTCOPY_source_gref, GNTST_bad_copy_arg, GNTST_bad_gntref, GNTST_bad_page, GNTST_general_error,
    GNTST_okay, GTF_permit_access, GTF_readonly, GTF_type_mask, PAGE_SIZE, copy_segment, foreign_buffer, grant_entry,
)
from netback.dataplane.platform.memory cimport GuestMemory, memory_t

cdef extern from *:
    """
    /* One read of the whole entry: while a guest changes it, this yields the old or the new one, never a mix
       (XSA-155). */
    static inline uint64_t read_once64(const void *p) { return __atomic_load_n((const uint64_t *)p, __ATOMIC_ACQUIRE); }
    """
    unsigned long long read_once64(const void *p) nogil


cdef struct emulated_memory:     # `seam` is first: a memory_t * of this platform is an emulated_memory *
    memory_t seam
    uint8_t *base                # the guest's memfd, mapped here; its first pages are its grant table
    uint32_t pages
    uint32_t grants              # entries of the grant table
    uint16_t local_domid         # the domain that copies


cdef inline int granted_page(
        emulated_memory *memory, foreign_buffer *at, uint16_t length, bint writing, uint8_t **page) noexcept nogil:
    """Set *page to the page behind a grant if this domain may use it in this way; return the status that Xen would
    return.
    """
    cdef unsigned long long raw
    cdef grant_entry *entry = <grant_entry *>&raw
    if <uint32_t>at.offset + length > PAGE_SIZE:
        return GNTST_bad_copy_arg
    if at.ref >= memory.grants or at.domid != memory.seam.domid:
        return GNTST_bad_gntref
    raw = read_once64(memory.base + <size_t>at.ref * sizeof(grant_entry))
    if (entry.flags & GTF_type_mask) != GTF_permit_access or entry.domid != memory.local_domid:
        return GNTST_general_error
    if writing and entry.flags & GTF_readonly:
        return GNTST_general_error
    if entry.frame >= memory.pages:
        return GNTST_bad_page
    page[0] = memory.base + <size_t>entry.frame * PAGE_SIZE
    return GNTST_okay


cdef inline int copy_one(emulated_memory *memory, copy_segment *segment) noexcept nogil:
    cdef uint8_t *page = NULL
    cdef int status
    if segment.flags == GNTCOPY_source_gref:
        status = granted_page(memory, &segment.source.foreign, segment.len, False, &page)
        if status == GNTST_okay:
            memcpy(segment.dest.virt, page + segment.source.foreign.offset, segment.len)
        return status
    if segment.flags == GNTCOPY_dest_gref:
        status = granted_page(memory, &segment.dest.foreign, segment.len, True, &page)
        if status == GNTST_okay:
            memcpy(page + segment.dest.foreign.offset, segment.source.virt, segment.len)
        return status
    return GNTST_bad_copy_arg


cdef void copy(memory_t *memory, copy_segment *segments, int count) noexcept nogil:
    cdef int i
    for i in range(count):
        segments[i].status = copy_one(<emulated_memory *>memory, &segments[i])


cdef class EmulatedMemory(GuestMemory):
    """A domain's memory as another domain may reach it: by checked copies.

    `fd` is the domain's memfd, borrowed for the call; its first `grant_pages` pages are its v1 grant table. Raises
    PlatformError EPERM unless the memfd is sealed against a change of size (memfd_create(2): a truncation under a
    mapping is a SIGBUS), EINVAL for an impossible size, ENOMEM if it cannot be mapped.
    """

    cdef emulated_memory own
    cdef size_t size

    def __cinit__(self, int fd, uint32_t grant_pages, uint16_t domid, uint16_t local_domid):
        cdef int needed = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & needed != needed:
            raise PlatformError(f"the memory of domain {domid} is not sealed against a change of size", "EPERM")
        size = os.fstat(fd).st_size
        if size % PAGE_SIZE or not 0 < grant_pages < size // PAGE_SIZE:
            raise PlatformError(f"the memory of domain {domid} has an impossible size: {size} bytes", "EINVAL")
        cdef void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if base == MAP_FAILED:
            raise PlatformError(f"cannot map the memory of domain {domid}", "ENOMEM")
        self.memory = &self.own.seam
        self.size = size
        self.own.base = <uint8_t *>base
        self.own.pages = size // PAGE_SIZE
        self.own.grants = grant_pages * PAGE_SIZE // sizeof(grant_entry)
        self.own.seam.domid = domid
        self.own.seam.copy = copy
        self.own.local_domid = local_domid

    def __dealloc__(self):
        if self.own.base != NULL:
            munmap(self.own.base, self.size)

    @property
    def address(self) -> int:
        """The address at which page 0 is mapped."""
        return <size_t>self.own.base

    @property
    def pages(self) -> int:
        """The memory's size in pages of 4096 bytes."""
        return self.own.pages

    def page_address(self, uint32_t frame) -> int:
        """The address of a frame that the hypervisor mapped for this process. PlatformError EINVAL: beyond the memory's
        end."""
        if frame >= self.own.pages:
            raise PlatformError(f"frame {frame} of domain {self.own.seam.domid} is out of range", "EINVAL")
        return <size_t>(self.own.base + <size_t>frame * PAGE_SIZE)
