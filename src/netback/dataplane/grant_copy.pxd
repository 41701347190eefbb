# SPDX-License-Identifier: Apache-2.0
"""The platform's copy verb: what guest_tx and guest_rx move frames with."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from netback.dataplane.abi cimport copy_segment, grant_entry


cdef struct memory_t:
    uint8_t *base                # the guest's memfd, mapped here; its first pages are its grant table
    uint32_t pages
    uint32_t grants              # entries of the grant table
    uint16_t domid               # whose memory it is
    uint16_t local_domid         # who copies


cdef void grant_copy(memory_t *memory, copy_segment *segments, int count) noexcept nogil


cdef class GuestMemory:
    cdef memory_t memory
    cdef size_t size
