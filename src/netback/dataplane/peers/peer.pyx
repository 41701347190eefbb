# SPDX-License-Identifier: Apache-2.0
"""Moves frames between private memory and a peer's descriptor, as many per system call as the peer allows.

Knows descriptors and virtio_net_hdr, nothing of rings or guests.
"""
import os

from libc.errno cimport EAGAIN, EBADFD, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset
from posix.unistd cimport read

from netback.dataplane.abi cimport VIRTIO_NET_HDR_F_NEEDS_CSUM
from netback.dataplane.sockets cimport (
    AUX_BYTES, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_TRUNC, iovec, mmsghdr, recvmmsg, sendmmsg, stripped_tag, writev,
)

cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef enum:
    TEMPLATE_HEAD = 512


cdef void restore_tag(frame_t *frame, uint32_t tag, bint header) noexcept nogil:
    """Put the VLAN tag back where it was on the wire; what a `header` before the frame points at moved by its bytes."""
    cdef virtio_net_hdr *hdr
    memmove(frame.data - VNET_HDR - VLAN_TAG, frame.data - VNET_HDR, VNET_HDR + 12)
    frame.data -= VLAN_TAG
    frame.length += VLAN_TAG
    frame.data[12] = tag >> 24
    frame.data[13] = (tag >> 16) & 0xff
    frame.data[14] = (tag >> 8) & 0xff
    frame.data[15] = tag & 0xff
    hdr = vnet_header(frame)
    if header and hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        hdr.csum_start += VLAN_TAG
    if header and hdr.hdr_len:
        hdr.hdr_len += VLAN_TAG


cdef int recv_into(peer_t *peer, mmsghdr *messages, uint8_t *aux, int count) noexcept nogil:
    """Receive messages whose vectors are set, with AUX_BYTES of `aux` for each: how many, -1 where the peer refuses."""
    cdef int i, got
    if peer.auxdata:
        for i in range(count):
            messages[i].msg_hdr.msg_control = aux + i * AUX_BYTES
            messages[i].msg_hdr.msg_controllen = AUX_BYTES
    got = recvmmsg(peer.fd, messages, count, MSG_DONTWAIT, NULL)
    # EINVAL: the kernel dropped a GSO frame that virtio_net_hdr cannot express; ENETDOWN: the link went down
    return got if got >= 0 else 0 if errno == EAGAIN or errno == EINTR else -1


cdef int recv_messages(peer_t *peer, uint8_t *arena, frame_t *frames, int count) noexcept nogil:
    cdef mmsghdr messages[BURST_FRAMES]
    cdef iovec vectors[BURST_FRAMES]
    cdef uint8_t aux[BURST_FRAMES * AUX_BYTES]
    cdef int i, got, kept = 0
    cdef uint32_t tag
    memset(messages, 0, count * sizeof(mmsghdr))
    for i in range(count):
        vectors[i].iov_base = arena + <size_t>i * FRAME_STRIDE + FRAME_HEADROOM - peer.header
        vectors[i].iov_len = FRAME_BYTES - VLAN_TAG + peer.header
        messages[i].msg_hdr.msg_iov = &vectors[i]
        messages[i].msg_hdr.msg_iovlen = 1
    got = recv_into(peer, messages, aux, count)
    if got < 0:
        return got
    for i in range(got):
        if messages[i].msg_len == 0 and not peer.auxdata:
            peer.closed = True           # a SEQPACKET's end of file
            break
        if messages[i].msg_len <= <unsigned>peer.header or messages[i].msg_hdr.msg_flags & MSG_TRUNC:
            continue
        frames[kept].data = <uint8_t *>vectors[i].iov_base + peer.header
        frames[kept].length = messages[i].msg_len - peer.header
        if not peer.header:
            memset(vnet_header(&frames[kept]), 0, VNET_HDR)
        tag = stripped_tag(&messages[i].msg_hdr) if peer.auxdata else 0
        if tag and frames[kept].length >= 12:
            restore_tag(&frames[kept], tag, peer.header != 0)
        kept += 1
    return kept


cdef int recv_tap(peer_t *peer, uint8_t *arena, frame_t *frames, int count) noexcept nogil:
    cdef int i
    cdef ssize_t got
    cdef uint8_t *data
    for i in range(count):
        data = arena + <size_t>i * FRAME_STRIDE + FRAME_HEADROOM
        got = read(peer.fd, data - peer.header, FRAME_BYTES + peer.header)
        if got <= peer.header:
            peer.closed = got < 0 and errno == EBADFD    # the tap was removed: poll would say so for ever
            return i if i or got >= 0 or errno == EAGAIN or errno == EINTR else -1
        frames[i].data = data
        frames[i].length = got - peer.header
        if not peer.header:
            memset(vnet_header(&frames[i]), 0, VNET_HDR)
    return count


cdef int recv_template(peer_t *peer, frame_t *frames, int count) noexcept nogil:
    cdef int i
    if peer.template == NULL:
        return 0
    for i in range(count):               # all of them are one: who takes a frame copies it before it could change
        frames[i].data = peer.handed_out
        frames[i].length = peer.template_length - VNET_HDR
    # who had it last may have completed its checksum: headers are all that could have changed
    memcpy(peer.handed_out - VNET_HDR, peer.template, min(peer.template_length, <uint32_t>TEMPLATE_HEAD))
    return count


cdef int peer_recv(peer_t *peer, uint8_t *arena, frame_t *frames, int count) noexcept nogil:
    """Read up to `count` frames into the arena: how many came, 0 where none waits, -1 where the peer refuses."""
    if peer.kind == PEER_SOCKET:
        return recv_messages(peer, arena, frames, count)
    if peer.kind == PEER_TAP:
        return recv_tap(peer, arena, frames, count)
    return recv_template(peer, frames, count)


cdef int send_messages(
        peer_t *peer, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil:
    cdef mmsghdr messages[BURST_FRAMES]
    cdef int i, done = 0, sent
    memset(messages, 0, count * sizeof(mmsghdr))
    for i in range(count):
        messages[i].msg_hdr.msg_iov = &vectors[first[i]]
        messages[i].msg_hdr.msg_iovlen = first[i + 1] - first[i]
    while done < count:
        sent = sendmmsg(peer.fd, messages + done, count - done, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent > 0:
            done += sent
        elif peer_is_full(peer):
            return done
        elif errno != EINTR:
            refused[0] += 1              # ENETDOWN, EMSGSIZE, EPIPE: this frame is lost as on a wire
            done += 1
    return done


cdef int send_tap(peer_t *peer, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil:
    cdef int i = 0
    while i < count:
        if writev(peer.fd, &vectors[first[i]], first[i + 1] - first[i]) < 0:
            if peer_is_full(peer):
                return i
            if errno == EINTR:
                continue
            refused[0] += 1              # EINVAL, EIO: the link is down (rules 3)
        i += 1
    return count


cdef int send_vectors(
        peer_t *peer, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil:
    """Hand over up to BURST_FRAMES frames in order, the i-th in vectors first[i] to first[i + 1] - 1: how many the peer
    took or refused for good; fewer than count where it is full.
    """
    if peer.kind == PEER_SOCKET:
        return send_messages(peer, vectors, first, count, refused)
    if peer.kind == PEER_TAP:
        return send_tap(peer, vectors, first, count, refused)
    return count


cdef int peer_send(peer_t *peer, frame_t *frames, int count, int *refused) noexcept nogil:
    """The same for frames that lie in one piece each."""
    cdef iovec vectors[BURST_FRAMES]
    cdef uint32_t first[BURST_FRAMES + 1]
    cdef int i
    for i in range(count):
        vectors[i].iov_base = frames[i].data - peer.header
        vectors[i].iov_len = frames[i].length + peer.header
        first[i] = i
    first[count] = count
    return send_vectors(peer, vectors, first, count, refused)


cdef class Peer:
    """What a queue is joined to: a descriptor, its frame format and the offloads it takes.

    `fd` must be non-blocking; `owner` is kept alive as long as this. `kind` is "tap", "socket" or "null"; `caps` are
    CAN_* bits.
    A null peer gives `template` (a virtio_net_hdr and a frame) as fast as it is read.
    """

    def __cinit__(self, str kind, int fd=-1, *, bint vnet_hdr=False, bint auxdata=False, uint32_t caps=0,
                  bytes template=b"", object owner=None):
        self.peer.kind = {"null": PEER_NULL, "tap": PEER_TAP, "socket": PEER_SOCKET}[kind]
        self.peer.fd = fd
        self.peer.header = VNET_HDR if vnet_hdr else 0
        self.peer.auxdata = auxdata
        self.peer.caps = caps
        self.owner = owner
        if template:
            if not VNET_HDR + 14 <= len(template) <= FRAME_BYTES:
                raise ValueError("a template is a virtio_net_hdr and a frame")
            self.template = template
            self.peer.template = <const uint8_t *><const char *>self.template
            self.peer.template_length = len(template)
            self.memory = <uint8_t *>aligned_alloc(64, FRAME_HEADROOM + FRAME_BYTES)
            if self.memory == NULL:
                raise MemoryError
            self.peer.handed_out = self.memory + FRAME_HEADROOM
            memcpy(self.peer.handed_out - VNET_HDR, self.peer.template, len(template))

    def __dealloc__(self):
        free(self.memory)

    @property
    def fd(self) -> int:
        return self.peer.fd

    @property
    def caps(self) -> int:
        """CAN_* bits: what it takes without our help."""
        return self.peer.caps

    @property
    def blocked(self) -> bool:
        """It took no more: who sends waits until the descriptor is writable."""
        return bool(self.peer.blocked)

    @property
    def closed(self) -> bool:
        """Its far end is gone."""
        return bool(self.peer.closed)

    def send(self, frames: list[bytes]) -> tuple[int, int]:
        """Hand over frames, each led by its virtio_net_hdr: (how many it is done with, how many of those it refused).

        For a peer that no worker serves: control code, tests, networks in Python.
        """
        cdef frame_t native[BURST_FRAMES]
        cdef int refused = 0, done, i, count = min(len(frames), BURST_FRAMES)
        copies = [bytearray(FRAME_HEADROOM) + frame for frame in frames[:count]]
        for i in range(count):
            if len(frames[i]) <= VNET_HDR or len(frames[i]) > FRAME_BYTES:
                raise ValueError("a frame is led by its virtio_net_hdr and fits a buffer")
            native[i].data = <uint8_t *><char *>copies[i] + FRAME_HEADROOM + VNET_HDR
            native[i].length = len(frames[i]) - VNET_HDR
        self.peer.blocked = self.peer.congested = False
        with nogil:
            done = peer_send(&self.peer, native, count, &refused)
        return done, refused

    def recv(self, int count=BURST_FRAMES) -> list[bytes]:
        """Up to `count` frames that wait, each led by its virtio_net_hdr; OSError where the peer refuses."""
        cdef frame_t native[BURST_FRAMES]
        cdef int got, i
        count = min(count, BURST_FRAMES)
        cdef uint8_t *arena = <uint8_t *>malloc(<size_t>count * FRAME_STRIDE)
        if arena == NULL:
            raise MemoryError
        try:
            with nogil:
                got = peer_recv(&self.peer, arena, native, count)
            if got < 0:
                raise OSError(errno, os.strerror(errno))
            return [(<char *>native[i].data - VNET_HDR)[:native[i].length + VNET_HDR] for i in range(got)]
        finally:
            free(arena)
