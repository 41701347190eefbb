# SPDX-License-Identifier: Apache-2.0
"""Pages that this domain grants to itself: own_grants.pyx."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t


cdef struct own_grants_t:
    int device                   # /dev/xen/gntalloc
    uint16_t domid               # this domain


cdef bint own_pages(const own_grants_t *own, uint8_t *at, uint32_t count, uint32_t *grefs) noexcept nogil


cdef class OwnGrants:
    cdef own_grants_t own
