# SPDX-License-Identifier: Apache-2.0
"""The record of a traced link's slot. records.py parses it."""
from libc.stdint cimport int16_t, uint16_t, uint32_t, uint64_t
from netback.dataplane.link cimport link_t
from netback.dataplane.workspace cimport workspace_t

cdef enum:                      # record kind
    RECORD_TX_SLOT = 1
    RECORD_RX_SLOT = 2


cdef struct record_t:
    uint64_t time                # ns, CLOCK_REALTIME
    uint32_t link
    uint16_t kind
    uint16_t flags               # NETTXF_* or NETRXF_*
    uint32_t gref
    uint32_t index               # free-running
    uint16_t offset
    uint16_t size
    int16_t status
    uint16_t zero


cdef void record(workspace_t *ws, link_t *link, record_t *entry) noexcept nogil
