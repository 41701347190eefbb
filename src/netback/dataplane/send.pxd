# SPDX-License-Identifier: Apache-2.0
"""From a ring to the peer, whole or in segments: for both ends."""
from libc.stdint cimport uint32_t

from netback.dataplane.link cimport link_t
from netback.dataplane.peers.peer cimport frame_t
from netback.dataplane.sockets cimport iovec
from netback.dataplane.workspace cimport workspace_t

cdef enum:                       # what became of a frame that is cut
    CUT_IMPOSSIBLE               # it cannot be: drop it
    CUT_BLOCKED                  # the peer took no more: `sent` is how many segments it has
    CUT_PAUSED                   # the segments of this poll are used up: the same
    CUT_DONE


cdef uint32_t send_vectors(
    link_t *link, iovec *vectors, const uint32_t *first, uint32_t count, int *refused) noexcept nogil
cdef uint32_t send_frames(link_t *link, frame_t *frames, uint32_t count, int *refused) noexcept nogil
cdef int send_cut(link_t *link, workspace_t *ws, frame_t *frame, uint32_t *sent, int *refused) noexcept nogil
