# SPDX-License-Identifier: Apache-2.0
"""Sends frames that a ring brought: whole ones, and segments of one that the peer cannot take whole.

Knows links and peers, nothing of rings. A frame that is not done with stays in its ring; how many of its segments went
out is all that is kept of it.
"""
from libc.stdint cimport uint32_t
from libc.string cimport memset

from netback.dataplane.journal cimport kill_point
from netback.dataplane.link cimport gives_up
from netback.dataplane.extras cimport frame_meta
from netback.dataplane.peers.peer cimport (
    BURST_FRAMES, FRAME_HEADROOM, VNET_HDR, frame_t, frame_vectors, vnet_header,
)
from netback.dataplane.segment cimport segments_begin, segments_next, segments_t
from netback.dataplane.workspace cimport CUT_BYTES, workspace_t


cdef uint32_t send_vectors(
        link_t *link, iovec *vectors, const uint32_t *first, uint32_t count, int *refused) noexcept nogil:
    """`send` of the peer (peer.pxd), for up to BURST_FRAMES frames: how many are done with. A frame that a busy peer
    has refused for as long as this link may wait is done with, and counted as refused.
    """
    cdef uint32_t done = 0
    while True:
        done += link.peer.send(link.peer, vectors, first + done, count - done, refused)
        if done == count or not gives_up(link):
            return done
        refused[0] += 1
        done += 1
        if done == count:
            return done


cdef uint32_t send_frames(link_t *link, frame_t *frames, uint32_t count, int *refused) noexcept nogil:
    """The same for frames that lie in one piece each."""
    cdef iovec vectors[BURST_FRAMES]
    cdef uint32_t first[BURST_FRAMES + 1]
    frame_vectors(link.peer, frames, count, vectors, first)
    return send_vectors(link, vectors, first, count, refused)


cdef int send_cut(link_t *link, workspace_t *ws, frame_t *frame, uint32_t *sent, int *refused) noexcept nogil:
    """Send the segments of a frame from the `sent`-th on, no more than ws.cuts_left of them: a CUT_*.

    `sent` is 0 again once they all are; `refused` counts those that the peer will never take.
    """
    cdef segments_t cut
    cdef frame_meta meta
    cdef uint32_t length, taken, used = FRAME_HEADROOM, count = 0
    cdef uint32_t skip = sent[0]
    if segments_begin(&cut, frame.data, frame.length, vnet_header(frame), False) < 0:
        return CUT_IMPOSSIBLE
    while True:
        if ws.cuts_left == 0 and cut.index < cut.count:
            return CUT_PAUSED
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
            ws.cuts_left -= 1
        if count and (length == 0 or count == BURST_FRAMES or ws.cuts_left == 0 or used + cut.largest > CUT_BYTES):
            kill_point()
            taken = send_frames(link, ws.frames, count, refused)
            kill_point()
            sent[0] += taken
            if taken < count:
                return CUT_BLOCKED
            count = 0
            used = FRAME_HEADROOM
        if length == 0:
            sent[0] = 0
            return CUT_DONE
