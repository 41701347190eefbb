# SPDX-License-Identifier: Apache-2.0
"""A filter whose frames come from one peer and go to another: of a direction that is redirected, to or from another
network's, of the other one the inner peer's.

The worker waits for one descriptor, the reader's. Room at a writer that is another peer is not announced, so that one
is tried again in a moment, and loses nothing. What it took in part (peer_t.unsent) is sent on then, too.
"""
from libc.stdint cimport uint8_t, uint32_t

from netback.dataplane.clock cimport now_ns
from netback.dataplane.peers.filter cimport FilterPeer, filter_t
from netback.dataplane.peers.peer cimport PEER_FULL, PEER_UNANNOUNCED, Peer, earliest, frame_t, peer_t
from netback.dataplane.sockets cimport iovec

cdef enum:
    RETRY = 1000 * 1000          # ns


cdef struct redirect:            # `filter` is first: a peer_t * of this kind is a redirect *
    filter_t filter
    peer_t *reader
    peer_t *writer


cdef inline redirect *enter(peer_t *peer) noexcept nogil:
    cdef redirect *own = <redirect *>peer
    own.reader.condition = peer.condition
    own.reader.unread |= peer.unread
    peer.unread = False
    return own


cdef void leave(redirect *own) noexcept nogil:
    """As filter_leave, from two peers."""
    cdef peer_t *peer = &own.filter.peer
    cdef peer_t *reader = own.reader
    cdef peer_t *writer = own.writer
    peer.bell = reader.bell
    peer.by_bell = reader.by_bell
    peer.due = reader.due
    peer.frames_per_read = reader.frames_per_read
    peer.condition = reader.condition
    peer.more = reader.more
    peer.short_frames += reader.short_frames
    peer.truncated += reader.truncated
    reader.short_frames = reader.truncated = 0
    peer.header = writer.header
    peer.caps = writer.caps
    peer.blocked = writer.blocked
    peer.unsent = reader.unsent
    if writer == reader:
        return
    if peer.blocked == PEER_FULL:
        peer.blocked = PEER_UNANNOUNCED
    peer.due = earliest(peer.due, writer.due)
    if writer.unsent:
        peer.due = earliest(peer.due, now_ns() + RETRY)


cdef int receive(peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil:
    cdef redirect *own = enter(peer)
    cdef int got = own.reader.receive(own.reader, arena, largest, frames, count)
    leave(own)
    return got


cdef void release(peer_t *peer) noexcept nogil:
    cdef redirect *own = enter(peer)
    own.reader.release(own.reader)
    leave(own)


cdef int send(peer_t *peer, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil:
    cdef redirect *own = enter(peer)
    cdef int done = own.writer.send(own.writer, vectors, first, count, refused)
    leave(own)
    return done


cdef void check(peer_t *peer) noexcept nogil:
    cdef redirect *own = enter(peer)
    own.reader.check(own.reader)
    leave(own)


cdef void wake(peer_t *peer) noexcept nogil:
    cdef redirect *own = enter(peer)
    own.reader.wake(own.reader)
    leave(own)


cdef void tick(peer_t *peer) noexcept nogil:
    cdef redirect *own = enter(peer)
    if own.reader.tick != NULL:
        own.reader.tick(own.reader)
    if own.writer != own.reader and own.writer.wake != NULL:
        own.writer.wake(own.writer)
    if own.writer != own.reader and own.writer.tick != NULL:
        own.writer.tick(own.writer)
    leave(own)


cdef bint settle(peer_t *peer, bint end) noexcept nogil:
    cdef redirect *own = enter(peer)
    cdef bint left = False
    if own.writer.settle != NULL:
        left = own.writer.settle(own.writer, end)
    if own.reader != own.writer and own.reader.settle != NULL:
        left |= own.reader.settle(own.reader, end)
    leave(own)
    return left


cdef class RedirectPeer(FilterPeer):
    """Frames come from `reader` and go to `writer`, None for `inner`; this link's thread alone uses both.

    `keep` lives as long.
    """

    cdef redirect own
    cdef Peer reader
    cdef Peer writer

    def __cinit__(self, Peer inner, *, Peer reader=None, Peer writer=None, object keep=None):
        options = {"reader": reader, "writer": writer, "keep": keep}
        self.wrap(&self.own.filter, inner, "redirect", options)
        self.reader = inner if reader is None else reader
        self.writer = inner if writer is None else writer
        self.own.reader = self.reader.peer
        self.own.writer = self.writer.peer
        self.peer.fd = self.own.reader.fd
        self.peer.receive = receive
        self.peer.send = send
        self.peer.release = NULL
        self.peer.check = NULL
        self.peer.wake = NULL
        if self.own.reader.release != NULL:
            self.peer.release = release
        if self.own.reader.check != NULL:
            self.peer.check = check
        if self.own.reader.wake != NULL:
            self.peer.wake = wake
        self.peer.tick = tick
        self.peer.settle = settle
        leave(&self.own)
