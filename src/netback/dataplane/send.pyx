# SPDX-License-Identifier: Apache-2.0
"""Sends frames of a ring: whole ones, and segments of one that the peer cannot accept whole.

A frame that is not done stays in its ring; only the number of its segments that were sent is kept.
"""
from libc.stdint cimport uint32_t
from libc.string cimport memset

from netback.dataplane.flight cimport flight_sent
from netback.dataplane.journal cimport kill_point
from netback.dataplane.link cimport gives_up
from netback.dataplane.extras cimport frame_meta
from netback.dataplane.peers.peer cimport (
    BURST_FRAMES, FRAME_HEADROOM, VNET_HDR, frame_t, frame_vectors, vnet_header,
)
from netback.dataplane.segment cimport segments_begin, segments_next, segments_t
from netback.dataplane.workspace cimport SEGMENTS_BYTES, workspace_t


cdef uint32_t send_vectors(
        link_t *link, iovec *vectors, const uint32_t *first, uint32_t count, int *refused) noexcept nogil:
    """Call the peer's `send` (peer.pxd) for up to BURST_FRAMES frames; returns how many are done. A frame that a busy
    peer has refused for as long as this link may wait is done, and counted as refused.
    """
    cdef uint32_t done = link.peer.send(link.peer, vectors, first, count, refused)
    while done < count and gives_up(link):
        refused[0] += 1
        done += 1
        if done < count:
            done += link.peer.send(link.peer, vectors, first + done, count - done, refused)
    return done if link.flight == NULL else flight_sent(link.flight, link.peer, count, done, refused)


cdef uint32_t send_frames(link_t *link, frame_t *frames, uint32_t count, int *refused) noexcept nogil:
    """The same for frames in one piece each."""
    cdef iovec vectors[BURST_FRAMES]
    cdef uint32_t first[BURST_FRAMES + 1]
    frame_vectors(link.peer, frames, count, vectors, first)
    return send_vectors(link, vectors, first, count, refused)


cdef int send_segments(link_t *link, workspace_t *ws, frame_t *frame, uint32_t *sent, int *refused) noexcept nogil:
    """Send the segments of a frame from the `sent`-th on, at most ws.segments_left of them; returns a SEGMENTS_*.

    `sent` is 0 again once all are sent; `refused` counts those that the peer will never accept.
    """
    cdef segments_t it
    cdef frame_meta meta
    cdef uint32_t length, taken, used = FRAME_HEADROOM, count = 0
    cdef uint32_t skip = sent[0]
    if segments_begin(&it, frame.data, frame.length, vnet_header(frame), False) < 0:
        return SEGMENTS_IMPOSSIBLE
    while True:
        if ws.segments_left == 0 and it.index < it.count:
            return SEGMENTS_PAUSED
        length = segments_next(&it, frame.data, ws.segment_memory + used, SEGMENTS_BYTES - used, &meta)
        if length and skip:
            skip -= 1
            continue
        if length:
            ws.frames[count].data = ws.segment_memory + used
            ws.frames[count].length = length
            memset(vnet_header(&ws.frames[count]), 0, VNET_HDR)
            used += (length + FRAME_HEADROOM + 63) & ~<uint32_t>63
            count += 1
            ws.segments_left -= 1
        if count and (
            length == 0 or count == BURST_FRAMES or ws.segments_left == 0 or used + it.largest > SEGMENTS_BYTES
        ):
            kill_point()
            taken = send_frames(link, ws.frames, count, refused)
            kill_point()
            sent[0] += taken
            if taken < count:
                return SEGMENTS_BLOCKED
            count = 0
            used = FRAME_HEADROOM
        if length == 0:
            sent[0] = 0
            return SEGMENTS_DONE
