# SPDX-License-Identifier: Apache-2.0
"""Appends trace records to a worker's buffer."""
from libc.string cimport memcpy
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec
from netback.dataplane.workspace cimport RECORD_BYTES


cdef void record(workspace_t *ws, link_t *link, record_t *entry) noexcept nogil:
    """Append a record. If the reader is too slow, the record is lost and counted; the worker never waits for it."""
    cdef timespec now
    if ws.records_used + sizeof(record_t) > RECORD_BYTES:
        ws.records_lost += 1
        return
    clock_gettime(CLOCK_REALTIME, &now)
    entry.time = <uint64_t>now.tv_sec * 1000000000 + now.tv_nsec
    entry.link = link.index
    entry.zero = 0
    memcpy(ws.records + ws.records_used, entry, sizeof(record_t))
    ws.records_used += sizeof(record_t)
