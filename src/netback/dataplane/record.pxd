# SPDX-License-Identifier: Apache-2.0
"""The record of a traced or captured link. records.py parses it."""
from libc.stdint cimport int16_t, uint8_t, uint16_t, uint32_t, uint64_t
from netback.dataplane.link cimport link_t
from netback.dataplane.workspace cimport workspace_t

cdef enum:                      # record kind: what a traced or captured link records
    RECORD_TX_SLOT = 1
    RECORD_RX_SLOT = 2
    RECORD_TX_FRAME = 3
    RECORD_RX_FRAME = 4


cdef struct record_t:            # followed by `length` bytes of the frame, padded to 8
    uint64_t time                # ns, CLOCK_REALTIME
    uint32_t link
    uint16_t kind
    uint16_t flags               # NETTXF_* or NETRXF_*
    uint32_t gref
    uint32_t index               # of the slot (the first one), free-running
    uint16_t offset
    uint16_t size
    uint16_t slots
    int16_t status
    uint16_t gso_size
    uint16_t gso_type
    uint32_t length


cdef void record(workspace_t *ws, link_t *link, record_t *entry, const uint8_t *bytes, uint32_t length) noexcept nogil
