# SPDX-License-Identifier: Apache-2.0
"""A filter that sends copies of a vif's frames to another network, of what passes there: TX once the network behind has
taken it, RX as it is read.

The other network is never waited for: a copy that it does not take at once is lost, and counted. What it cannot do with
a frame is done here, on a copy: a blank checksum is completed, a GSO frame segmented.
"""
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from netback.dataplane.abi cimport virtio_net_hdr
from netback.dataplane.checksum cimport complete_checksum
from netback.dataplane.clock cimport now_ns
from netback.dataplane.extras cimport frame_meta
from netback.dataplane.offload cimport OFFLOAD_COMPLETE, OFFLOAD_DROP, OFFLOAD_PASS, virtio_to_netif
from netback.dataplane.peers.filter cimport FilterPeer, filter_enter, filter_leave, filter_t
from netback.dataplane.peers.peer cimport (
    FRAME_BYTES, FRAME_HEADROOM, LARGE_BYTES, VNET_HDR, Peer, earliest, frame_t, frame_vectors, peer_t, vnet_header,
)
from netback.dataplane.segment cimport segments_begin, segments_next, segments_t
from netback.dataplane.sockets cimport iovec

cdef enum:                       # the counters of dataplane/counters.py, in this order
    TX_COPIED, TX_MISSED, RX_COPIED, RX_MISSED

cdef enum:
    RETRY = 1000 * 1000          # ns


cdef struct mirror:              # `filter` is first: a peer_t * of this kind is a mirror *
    filter_t filter
    peer_t *other
    bint tx
    bint rx
    uint8_t *whole               # a frame in one piece, that may be changed
    uint8_t *segment


cdef bint send_copy(mirror *own, frame_t *frame) noexcept nogil:
    """Whether the other network took a frame that it can take as it is."""
    cdef iovec vectors[1]
    cdef uint32_t first[2]
    cdef int refused = 0
    frame_vectors(own.other, frame, 1, vectors, first)
    return own.other.send(own.other, vectors, first, 1, &refused) == 1 and refused == 0


cdef bint send_segments(mirror *own, const frame_t *frame) noexcept nogil:
    """Whether it took every segment of a frame."""
    cdef segments_t it
    cdef frame_meta meta
    cdef frame_t segment
    cdef bint taken = True
    if segments_begin(&it, frame.data, frame.length, vnet_header(<frame_t *>frame), False) < 0:
        return False
    segment.data = own.segment + FRAME_HEADROOM
    segment.length = segments_next(&it, frame.data, segment.data, FRAME_BYTES, &meta)
    while segment.length:
        memset(vnet_header(&segment), 0, VNET_HDR)
        taken &= send_copy(own, &segment)
        segment.length = segments_next(&it, frame.data, segment.data, FRAME_BYTES, &meta)
    return taken


cdef bint copy_whole(mirror *own, frame_t *frame) noexcept nogil:
    """Whether the other network took a frame that may be changed."""
    cdef frame_meta meta
    cdef int verdict = virtio_to_netif(
        frame.data, frame.length, &frame.length, vnet_header(frame), own.other.caps, &meta)
    if verdict == OFFLOAD_DROP:
        return False
    if verdict == OFFLOAD_COMPLETE:
        complete_checksum(frame.data, frame.length, vnet_header(frame))
        memset(vnet_header(frame), 0, VNET_HDR)
    elif verdict != OFFLOAD_PASS:
        return send_segments(own, frame)
    return send_copy(own, frame)


cdef inline void count_copy(mirror *own, int copied, bint taken) noexcept nogil:
    """`copied` is its counter, after which the one of the lost copies comes."""
    own.filter.counts[copied if taken else copied + 1] += 1


cdef bint copy_sent(mirror *own, const iovec *vectors, uint32_t count, uint32_t header) noexcept nogil:
    cdef frame_t frame
    cdef uint8_t *at = own.whole + FRAME_HEADROOM - header
    cdef size_t length = 0
    cdef uint32_t i
    for i in range(count):
        length += vectors[i].iov_len
    if length > header + FRAME_BYTES:
        return False
    frame.data = own.whole + FRAME_HEADROOM
    frame.length = <uint32_t>(length - header)
    memset(vnet_header(&frame), 0, VNET_HDR)
    for i in range(count):
        memcpy(at, vectors[i].iov_base, vectors[i].iov_len)
        at += vectors[i].iov_len
    return copy_whole(own, &frame)


cdef bint copy_received(mirror *own, frame_t *received) noexcept nogil:
    """A frame without an offload goes as it is."""
    cdef virtio_net_hdr *hdr = vnet_header(received)
    cdef frame_t frame = received[0]
    if hdr.flags or hdr.gso_type:
        frame.data = own.whole + FRAME_HEADROOM
        memcpy(vnet_header(&frame), hdr, VNET_HDR + received.length)
    return copy_whole(own, &frame)


cdef void leave(mirror *own) noexcept nogil:
    """filter_leave; what the other network did not take at once of a copy is sent on in a moment."""
    own.filter.due = earliest(own.other.due, now_ns() + RETRY if own.other.unsent else 0)
    filter_leave(&own.filter.peer)


cdef void tick(peer_t *peer) noexcept nogil:
    cdef mirror *own = <mirror *>peer
    cdef peer_t *inner = filter_enter(peer)
    if inner.tick != NULL:
        inner.tick(inner)
    if own.other.wake != NULL:
        own.other.wake(own.other)
    if own.other.tick != NULL:
        own.other.tick(own.other)
    leave(own)


cdef int send(peer_t *peer, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil:
    cdef mirror *own = <mirror *>peer
    cdef peer_t *inner = filter_enter(peer)
    cdef int i, done = inner.send(inner, vectors, first, count, refused)
    if own.tx:
        for i in range(done):
            count_copy(own, TX_COPIED, copy_sent(own, &vectors[first[i]], first[i + 1] - first[i], inner.header))
    leave(own)
    return done


cdef int receive(peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil:
    cdef mirror *own = <mirror *>peer
    cdef peer_t *inner = filter_enter(peer)
    cdef int i, got = inner.receive(inner, arena, largest, frames, count)
    if own.rx:
        for i in range(got):
            count_copy(own, RX_COPIED, copy_received(own, &frames[i]))
    peer.more = inner.more
    leave(own)
    return got


cdef class MirrorPeer(FilterPeer):
    """Copies frames to `other`, which this link's thread alone uses: TX, RX or both. `keep` lives as long."""

    cdef mirror own

    def __cinit__(self, Peer inner, *, Peer other, bint tx=True, bint rx=True, object keep=None):
        self.wrap(&self.own.filter, inner, "mirror", {"other": other, "tx": tx, "rx": rx, "keep": keep})
        self.own.other = other.peer
        self.own.tx = tx
        self.own.rx = rx
        self.own.whole = <uint8_t *>malloc(FRAME_HEADROOM + LARGE_BYTES)
        self.own.segment = <uint8_t *>malloc(FRAME_HEADROOM + FRAME_BYTES)
        if self.own.whole == NULL or self.own.segment == NULL:
            raise MemoryError
        self.peer.send = send
        self.peer.receive = receive
        self.peer.tick = tick

    def __dealloc__(self):
        free(self.own.whole)
        free(self.own.segment)
