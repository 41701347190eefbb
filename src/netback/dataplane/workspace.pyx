# SPDX-License-Identifier: Apache-2.0
"""Allocates a worker's private memory."""
from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free
from netback.dataplane.abi cimport PAGE_SIZE
from netback.dataplane.peers.peer cimport FRAME_HEADROOM, FRAME_STRIDE

cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef enum:
    CACHE_LINE = 64              # frames begin on one: copies to other addresses are slower


cdef workspace_t *workspace_new(Arena arena) except NULL:
    cdef workspace_t *ws = <workspace_t *>calloc(1, sizeof(workspace_t))
    if ws != NULL:
        ws.pages = &arena.arena
        # a frame begins at a page: then the grant copy of a page is one copy, and Linux does not split it
        ws.arena = ws.pages.memory + PAGE_SIZE - FRAME_HEADROOM
        ws.tx_memory = <uint8_t *>aligned_alloc(PAGE_SIZE, PAGE_SIZE + BURST_BYTES + FRAME_STRIDE)
        ws.packed = ws.tx_memory + PAGE_SIZE - FRAME_HEADROOM
        ws.segment_memory = <uint8_t *>aligned_alloc(CACHE_LINE, SEGMENTS_BYTES)
        ws.records = <uint8_t *>aligned_alloc(CACHE_LINE, RECORD_BYTES)
    if ws == NULL or ws.tx_memory == NULL or ws.segment_memory == NULL or ws.records == NULL:
        workspace_free(ws)
        raise MemoryError
    return ws


cdef void workspace_free(workspace_t *ws) noexcept:
    if ws != NULL:
        free(ws.tx_memory)
        free(ws.segment_memory)
        free(ws.records)
        free(ws)
