# SPDX-License-Identifier: Apache-2.0
"""A filter: a peer around another one, through which every frame of a link passes: filter.pyx.

    cdef struct my_filter:           # `filter` is first: a peer_t * of this kind is a my_filter *
        filter_t filter

A kind replaces functions of the table that `FilterPeer.wrap` fills, which passes everything on, and begins each of its
own with `filter_enter` and ends it with `filter_leave`: the worker looks at the outermost peer alone, so its fields
are those of the inner one at any time. Filters around filters are then nothing special.

What a filter drops is done, for the caller. TX frames that the inner peer does not take are offered again, perhaps
copied again: a filter changes none in place, and counts a frame when it is done.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from netback.dataplane.peers.peer cimport Peer, earliest, frame_t, peer_t
from netback.dataplane.sockets cimport iovec

cdef enum:
    FILTER_COUNTERS = 16         # most counters of a kind
    HEAD_BYTES = 512             # of a frame in several pieces, what a filter sees
    ADMITTED = -1


cdef struct filter_t:
    peer_t peer
    peer_t *inner
    uint64_t due                 # ns: when the filter itself is to be polled; 0: never
    uint64_t counts[FILTER_COUNTERS]


ctypedef int (*admit_t)(filter_t *, frame_t *) noexcept nogil


cdef inline peer_t *filter_enter(peer_t *peer) noexcept nogil:
    """The inner peer, which hears what the worker found out about its descriptor, and that it was not read up."""
    cdef peer_t *inner = (<filter_t *>peer).inner
    inner.condition = peer.condition
    inner.unread |= peer.unread
    peer.unread = False
    return inner


cdef inline void filter_leave(peer_t *peer) noexcept nogil:
    """Take over what the inner peer's function changed."""
    cdef peer_t *inner = (<filter_t *>peer).inner
    peer.bell = inner.bell
    peer.by_bell = inner.by_bell
    peer.due = earliest(inner.due, (<filter_t *>peer).due)
    peer.header = inner.header
    peer.caps = inner.caps
    peer.frames_per_read = inner.frames_per_read
    peer.blocked = inner.blocked
    peer.unsent = inner.unsent
    peer.condition = inner.condition
    peer.short_frames += inner.short_frames
    peer.truncated += inner.truncated
    inner.short_frames = inner.truncated = 0


# Receive, and keep the frames that `admit` returns ADMITTED for; else it returns the counter of the frames dropped. It
# may change a frame in place, and shorten it at its beginning.
cdef int filter_receive(
    peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count, admit_t admit) noexcept nogil
# The beginning of a frame to send, after its virtio_net_hdr: `have` bytes of it. `buffer` has HEAD_BYTES.
cdef const uint8_t *gather_head(
    const iovec *vectors, uint32_t count, uint32_t header, uint8_t *buffer, uint32_t *have) noexcept nogil


cdef class FilterPeer(Peer):
    cdef filter_t *filter
    cdef readonly Peer inner
    cdef readonly tuple names
    cdef dict options
    cdef void wrap(self, filter_t *filter, Peer inner, str kind, dict options)
