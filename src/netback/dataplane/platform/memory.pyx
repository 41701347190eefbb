# SPDX-License-Identifier: Apache-2.0
"""The Python interface of a domain's memory: copy segments."""
from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memset

from netback.dataplane.abi cimport (
    GNTCOPY_dest_gref, GNTCOPY_source_gref, GNTST_bad_copy_arg, PAGE_SIZE, copy_segment,
)


cdef class GuestMemory:
    """A domain's memory for another domain: accessible by grant copies. Create an EmulatedMemory or a XenMemory."""

    def read(self, uint32_t gref, uint16_t offset, uint16_t length) -> tuple[int, bytes]:
        """Copy `length` bytes from `offset` of a granted page; returns (GNTST status, the bytes, which are valid only
        if OKAY).
        """
        cdef copy_segment segment
        cdef bytearray data = bytearray(length)
        cdef unsigned char[::1] view = data if length else bytearray(1)
        memset(&segment, 0, sizeof(segment))
        segment.source.foreign.ref = gref
        segment.source.foreign.offset = offset
        segment.source.foreign.domid = self.memory.domid
        segment.dest.virt = &view[0]
        segment.len = length
        segment.flags = GNTCOPY_source_gref
        grant_copy(self.memory, &segment, 1)
        return segment.status, bytes(data)

    def write(self, uint32_t gref, uint16_t offset, bytes data) -> int:
        """Copy `data` to `offset` of a granted page; returns the GNTST status."""
        cdef copy_segment segment
        if len(data) > PAGE_SIZE:
            return GNTST_bad_copy_arg
        memset(&segment, 0, sizeof(segment))
        segment.source.virt = <char *>data
        segment.dest.foreign.ref = gref
        segment.dest.foreign.offset = offset
        segment.dest.foreign.domid = self.memory.domid
        segment.len = len(data)
        segment.flags = GNTCOPY_dest_gref
        grant_copy(self.memory, &segment, 1)
        return segment.status
