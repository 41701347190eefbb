# SPDX-License-Identifier: Apache-2.0
"""Responses that outlive the process that wrote them (docs/decisions.md, Journal)."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from netback.dataplane.abi cimport RX_SLOT, TX_SLOT, rx_response, tx_response
from netback.dataplane.ring cimport back_ring

cdef enum:
    JOURNAL_BODIES = 64          # offset of the bodies in a journal's page


cdef struct journal_t:
    uint32_t committed
    uint32_t slot                # bytes of a body: the ring's slot
    uint64_t ring                # identifies the ring: (gref << 32 | port)
    uint32_t old_prod
    uint32_t new_prod


cdef int push_responses(back_ring *ring, journal_t *journal, const uint8_t *bodies, uint32_t count) noexcept nogil
cdef void complete_journal(back_ring *ring, journal_t *journal) noexcept nogil
cdef void kill_point() noexcept nogil
cdef void *map_file(str path, size_t size) except NULL


cdef class Journal:
    cdef uint8_t *base
    cdef readonly str path
    cdef journal_t *of_ring(self, int which, uint64_t ring, uint32_t slot)
