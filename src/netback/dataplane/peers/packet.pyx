# SPDX-License-Identifier: Apache-2.0
"""A packet socket whose small frames the kernel puts into a ring of memory that is mapped here (packet(7),
PACKET_RX_RING): they are read without a call.

The ring's memory is there also while nothing comes, so its slots are small. A frame that is longer than a slot goes to
the socket's queue as well, and its slot says so (PACKET_COPY_THRESH): it is read from there by a call, in its turn.

Frames are copied out of the ring, which costs little for small ones: the grant copy to the guest then begins in pages
that this domain has granted to itself, where on Xen it needs not look up and pin those of the ring (arena.pyx).
"""
import os

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.unistd cimport read as read_file

from netback.dataplane.peers.peer cimport (
    FRAME_BYTES, VNET_HDR, Peer, frame_t, peer_t, peer_works, receive_in_arena, received_t,
)
from netback.dataplane.peers.socket cimport SocketPeer, socket_peer
from netback.dataplane.ring cimport load_acquire, store_release
from netback.dataplane.sockets cimport iovec

cdef extern from *:
    """
    #include <linux/if_packet.h>
    """
    enum:
        TP_STATUS_KERNEL
        TP_STATUS_USER
        TP_STATUS_COPY
        TP_STATUS_VLAN_VALID
        TP_STATUS_VLAN_TPID_VALID
    cdef struct tpacket2_hdr:
        uint32_t tp_status
        uint32_t tp_len          # bytes of the frame,
        uint32_t tp_snaplen      # and of what the slot has of it
        uint16_t tp_mac          # where it begins in the slot, its virtio_net_hdr before it
        uint16_t tp_vlan_tci
        uint16_t tp_vlan_tpid

cdef enum:
    SLOT = 2048                  # two in a page, so a frame lies in one

SLOT_BYTES = SLOT
"""Of each slot of a ring."""


cdef struct packet_peer:         # `socket` is first: a socket_peer * of it is a packet_peer *
    socket_peer socket
    int (*plain_read)(peer_t *, iovec *, int, received_t *, int) noexcept nogil      # the socket's own
    uint8_t *ring                # NULL: closed
    uint32_t slots
    uint32_t next                # the slot that the kernel fills next, or has filled
    uint32_t taken               # slots before it that are not the kernel's yet
    uint32_t lost                # long frames for which the socket's queue had no room


# --- the ring's slots

cdef inline tpacket2_hdr *slot_at(packet_peer *own, uint32_t index) noexcept nogil:
    return <tpacket2_hdr *>(own.ring + <size_t>index * SLOT)


cdef inline uint32_t next_status(packet_peer *own) noexcept nogil:
    """TP_STATUS_* of the next slot; TP_STATUS_KERNEL: there is no frame."""
    if own.ring == NULL or own.taken == own.slots:
        return TP_STATUS_KERNEL
    return load_acquire(&slot_at(own, own.next).tp_status)


cdef inline void pass_slots(packet_peer *own, uint32_t count) noexcept nogil:
    own.next = (own.next + count) % own.slots
    own.taken += count


cdef inline void give_back(packet_peer *own) noexcept nogil:
    """Let the kernel fill the slots that were passed."""
    while own.taken:
        store_release(&slot_at(own, (own.next + own.slots - own.taken) % own.slots).tp_status, TP_STATUS_KERNEL)
        own.taken -= 1


cdef inline int long_frames(packet_peer *own, int most) noexcept nogil:
    """How many of the next slots, one after the other, say that the socket's queue has their frames: one at least. One
    of BIG TCP, which needs a larger buffer, counts alone.
    """
    cdef tpacket2_hdr *slot
    cdef int count = 1
    while count < most and own.taken + count < own.slots:
        slot = slot_at(own, (own.next + count) % own.slots)
        if not load_acquire(&slot.tp_status) & TP_STATUS_COPY or slot.tp_len > FRAME_BYTES:
            break
        count += 1
    return count


cdef inline bint has_frame(packet_peer *own, tpacket2_hdr *slot) noexcept nogil:
    """Whether the slot has a whole frame. If not, it is lost: the socket's queue has not taken it."""
    own.lost += slot.tp_snaplen != slot.tp_len
    return slot.tp_snaplen == slot.tp_len


cdef inline uint32_t slot_tag(tpacket2_hdr *slot, uint32_t status) noexcept nogil:
    """The VLAN tag that the kernel took out of the frame (TPID << 16 | TCI), or 0."""
    if not status & TP_STATUS_VLAN_VALID:
        return 0
    return <uint32_t>(slot.tp_vlan_tpid if status & TP_STATUS_VLAN_TPID_VALID else 0x8100) << 16 | slot.tp_vlan_tci


# --- frames

cdef inline int read_queue(
        packet_peer *own, iovec *vectors, int per_frame, received_t *received, int count) noexcept nogil:
    """Read up to so many long frames, as the socket does, and pass their slots. An error, as of a link that went down,
    takes no frame from the queue, so no slot is passed for it.
    """
    cdef int got = own.plain_read(&own.socket.peer, vectors, per_frame, received, long_frames(own, count))
    if got >= 0:
        pass_slots(own, max(got, 1))
    return got


cdef int read(peer_t *peer, iovec *vectors, int per_frame, received_t *received, int count) noexcept nogil:
    cdef packet_peer *own = <packet_peer *>peer
    cdef tpacket2_hdr *slot
    cdef int kept = 0, got = 0
    cdef uint32_t status = next_status(own)
    while status & TP_STATUS_USER and kept < count and got >= 0:
        slot = slot_at(own, own.next)
        if slot.tp_len > FRAME_BYTES and kept:
            break                    # of BIG TCP: it may get a larger buffer as the first of a read
        if status & TP_STATUS_COPY:
            got = read_queue(own, &vectors[kept * per_frame], per_frame, &received[kept], count - kept)
            kept += max(got, 0)
        else:
            if has_frame(own, slot):
                copy_frame(slot, &vectors[kept * per_frame])
                received[kept].length = slot.tp_len
                received[kept].tag = slot_tag(slot, status)
                kept += 1
            pass_slots(own, 1)
        status = next_status(own)
    give_back(own)
    if kept:
        peer_works(peer)
    return kept if kept else min(got, 0)


cdef inline void copy_frame(tpacket2_hdr *slot, iovec *vector) noexcept nogil:
    """Copy a frame and its header to as many vectors as it fills; `read` is given room for the longest."""
    cdef const uint8_t *data = <uint8_t *>slot + slot.tp_mac - VNET_HDR
    cdef size_t part, left = slot.tp_len + VNET_HDR
    while left:
        part = min(left, vector.iov_len)
        memcpy(vector.iov_base, data, part)
        data += part
        left -= part
        vector += 1


cdef int receive(peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil:
    """Read many frames of ordinary length, or one of BIG TCP, if that is the next."""
    cdef packet_peer *own = <packet_peer *>peer
    if next_status(own) & TP_STATUS_COPY and slot_at(own, own.next).tp_len > FRAME_BYTES:
        return receive_in_arena(peer, arena, largest, frames, 1)
    return receive_in_arena(peer, arena, FRAME_BYTES, frames, count)


cdef inline void discard_long(packet_peer *own) noexcept nogil:
    """Take the queue's next frame: the kernel discards what the buffer has no room for. A socket reports an error once,
    and takes nothing then.
    """
    cdef uint8_t head[VNET_HDR]
    if read_file(own.socket.peer.fd, head, sizeof(head)) < 0:
        read_file(own.socket.peer.fd, head, sizeof(head))


cdef class PacketPeer(Peer):
    """A packet socket, given as its SocketPeer, to which a ring of so many slots belongs: TPACKET_V2, SLOT_BYTES each.
    OSError: it cannot be mapped.
    """

    cdef packet_peer own

    def __cinit__(self, SocketPeer plain, uint32_t slots):
        cdef void *ring = mmap(NULL, <size_t>slots * SLOT, PROT_READ | PROT_WRITE, MAP_SHARED, plain.own.peer.fd, 0)
        if ring == MAP_FAILED:
            raise OSError(errno, os.strerror(errno))
        self.owner = plain
        self.peer = &self.own.socket.peer
        self.own.socket = plain.own
        self.own.plain_read = plain.own.peer.read
        self.own.ring = <uint8_t *>ring
        self.own.slots = slots
        self.peer.receive = receive
        self.peer.read = read

    def __dealloc__(self):
        self.close()

    def close(self) -> None:
        """Give up the ring, which else keeps the socket open; for a peer that no worker serves. May be called again."""
        if self.own.ring != NULL:
            munmap(self.own.ring, <size_t>self.own.slots * SLOT)
        self.own.ring = NULL

    def drain(self, int most) -> int:
        """Discard up to so many frames, for a peer that no worker serves; returns their number."""
        cdef uint32_t status = next_status(&self.own)
        cdef int count = 0
        while status & TP_STATUS_USER and count < most:
            if status & TP_STATUS_COPY:
                discard_long(&self.own)
            pass_slots(&self.own, 1)
            give_back(&self.own)
            status = next_status(&self.own)
            count += 1
        return count

    @property
    def slots(self) -> int:
        """Of the ring."""
        return self.own.slots

    @property
    def lost(self) -> int:
        """Frames longer than a slot for which the socket's queue had no room."""
        return self.own.lost

    @property
    def waiting(self) -> int:
        """Slots with a frame that the guest has not been given."""
        cdef uint32_t i, found = 0
        for i in range(self.own.slots if self.own.ring != NULL else 0):
            found += slot_at(&self.own, i).tp_status != TP_STATUS_KERNEL
        return found

    def duplicate(self, int fd) -> Peer:
        """A plain peer, which sends and receives nothing: the ring has one reader."""
        return self.owner.duplicate(fd)
