# SPDX-License-Identifier: Apache-2.0
"""A socket with one frame per message: AF_PACKET, and UNIX sockets of kind SEQPACKET and DGRAM.

One system call moves many messages. AF_PACKET returns the VLAN tag separately; an empty message on a SEQPACKET socket
is its end.
"""
from libc.errno cimport EAGAIN, ECONNREFUSED, EINTR, ENETDOWN, ENODEV, ENXIO, EPIPE, errno
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset

from netback.dataplane.peers.peer cimport (
    BURST_FRAMES, FRAME_BYTES, LARGE_BYTES, PEER_CLOSED, PEER_DOWN, PEER_TAKES, VNET_HDR, Peer, frame_t, peer_t,
    peer_works, received_t, receive_in_arena, takes_no_more,
)
from netback.dataplane.sockets cimport (
    AUX_BYTES, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_TRUNC, iovec, mmsghdr, pending_error, recvmmsg, sendmmsg, stripped_tag,
)

cdef enum:
    LARGE_READS = 256            # reads that follow a frame longer than FRAME_BYTES: BIG TCP comes in flows


cdef struct socket_peer:         # `peer` is first: a peer_t * of a socket is a socket_peer *
    peer_t peer
    bint auxdata                 # AF_PACKET: VLAN tags come separately, and an empty message is not the end
    uint32_t large_reads         # this many more reads return one frame each, of up to LARGE_BYTES


cdef inline void note_error(peer_t *peer, int error) noexcept nogil:
    if error == ENETDOWN or error == ENXIO or error == ENODEV or error == ECONNREFUSED:
        peer.condition = PEER_DOWN       # the link, or the receiver, is gone: it may come back
    elif error == EPIPE:
        peer.condition = PEER_CLOSED


cdef int read(peer_t *peer, iovec *vectors, int per_frame, received_t *received, int count) noexcept nogil:
    cdef mmsghdr messages[BURST_FRAMES]
    cdef uint8_t aux[BURST_FRAMES * AUX_BYTES]
    cdef socket_peer *own = <socket_peer *>peer
    cdef int i, got
    memset(messages, 0, count * sizeof(mmsghdr))
    for i in range(count):
        messages[i].msg_hdr.msg_iov = &vectors[i * per_frame]
        messages[i].msg_hdr.msg_iovlen = per_frame
        if own.auxdata:
            messages[i].msg_hdr.msg_control = aux + i * AUX_BYTES
            messages[i].msg_hdr.msg_controllen = AUX_BYTES
    got = recvmmsg(peer.fd, messages, count, MSG_DONTWAIT, NULL)
    if got < 0:                          # EINVAL: the kernel dropped GSO that virtio_net_hdr cannot express
        note_error(peer, errno)
        return 0 if errno == EAGAIN or errno == EINTR else -1
    peer_works(peer)
    for i in range(got):
        if messages[i].msg_len == 0 and not own.auxdata:
            peer.condition = PEER_CLOSED
            return i
        set_length(own, &messages[i], &received[i])
    return got


cdef inline void set_length(socket_peer *own, mmsghdr *message, received_t *received) noexcept nogil:
    """Convert a message to a frame; length 0 if it is not one, which is counted."""
    received.tag = stripped_tag(&message.msg_hdr) if own.auxdata else 0
    received.length = 0
    if message.msg_hdr.msg_flags & MSG_TRUNC:
        own.peer.truncated += 1
        own.large_reads = LARGE_READS
    elif message.msg_len <= <unsigned>own.peer.header:
        own.peer.short_frames += 1
    else:
        received.length = message.msg_len - own.peer.header
        if received.length > FRAME_BYTES:
            own.large_reads = LARGE_READS


cdef int receive(peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil:
    """Read many frames of ordinary length, or one of any length for LARGE_READS after the last long one."""
    cdef socket_peer *own = <socket_peer *>peer
    if own.large_reads and largest >= LARGE_BYTES:
        own.large_reads -= 1
        return receive_in_arena(peer, arena, LARGE_BYTES, frames, 1)
    return receive_in_arena(peer, arena, FRAME_BYTES, frames, count)


cdef int send(peer_t *peer, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil:
    cdef mmsghdr messages[BURST_FRAMES]
    cdef int i, done = 0, sent
    peer.blocked = PEER_TAKES
    memset(messages, 0, count * sizeof(mmsghdr))
    for i in range(count):
        messages[i].msg_hdr.msg_iov = &vectors[first[i]]
        messages[i].msg_hdr.msg_iovlen = first[i + 1] - first[i]
    while done < count:
        sent = sendmmsg(peer.fd, messages + done, count - done, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent > 0:
            peer_works(peer)
            done += sent
        elif takes_no_more(peer):
            return done
        elif errno != EINTR:
            note_error(peer, errno)
            refused[0] += 1              # ENETDOWN, EMSGSIZE, EPIPE: this frame is lost, as on a wire
            done += 1
    return done


cdef void check(peer_t *peer) noexcept nogil:
    """Clear the socket's error: a packet socket reports once that its link went down, a UNIX socket that its far end
    left frames unread.
    """
    note_error(peer, pending_error(peer.fd))


cdef class SocketPeer(Peer):
    """A non-blocking socket; `vnet_hdr`: a virtio_net_hdr of 10 bytes precedes each frame; `auxdata`: it is an
    AF_PACKET socket with PACKET_AUXDATA.
    """

    cdef socket_peer own

    def __cinit__(self, int fd, *, bint vnet_hdr=False, bint auxdata=False, uint32_t caps=0, object owner=None):
        self.peer = &self.own.peer
        self.owner = owner
        self.own.auxdata = auxdata
        self.peer.fd = fd
        self.peer.header = VNET_HDR if vnet_hdr else 0
        self.peer.caps = caps
        self.peer.frames_per_read = BURST_FRAMES
        self.peer.receive = receive
        self.peer.read = read
        self.peer.send = send
        self.peer.check = check

    def duplicate(self, int fd) -> Peer:
        """A peer of the same socket on a duplicate of its descriptor, which the caller closes."""
        return SocketPeer(
            fd, vnet_hdr=self.peer.header != 0, auxdata=self.own.auxdata, caps=self.peer.caps, owner=self
        )
