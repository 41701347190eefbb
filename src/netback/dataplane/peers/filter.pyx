# SPDX-License-Identifier: Apache-2.0
"""What filters have in common: every function of the inner peer, passed on, and reads that drop frames."""
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from netback.dataplane.counters import FILTERS
from netback.dataplane.peers.peer cimport Peer, frame_t, peer_t

cdef enum:
    ROUNDS = 16                  # reads in a row of which no frame was left: a flood cannot prolong a poll


cdef int receive(peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil:
    cdef peer_t *inner = filter_enter(peer)
    cdef int got = inner.receive(inner, arena, largest, frames, count)
    peer.more = inner.more
    filter_leave(peer)
    return got


cdef void release(peer_t *peer) noexcept nogil:
    cdef peer_t *inner = filter_enter(peer)
    inner.release(inner)
    filter_leave(peer)


cdef int send(peer_t *peer, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil:
    cdef peer_t *inner = filter_enter(peer)
    cdef int done = inner.send(inner, vectors, first, count, refused)
    filter_leave(peer)
    return done


cdef void check(peer_t *peer) noexcept nogil:
    cdef peer_t *inner = filter_enter(peer)
    inner.check(inner)
    filter_leave(peer)


cdef void wake(peer_t *peer) noexcept nogil:
    cdef peer_t *inner = filter_enter(peer)
    inner.wake(inner)
    filter_leave(peer)


cdef bint settle(peer_t *peer, bint end) noexcept nogil:
    cdef peer_t *inner = filter_enter(peer)
    cdef bint left = inner.settle(inner, end)
    filter_leave(peer)
    return left


cdef void tick(peer_t *peer) noexcept nogil:
    cdef peer_t *inner = filter_enter(peer)
    inner.tick(inner)
    filter_leave(peer)


cdef int filter_receive(
        peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count, admit_t admit) noexcept nogil:
    """A read of which nothing is left is followed by another one into the same memory: an edge that announced its
    frames does not come again, and neither does the caller after a read of none. Entries that are one frame (a
    NullPeer's) stay one: it is judged, and changed, once.
    """
    cdef peer_t *inner = filter_enter(peer)
    cdef frame_t judged
    cdef uint8_t *data
    cdef int i, verdict = ADMITTED, kept = 0, got = 0
    for _round in range(ROUNDS):
        got = inner.receive(inner, arena, largest, frames, count)
        data = NULL
        for i in range(got):
            if frames[i].data != data:
                data = frames[i].data
                judged = frames[i]
                verdict = admit(<filter_t *>peer, &judged)
            if verdict == ADMITTED:
                frames[kept] = judged
                kept += 1
            else:
                (<filter_t *>peer).counts[verdict] += 1
        if kept or got < count:
            break
    peer.more = inner.more or (got == count and kept < count)
    filter_leave(peer)
    return kept if got >= 0 else got


cdef const uint8_t *gather_head(
        const iovec *vectors, uint32_t count, uint32_t header, uint8_t *buffer, uint32_t *have) noexcept nogil:
    """In place if the frame is in one piece, as a backend's are."""
    cdef uint32_t i, size, used = 0
    cdef size_t skip = header
    if count == 1:
        have[0] = <uint32_t>vectors[0].iov_len - header
        return <const uint8_t *>vectors[0].iov_base + header
    for i in range(count):
        if vectors[i].iov_len > skip:
            size = <uint32_t>min(vectors[i].iov_len - skip, <size_t>(HEAD_BYTES - used))
            memcpy(buffer + used, <const uint8_t *>vectors[i].iov_base + skip, size)
            used += size
        skip -= min(skip, vectors[i].iov_len)
    have[0] = used
    return buffer


cdef class FilterPeer(Peer):
    """A filter around `inner`, which it keeps alive. Make one of the kinds in net/filters.py."""

    cdef void wrap(self, filter_t *filter, Peer inner, str kind, dict options):
        """For the kind's own constructor: `filter` is in it, `options` are its arguments beside `inner`."""
        cdef peer_t *peer = &filter.peer
        self.filter = filter
        self.peer = peer
        self.inner = inner
        self.names = tuple(FILTERS[kind])
        self.options = options
        filter.inner = inner.peer
        peer.fd = inner.peer.fd
        peer.condition = inner.peer.condition
        peer.receive = receive
        peer.send = send
        if inner.peer.release != NULL:
            peer.release = release
        if inner.peer.check != NULL:
            peer.check = check
        if inner.peer.wake != NULL:
            peer.wake = wake
        if inner.peer.settle != NULL:
            peer.settle = settle
        if inner.peer.tick != NULL:
            peer.tick = tick
        filter_leave(peer)

    @property
    def counters(self) -> dict[str, int]:
        """What this filter counted, by the names in dataplane/counters.py."""
        return {name: self.filter.counts[at] for at, name in enumerate(self.names)}

    def duplicate(self, int fd) -> Peer:
        """The same filter around a duplicate of the inner peer; it counts for itself."""
        return type(self)(self.inner.duplicate(fd), **self.options)
