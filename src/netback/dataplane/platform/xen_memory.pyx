# SPDX-License-Identifier: Apache-2.0
"""Grant copies on real Xen: one IOCTL_GNTDEV_GRANT_COPY for a burst.

Linux refuses a whole call for one malformed segment, and writes OKAY before it copies: so a malformed segment is never
passed to it, every status begins as an error, and no status is valid if the call failed (docs/decisions.md, Grant
copies).
"""
from libc.errno cimport EINTR, errno
from libc.stdint cimport uint16_t, uint32_t

from netback.dataplane.abi cimport (
    GNTCOPY_dest_gref, GNTCOPY_source_gref, GNTST_bad_copy_arg, GNTST_general_error, PAGE_SIZE, copy_segment,
)
from netback.dataplane.platform.memory cimport GuestMemory, memory_t

cdef extern from "sys/ioctl.h" nogil:
    int ioctl(int fd, unsigned long request, void *argument)

cdef enum:
    IOCTL_GNTDEV_GRANT_COPY = 0x00104708     # xen/gntdev.h: _IOC(_IOC_NONE, 'G', 8, 16)
    MAX_ATTEMPTS = 8


cdef struct grant_copy_call:     # struct ioctl_gntdev_grant_copy
    uint32_t count
    copy_segment *segments


cdef struct xen_memory:          # `seam` is first: a memory_t * of this platform is a xen_memory *
    memory_t seam
    int gntdev


cdef inline bint well_formed(copy_segment *segment) noexcept nogil:
    """Whether at least one end is a granted page and the segment stays within that page."""
    if segment.flags & GNTCOPY_source_gref and <uint32_t>segment.source.foreign.offset + segment.len > PAGE_SIZE:
        return False
    if segment.flags & GNTCOPY_dest_gref and <uint32_t>segment.dest.foreign.offset + segment.len > PAGE_SIZE:
        return False
    return 0 < segment.flags <= (GNTCOPY_source_gref | GNTCOPY_dest_gref)


cdef int call(xen_memory *memory, copy_segment *segments, int count) noexcept nogil:
    """Make the ioctl, retrying a few times if a signal interrupts it; returns 0, or -1."""
    cdef grant_copy_call argument
    cdef int i, _attempt
    argument.count = count
    argument.segments = segments
    for _attempt in range(MAX_ATTEMPTS):
        for i in range(count):
            segments[i].status = GNTST_general_error
        if ioctl(memory.gntdev, IOCTL_GNTDEV_GRANT_COPY, &argument) == 0:
            return 0
        if errno != EINTR:
            return -1
    return -1


cdef void copy(memory_t *seam, copy_segment *segments, int count) noexcept nogil:
    cdef xen_memory *memory = <xen_memory *>seam
    cdef int i
    cdef bint whole = True
    for i in range(count):
        whole &= well_formed(&segments[i])
    if whole and call(memory, segments, count) == 0:
        return
    for i in range(count):           # one by one: a bad segment fails alone
        if not well_formed(&segments[i]):
            segments[i].status = GNTST_bad_copy_arg
        elif call(memory, &segments[i], 1) != 0:
            segments[i].status = GNTST_general_error


cdef class XenMemory(GuestMemory):
    """The memory of `domid` through `gntdev`, an open /dev/xen/gntdev that the caller keeps open."""

    cdef xen_memory own

    def __cinit__(self, int gntdev, uint16_t domid):
        self.memory = &self.own.seam
        self.own.seam.domid = domid
        self.own.seam.copy = copy
        self.own.gntdev = gntdev
