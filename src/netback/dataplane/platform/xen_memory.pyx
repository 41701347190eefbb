# SPDX-License-Identifier: Apache-2.0
"""Grant copies of a real Xen: one IOCTL_GNTDEV_GRANT_COPY for a burst.

Knows segments, nothing of rings or frames. Linux refuses a whole call for one malformed segment, and writes OKAY before
it copies; so a malformed one never reaches it, every status begins as an error, and none counts where the call failed.
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


cdef struct grant_copy_call:     # struct ioctl_gntdev_grant_copy
    uint32_t count
    copy_segment *segments


cdef struct xen_memory:          # `seam` is first: a memory_t * of this platform is a xen_memory *
    memory_t seam
    int gntdev


cdef inline bint well_formed(copy_segment *segment) noexcept nogil:
    """An end at least is a granted page, and nothing goes beyond that page."""
    if segment.flags & GNTCOPY_source_gref and <uint32_t>segment.source.foreign.offset + segment.len > PAGE_SIZE:
        return False
    if segment.flags & GNTCOPY_dest_gref and <uint32_t>segment.dest.foreign.offset + segment.len > PAGE_SIZE:
        return False
    return 0 < segment.flags <= (GNTCOPY_source_gref | GNTCOPY_dest_gref)


cdef int call(xen_memory *memory, copy_segment *segments, int count) noexcept nogil:
    cdef grant_copy_call argument
    cdef int i, failed
    argument.count = count
    argument.segments = segments
    while True:
        for i in range(count):
            segments[i].status = GNTST_general_error
        failed = ioctl(memory.gntdev, IOCTL_GNTDEV_GRANT_COPY, &argument)
        if failed == 0 or errno != EINTR:
            return failed


cdef void copy(memory_t *seam, copy_segment *segments, int count) noexcept nogil:
    cdef xen_memory *memory = <xen_memory *>seam
    cdef int i
    cdef bint whole = True
    for i in range(count):
        whole &= well_formed(&segments[i])
    if whole and call(memory, segments, count) == 0:
        return
    for i in range(count):           # rules 3: a bad one takes nobody with it
        if not well_formed(&segments[i]):
            segments[i].status = GNTST_bad_copy_arg
        elif call(memory, &segments[i], 1) != 0:
            segments[i].status = GNTST_general_error


cdef class XenMemory(GuestMemory):
    """The memory of `domid` by way of `gntdev`, an open /dev/xen/gntdev of the caller's, which outlives this."""

    cdef xen_memory own

    def __cinit__(self, int gntdev, uint16_t domid):
        self.memory = &self.own.seam
        self.own.seam.domid = domid
        self.own.seam.copy = copy
        self.own.gntdev = gntdev
