# SPDX-License-Identifier: Apache-2.0
"""A socket with one frame per message: AF_PACKET, UNIX sockets of kind SEQPACKET and DGRAM, UDP, and raw IP.

One system call moves many messages. AF_PACKET returns the VLAN tag separately; an empty message on a SEQPACKET socket
is its end, anywhere else it is no frame. A socket may send to an address to which it is not connected, or through
another socket: then poll does not tell when there is room.
"""
from libc.errno cimport (
    EACCES, EAGAIN, ECONNREFUSED, EHOSTUNREACH, EINTR, ENETDOWN, ENETUNREACH, ENODEV, ENOENT, ENOPROTOOPT, ENXIO, EPERM,
    EPIPE, EPROTO, errno,
)
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from netback.dataplane.peers.peer cimport (
    BURST_FRAMES, FRAME_BYTES, LARGE_BYTES, PEER_BUSY, PEER_CLOSED, PEER_DOWN, PEER_TAKES, VNET_HDR, Peer, frame_t,
    peer_t, peer_works, received_t, receive_in_arena, takes_no_more,
)
from netback.dataplane.sockets cimport (
    AUX_BYTES, IPPROTO_UDP, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_TRUNC, SOCK_SEQPACKET, SO_PROTOCOL, SO_TYPE, iovec, mmsghdr,
    pending_error, recvmmsg, sendmmsg, socket_option, stripped_tag,
)

cdef enum:
    IPPROTO_L2TP = 115           # linux/l2tp.h
    LARGE_READS = 256            # reads that follow a frame longer than FRAME_BYTES: BIG TCP comes in flows


cdef inline bint is_down(socket_peer *own, int error) noexcept nogil:
    """Whether the link, or the receiver, is gone, and may come back. A path may name no socket, or one of others."""
    if own.address_bytes and (error == ENOENT or error == EPERM or error == EACCES):
        return True
    return error == ENETDOWN or error == ENXIO or error == ENODEV or error == ECONNREFUSED


cdef inline bint is_report(socket_peer *own, int error) noexcept nogil:
    """Whether an ICMP message about an earlier frame came: udp(7) and raw(7) return it once, from whatever call is
    next.
    """
    if not own.reports:
        return False
    return error in (ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, ENOPROTOOPT, EPROTO)


cdef inline void note_error(peer_t *peer, int error) noexcept nogil:
    if is_report(<socket_peer *>peer, error):
        return
    if is_down(<socket_peer *>peer, error):
        peer.condition = PEER_DOWN
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
        return 0 if errno == EAGAIN or errno == EINTR or is_report(own, errno) else -1
    peer_works(peer)
    for i in range(got):
        if messages[i].msg_len == 0 and own.ends:
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
    cdef socket_peer *own = <socket_peer *>peer
    cdef int i, done = 0, sent
    cdef bint reported = False
    peer.blocked = PEER_TAKES
    memset(messages, 0, count * sizeof(mmsghdr))
    for i in range(count):
        messages[i].msg_hdr.msg_iov = &vectors[first[i]]
        messages[i].msg_hdr.msg_iovlen = first[i + 1] - first[i]
        if own.address_bytes:
            messages[i].msg_hdr.msg_name = own.address
            messages[i].msg_hdr.msg_namelen = own.address_bytes
    while done < count:
        sent = sendmmsg(own.send_fd, messages + done, count - done, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent > 0:
            peer_works(peer)
            done += sent
            reported = False
        elif takes_no_more(peer):
            if own.address_bytes or own.send_fd != peer.fd:
                peer.blocked = PEER_BUSY
            return done
        elif is_report(own, errno) and not reported:
            reported = True
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
    AF_PACKET socket with PACKET_AUXDATA. `address`: the struct sockaddr that it sends to, if it is not connected;
    `send_fd`: the socket that sends in its place, which `owner` keeps open. ValueError: an address that is too long.
    """

    def __cinit__(
            self, int fd, *, bint vnet_hdr=False, bint auxdata=False, uint32_t caps=0, object owner=None,
            bytes address=b"", int send_fd=-1):
        self.peer = &self.own.peer
        self.owner = owner
        self.own.auxdata = auxdata
        self.own.ends = socket_option(fd, SO_TYPE) == SOCK_SEQPACKET
        self.own.reports = socket_option(fd, SO_PROTOCOL) in (IPPROTO_UDP, IPPROTO_L2TP)
        self.own.send_fd = send_fd if send_fd >= 0 else fd
        if len(address) > MAX_ADDRESS:
            raise ValueError("an address is too long")
        memcpy(self.own.address, <const char *>address, len(address))
        self.own.address_bytes = len(address)
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
            fd, vnet_hdr=self.peer.header != 0, auxdata=self.own.auxdata, caps=self.peer.caps, owner=self,
            address=(<char *>self.own.address)[:self.own.address_bytes],
            send_fd=-1 if self.own.send_fd == self.peer.fd else self.own.send_fd,
        )
