# SPDX-License-Identifier: Apache-2.0
"""From a ring to a peer that cannot segment."""
from libc.stdint cimport uint32_t

from netback.dataplane.peers.peer cimport frame_t, peer_t
from netback.dataplane.workspace cimport workspace_t

cdef enum:                       # what became of a frame
    CUT_IMPOSSIBLE = -1          # it cannot be cut: drop it
    CUT_FULL = 0                 # the peer became full: `sent` is how many segments it has
    CUT_DONE = 1


cdef int send_cut(peer_t *peer, workspace_t *ws, frame_t *frame, uint32_t *sent, int *refused) noexcept nogil
