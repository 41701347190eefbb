# SPDX-License-Identifier: Apache-2.0
"""Cuts a frame that a ring brought and sends its segments: for both ends, since either's peer may take no GSO.

Knows frames and peers, nothing of rings. A frame that the peer did not take whole stays in its ring; how far it came
is all that is kept of it.
"""
from libc.stdint cimport uint32_t
from libc.string cimport memset

from netback.dataplane.journal cimport kill_point
from netback.dataplane.offload cimport netif_offload
from netback.dataplane.segment cimport segments_begin, segments_next, segments_t
from netback.dataplane.peers.peer cimport (
    BURST_FRAMES, FRAME_HEADROOM, VNET_HDR, frame_t, peer_send, peer_t, vnet_header,
)
from netback.dataplane.workspace cimport CUT_BYTES, workspace_t


cdef int send_cut(peer_t *peer, workspace_t *ws, frame_t *frame, uint32_t *sent, int *refused) noexcept nogil:
    """Send the segments of a frame from the `sent`-th on: CUT_DONE, CUT_FULL or CUT_IMPOSSIBLE.

    `sent` is 0 again once they all are; `refused` counts those that the peer will never take.
    """
    cdef segments_t cut
    cdef netif_offload meta
    cdef uint32_t length, taken, used = FRAME_HEADROOM, count = 0
    cdef uint32_t skip = sent[0]
    if segments_begin(&cut, frame.data, frame.length, vnet_header(frame), False) < 0:
        return CUT_IMPOSSIBLE
    while True:
        length = segments_next(&cut, frame.data, ws.cuts + used, CUT_BYTES - used, &meta)
        if length and skip:
            skip -= 1
            continue
        if length:
            ws.frames[count].data = ws.cuts + used
            ws.frames[count].length = length
            memset(vnet_header(&ws.frames[count]), 0, VNET_HDR)
            used += (length + FRAME_HEADROOM + 63) & ~<uint32_t>63
            count += 1
        if count and (length == 0 or count == BURST_FRAMES or used + cut.largest > CUT_BYTES):
            kill_point()
            taken = peer_send(peer, ws.frames, count, refused)
            kill_point()
            sent[0] += taken
            if taken < count:
                return CUT_FULL
            count = 0
            used = FRAME_HEADROOM
        if length == 0:
            sent[0] = 0
            return CUT_DONE
