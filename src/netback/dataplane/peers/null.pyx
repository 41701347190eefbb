# SPDX-License-Identifier: Apache-2.0
"""A peer without a descriptor: it accepts every frame, and returns the same frame over and over, or none."""
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from netback.dataplane.peers.peer cimport (
    BURST_FRAMES, FRAME_BYTES, FRAME_HEADROOM, VNET_HDR, Peer, frame_t, peer_t,
)
from netback.dataplane.sockets cimport iovec

cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef enum:
    MIN_TEMPLATE = VNET_HDR + 14
    TEMPLATE_HEAD = 512


cdef struct null_peer:           # `peer` is first: a peer_t * of this kind is a null_peer *
    peer_t peer
    const uint8_t *template      # a virtio_net_hdr and a frame; NULL: it returns none
    uint32_t length              # bytes of both
    uint8_t *frame               # where every reader gets the frame


cdef int receive(peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil:
    """Every entry aliases one frame: a change to one changes all, until `release`."""
    cdef null_peer *own = <null_peer *>peer
    cdef int i
    if own.template == NULL:
        return 0
    for i in range(count):
        frames[i].data = own.frame
        frames[i].length = own.length - VNET_HDR
    return count


cdef void release(peer_t *peer) noexcept nogil:
    """Restore the headers: a caller may have completed a checksum in them."""
    cdef null_peer *own = <null_peer *>peer
    if own.template != NULL:
        memcpy(own.frame - VNET_HDR, own.template, min(own.length, <uint32_t>TEMPLATE_HEAD))


cdef int send(peer_t *peer, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil:
    return count


cdef class NullPeer(Peer):
    """Accepts every frame; returns `template` (a virtio_net_hdr and a frame; ValueError: wrong size) on every read, or
    nothing.
    """

    cdef null_peer own
    cdef bytes template

    def __cinit__(self, *, uint32_t caps=0, bytes template=b"", object owner=None):
        self.peer = &self.own.peer
        self.owner = owner
        self.peer.fd = -1
        self.peer.caps = caps
        self.peer.frames_per_read = BURST_FRAMES
        self.peer.receive = receive
        self.peer.release = release
        self.peer.send = send
        if template:
            if not MIN_TEMPLATE <= len(template) <= FRAME_BYTES:
                raise ValueError("a template is a virtio_net_hdr and a frame")
            self.template = template
            self.own.template = <const uint8_t *><const char *>self.template
            self.own.length = len(template)
            self.own.frame = <uint8_t *>aligned_alloc(64, FRAME_HEADROOM + FRAME_BYTES)
            if self.own.frame == NULL:
                raise MemoryError
            self.own.frame += FRAME_HEADROOM
            memcpy(self.own.frame - VNET_HDR, self.own.template, len(template))

    def duplicate(self, int fd) -> Peer:
        """Another one that returns nothing; there is no descriptor."""
        return NullPeer(caps=self.peer.caps)

    def __dealloc__(self):
        if self.own.frame != NULL:
            free(self.own.frame - FRAME_HEADROOM)
