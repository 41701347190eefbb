# SPDX-License-Identifier: Apache-2.0
"""A tap: each read and write moves one frame."""
from weakref import WeakSet

from libc.errno cimport EAGAIN, EBADFD, EINTR, errno
from libc.stdint cimport uint32_t
from posix.unistd cimport read as read_file

from netback.dataplane.peers.peer cimport (
    FRAME_BYTES, PEER_CLOSED, PEER_TAKES, VLAN_TAG, VNET_HDR, Peer, peer_t, received_t, receive_in_arena,
    takes_no_more,
)
from netback.dataplane.sockets cimport iovec, readv, writev


cdef inline void note_error(peer_t *peer) noexcept nogil:
    """EBADFD: the tap was removed, and poll reports an error from now on."""
    if errno == EBADFD:
        peer.condition = PEER_CLOSED


cdef int read(peer_t *peer, iovec *vectors, int per_frame, received_t *received, int count) noexcept nogil:
    cdef ssize_t got
    cdef int i
    for i in range(count):
        if per_frame == 1:
            got = read_file(peer.fd, vectors[i].iov_base, vectors[i].iov_len)
        else:
            got = readv(peer.fd, &vectors[i * per_frame], per_frame)
        if got < 0:
            note_error(peer)
            return i if i or errno == EAGAIN or errno == EINTR else -1
        received[i].tag = 0
        received[i].length = <uint32_t>got - peer.header if got > peer.header else 0
        peer.short_frames += got <= peer.header
        if received[i].length >= FRAME_BYTES - VLAN_TAG:      # Linux silently truncates longer frames
            received[i].length = 0
            peer.truncated += 1
    return count


cdef int send(peer_t *peer, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil:
    cdef int i = 0
    peer.blocked = PEER_TAKES
    while i < count:
        if writev(peer.fd, &vectors[first[i]], first[i + 1] - first[i]) < 0:
            if takes_no_more(peer):
                return i
            if errno == EINTR:
                continue
            note_error(peer)
            refused[0] += 1              # EIO: the link is down; EINVAL: it cannot accept such a frame
        i += 1
    return count


cdef void check(peer_t *peer) noexcept nogil:
    """A tap's descriptor reports an error only if the tap was removed."""
    peer.condition = PEER_CLOSED


cdef class TapPeer(Peer):
    """A tap by its non-blocking descriptor; `vnet_hdr`: a virtio_net_hdr of 10 bytes precedes each frame."""

    cdef peer_t own
    cdef object duplicates
    cdef object __weakref__

    def __cinit__(self, int fd, *, bint vnet_hdr=False, uint32_t caps=0, object owner=None):
        self.duplicates = WeakSet()
        self.peer = &self.own
        self.owner = owner
        self.own.fd = fd
        self.own.header = VNET_HDR if vnet_hdr else 0
        self.own.caps = caps
        self.own.frames_per_read = 1
        self.own.receive = receive_in_arena
        self.own.read = read
        self.own.send = send
        self.own.check = check

    def duplicate(self, int fd) -> Peer:
        """A peer of the same tap on a duplicate of its descriptor, which the caller closes."""
        copy = TapPeer(fd, vnet_hdr=self.own.header != 0, caps=self.own.caps, owner=self)
        self.duplicates.add(copy)
        return copy

    def accept(self, uint32_t caps) -> None:
        """Change `caps`, of this peer and of its duplicates, while workers serve them: a frame that is on its way goes
        as it was or as it will be.
        """
        self.own.caps = caps
        for copy in self.duplicates:
            copy.accept(caps)
