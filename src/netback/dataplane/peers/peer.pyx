# SPDX-License-Identifier: Apache-2.0
"""The common part of all peers: frames in an arena, VLAN tags restored, and Python's access to a peer."""
import os

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memmove, memset

from netback.dataplane.abi cimport VIRTIO_NET_HDR_F_NEEDS_CSUM


cdef void restore_tag(frame_t *frame, uint32_t tag, bint header) noexcept nogil:
    """Insert a VLAN tag at its original place; the bytes that `header` points to, before the frame, move by its
    size.
    """
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


cdef int receive_in_arena(peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil:
    """`receive` for a peer that has `read`: one buffer in the arena for each frame."""
    cdef iovec vectors[BURST_FRAMES]
    cdef received_t received[BURST_FRAMES]
    cdef int i, got, kept = 0
    for i in range(count):
        vectors[i].iov_base = arena + <size_t>i * FRAME_STRIDE + FRAME_HEADROOM - peer.header
        vectors[i].iov_len = largest - VLAN_TAG + peer.header
    got = peer.read(peer, vectors, 1, received, count)
    for i in range(got):
        if received[i].length == 0:
            continue
        frames[kept].data = <uint8_t *>vectors[i].iov_base + peer.header
        frames[kept].length = received[i].length
        if not peer.header:
            memset(vnet_header(&frames[kept]), 0, VNET_HDR)
        if received[i].tag and frames[kept].length >= 12:
            restore_tag(&frames[kept], received[i].tag, peer.header != 0)
        kept += 1
    return kept if got >= 0 else got


cdef uint32_t frame_vectors(
        peer_t *peer, frame_t *frames, int count, iovec *vectors, uint32_t *first) noexcept nogil:
    """Build the arguments of `send` for frames in one piece each; returns the number of vectors."""
    cdef int i
    for i in range(count):
        vectors[i].iov_base = frames[i].data - peer.header
        vectors[i].iov_len = frames[i].length + peer.header
        first[i] = i
    first[count] = count
    return count


cdef class Peer:
    """The peer of a queue. Create a TapPeer, SocketPeer, PacketPeer, StreamPeer, VirtqueuePeer or NullPeer.

    Each takes `owner`, an object that is kept alive as long as the peer, and `caps`, CAN_* bits of the offloads that
    the network accepts.
    """

    def __init__(self, *_arguments, **_options):
        if self.peer == NULL:
            raise TypeError("make a TapPeer, SocketPeer, StreamPeer, VirtqueuePeer or NullPeer")

    @property
    def fd(self) -> int:
        """The descriptor, -1 without one."""
        return self.peer.fd

    @property
    def caps(self) -> int:
        """CAN_* bits: the offloads that the network accepts."""
        return self.peer.caps

    @property
    def blocked(self) -> bool:
        """Whether the last send accepted less than everything: the sender waits until the descriptor is writable."""
        return self.peer.blocked != PEER_TAKES

    @property
    def closed(self) -> bool:
        """Whether its far end is permanently gone: hang-up, or a removed tap."""
        return self.peer.condition == PEER_CLOSED

    @property
    def down(self) -> bool:
        """Whether the network refuses frames now: its link is down or removed."""
        return self.peer.condition == PEER_DOWN

    def send(self, frames: list[bytes]) -> tuple[int, int]:
        """Send frames, each preceded by its virtio_net_hdr; returns (how many it is done with, how many of those it
        refused).

        For a peer that no worker serves: control code, tests, networks in Python. ValueError: a frame is empty or
        longer than FRAME_BYTES.
        """
        cdef frame_t native[BURST_FRAMES]
        cdef iovec vectors[BURST_FRAMES]
        cdef uint32_t first[BURST_FRAMES + 1]
        cdef int refused = 0, done, i, count = min(len(frames), BURST_FRAMES)
        copies = [bytearray(FRAME_HEADROOM) + frame for frame in frames[:count]]
        for i in range(count):
            if len(frames[i]) <= VNET_HDR or len(frames[i]) > FRAME_BYTES:
                raise ValueError("a frame is led by its virtio_net_hdr and fits a buffer")
            native[i].data = <uint8_t *><char *>copies[i] + FRAME_HEADROOM + VNET_HDR
            native[i].length = len(frames[i]) - VNET_HDR
        frame_vectors(self.peer, native, count, vectors, first)
        with nogil:
            done = self.peer.send(self.peer, vectors, first, count, &refused)
        return done, refused

    def recv(self, int count=BURST_FRAMES) -> list[bytes]:
        """Return up to `count` pending frames, each preceded by its virtio_net_hdr. OSError: the peer refuses."""
        cdef frame_t native[BURST_FRAMES]
        cdef int got, i
        count = min(count, BURST_FRAMES)
        cdef uint8_t *arena = <uint8_t *>malloc(<size_t>count * FRAME_STRIDE)
        if arena == NULL:
            raise MemoryError
        try:
            with nogil:
                got = self.peer.receive(self.peer, arena, FRAME_BYTES, native, count)
            if got < 0:
                raise OSError(errno, os.strerror(errno))
            return [(<char *>native[i].data - VNET_HDR)[:native[i].length + VNET_HDR] for i in range(got)]
        finally:
            if self.peer.release != NULL:
                self.peer.release(self.peer)
            free(arena)
