# SPDX-License-Identifier: Apache-2.0
"""Sends frames from a ring to the peer, whole or in segments: for both ends."""
from libc.stdint cimport uint32_t

from netback.dataplane.link cimport link_t
from netback.dataplane.peers.peer cimport frame_t
from netback.dataplane.sockets cimport iovec
from netback.dataplane.workspace cimport workspace_t

cdef enum:                       # result for a frame that is segmented
    SEGMENTS_IMPOSSIBLE               # it cannot be segmented: drop it
    SEGMENTS_BLOCKED                  # the peer is full: `sent` is the number of segments that it accepted
    SEGMENTS_PAUSED                   # this poll's segments are used up: `sent` likewise
    SEGMENTS_DONE


cdef uint32_t send_vectors(
    link_t *link, iovec *vectors, const uint32_t *first, uint32_t count, int *refused) noexcept nogil
cdef uint32_t send_frames(link_t *link, frame_t *frames, uint32_t count, int *refused) noexcept nogil
cdef int send_segments(link_t *link, workspace_t *ws, frame_t *frame, uint32_t *sent, int *refused) noexcept nogil
