# SPDX-License-Identifier: Apache-2.0
"""A filter that makes a guest's link a port of a VLAN switch, whose inside is the network behind it (IEEE 802.1Q).

    native    the guest's frames without a tag, or with the VLAN 0, get this VLAN's tag on their way to the network; the
              network's frames of this VLAN lose it on their way to the guest. An access port has nothing else.
    allowed   frames of these VLANs pass with their tag, both ways

Everything else is dropped: another VLAN, a service tag (802.1ad), a network's frame without a tag, and a second tag
behind one that is taken away, by which a frame would reach another VLAN behind the guest.

A tag moves what a virtio_net_hdr points to. A frame that gets one is sent as two more pieces, its first 12 bytes with
the header and the tag, and the rest: the frame itself stays unchanged, since it may be offered again.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from netback.dataplane.abi cimport MAC_BYTES, VIRTIO_NET_HDR_F_NEEDS_CSUM, virtio_net_hdr
from netback.dataplane.headers cimport ETH_HEAD, ETH_TYPE, TYPE_8021AD, TYPE_8021Q, get16, put16
from netback.dataplane.peers.filter cimport (
    ADMITTED, HEAD_BYTES, FilterPeer, filter_enter, filter_leave, filter_receive, filter_t, gather_head,
)
from netback.dataplane.peers.peer cimport (
    BURST_FRAMES, PEER_TAKES, VLAN_TAG, VNET_HDR, Peer, frame_t, peer_t, vnet_header,
)
from netback.dataplane.sockets cimport iovec

cdef enum:                       # the counters of dataplane/counters.py, in this order
    TX_VLAN, RX_VLAN

cdef enum:
    VLANS = 4096
    VLAN_WORDS = 64              # of a set of them
    VLAN_MASK = VLANS - 1        # of a tag's TCI; above it the priority
    TAGS_AT = 2 * MAC_BYTES      # where a tag is
    HEAD_ROOM = VNET_HDR + TAGS_AT + VLAN_TAG
    RUN_VECTORS = 256            # of frames that are sent at once

    CHANGE_NONE = 0              # what becomes of a frame to the network: it passes,
    CHANGE_INSERT = 1            # gets a tag,
    CHANGE_REPLACE = 2           # or another VLAN in its tag
    CHANGE_DROP = 3


cdef struct vlan:                # `filter` is first: a peer_t * of this kind is a vlan *
    filter_t filter
    uint16_t native              # 0: none
    uint64_t allowed[VLAN_WORDS]


cdef inline bint is_allowed(const vlan *own, uint32_t vid) noexcept nogil:
    return own.allowed[vid >> 6] >> (vid & 63) & 1


cdef inline bint is_tag(uint32_t kind) noexcept nogil:
    return kind == TYPE_8021Q or kind == TYPE_8021AD


# --- to the network

cdef inline int change_of(const vlan *own, const uint8_t *frame, uint32_t have) noexcept nogil:
    """A CHANGE_*. A tag of VLAN 0 has a priority alone."""
    cdef uint32_t kind, vid
    if have < ETH_HEAD:
        return CHANGE_DROP
    kind = get16(frame + ETH_TYPE)
    if not is_tag(kind):
        return CHANGE_INSERT if own.native else CHANGE_DROP
    if kind != TYPE_8021Q or have < ETH_HEAD + VLAN_TAG:
        return CHANGE_DROP
    vid = get16(frame + ETH_HEAD) & VLAN_MASK
    if vid:
        return CHANGE_NONE if is_allowed(own, vid) else CHANGE_DROP
    if not own.native or is_tag(get16(frame + ETH_HEAD + 2)):
        return CHANGE_DROP
    return CHANGE_REPLACE


cdef inline void write_head(
        const vlan *own, int change, const uint8_t *frame, const iovec *vectors, uint32_t count, uint32_t header,
        uint8_t *head) noexcept nogil:
    """The virtio_net_hdr, the addresses and the tag of a frame that gets another one."""
    cdef virtio_net_hdr *hdr = <virtio_net_hdr *>head
    cdef uint32_t i, used = 0, size
    cdef uint8_t *tag = head + header + TAGS_AT
    for i in range(count):       # the header may be in several pieces, like all of a frame
        if used == header:
            break
        size = <uint32_t>min(vectors[i].iov_len, <size_t>(header - used))
        memcpy(head + used, vectors[i].iov_base, size)
        used += size
    memcpy(head + header, frame, TAGS_AT)
    put16(tag, TYPE_8021Q)
    put16(tag + 2, own.native)
    if change == CHANGE_REPLACE:
        put16(tag + 2, (get16(frame + ETH_HEAD) & ~VLAN_MASK) | own.native)
        return
    if header and hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        hdr.csum_start += VLAN_TAG
    if header and hdr.hdr_len:
        hdr.hdr_len += VLAN_TAG


cdef inline uint32_t skip_bytes(const iovec *vectors, uint32_t count, size_t skip, iovec *rest) noexcept nogil:
    """What follows the first `skip` bytes of a frame; returns the number of vectors."""
    cdef uint32_t i, used = 0
    for i in range(count):
        if vectors[i].iov_len > skip:
            rest[used].iov_base = <uint8_t *>vectors[i].iov_base + skip
            rest[used].iov_len = vectors[i].iov_len - skip
            used += 1
        skip -= min(skip, vectors[i].iov_len)
    return used


cdef int send(peer_t *peer, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil:
    cdef vlan *own = <vlan *>peer
    cdef peer_t *inner = filter_enter(peer)
    cdef uint32_t header = inner.header
    cdef uint8_t heads[BURST_FRAMES][HEAD_ROOM]
    cdef uint8_t buffer[HEAD_BYTES]
    cdef iovec run[RUN_VECTORS]
    cdef uint32_t run_first[BURST_FRAMES + 1]
    cdef const uint8_t *frame
    cdef uint32_t have = 0, pieces, used
    cdef int change, got, frames, done = 0
    inner.blocked = PEER_TAKES
    while done < count:
        used = 0
        frames = 0
        change = CHANGE_NONE
        while done + frames < count:
            pieces = first[done + frames + 1] - first[done + frames]
            if used + pieces + 1 > RUN_VECTORS:
                break
            frame = gather_head(&vectors[first[done + frames]], pieces, header, buffer, &have)
            change = change_of(own, frame, have)
            if change == CHANGE_DROP:
                break
            run_first[frames] = used
            if change == CHANGE_NONE:
                memcpy(&run[used], &vectors[first[done + frames]], pieces * sizeof(iovec))
                used += pieces
            else:
                write_head(own, change, frame, &vectors[first[done + frames]], pieces, header, heads[frames])
                run[used].iov_base = heads[frames]
                run[used].iov_len = header + TAGS_AT + VLAN_TAG
                used += 1
                used += skip_bytes(
                    &vectors[first[done + frames]], pieces,
                    header + TAGS_AT + (VLAN_TAG if change == CHANGE_REPLACE else 0), &run[used])
            frames += 1
        run_first[frames] = used
        if frames:
            got = inner.send(inner, run, run_first, frames, refused)
            done += got
            if got < frames:
                break
        if done < count and change == CHANGE_DROP:
            own.filter.counts[TX_VLAN] += 1
            done += 1
        elif done < count and frames == 0:
            refused[0] += 1      # more pieces than any frame has
            done += 1
    filter_leave(peer)
    return done


# --- to the guest

cdef int admit(filter_t *filter, frame_t *frame) noexcept nogil:
    cdef vlan *own = <vlan *>filter
    cdef virtio_net_hdr *hdr
    cdef uint32_t vid
    if frame.length < ETH_HEAD + VLAN_TAG or get16(frame.data + ETH_TYPE) != TYPE_8021Q:
        return RX_VLAN
    vid = get16(frame.data + ETH_HEAD) & VLAN_MASK
    if vid == 0 or vid != own.native:
        return ADMITTED if vid and is_allowed(own, vid) else RX_VLAN
    if is_tag(get16(frame.data + ETH_HEAD + 2)):
        return RX_VLAN
    memmove(frame.data - VNET_HDR + VLAN_TAG, frame.data - VNET_HDR, VNET_HDR + TAGS_AT)
    frame.data += VLAN_TAG
    frame.length -= VLAN_TAG
    hdr = vnet_header(frame)
    if hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM and hdr.csum_start >= VLAN_TAG:
        hdr.csum_start -= VLAN_TAG
    if hdr.hdr_len >= VLAN_TAG:
        hdr.hdr_len -= VLAN_TAG
    return ADMITTED


cdef int receive(peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil:
    return filter_receive(peer, arena, largest, frames, count, admit)


cdef class VlanPeer(FilterPeer):
    """A port with this native VLAN, 0 for none, where frames of the VLANs `allowed` pass with their tags.

    ValueError: one of them is not from 1 to 4094.
    """

    cdef vlan own

    def __cinit__(self, Peer inner, *, int native=0, allowed=()):
        if not 0 <= native < VLANS - 1 or not all(1 <= vid < VLANS - 1 for vid in allowed):
            raise ValueError("a VLAN is a number from 1 to 4094")
        self.own.native = native
        for vid in allowed:
            self.own.allowed[<int>vid >> 6] |= <uint64_t>1 << (<int>vid & 63)
        self.wrap(&self.own.filter, inner, "vlan", {"native": native, "allowed": allowed})
        self.peer.send = send
        self.peer.receive = receive
