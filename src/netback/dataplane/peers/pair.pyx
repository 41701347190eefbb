# SPDX-License-Identifier: Apache-2.0
"""What a driver does with a pair of virtqueues, whatever the device behind it: take frames, send frames, reclaim.

The device may have access to every byte of a pair, so a frame for the guest is copied to the worker's memory before
anything looks at it, and its buffers are posted again at once; a frame of the guest is copied to the pair. An
impossible index, id or length of a used ring breaks the pair: `broken` has the reason, and the owner uses it no more.

A device that is trusted, which is the kernel, costs no such copy: the pair *lends*. A frame for the guest stays in its
buffer until `pair_release`, and begins at a page, as in a worker's arena. `pair_offer` gives memory in which frames of
the guest may be placed before they are sent.

RX: a mergeable device spreads a frame over small buffers, else each buffer holds the largest frame. TX: frames lie in a
ring of bytes in the order of their descriptors, which the device may use in any order; they are reclaimed when further
frames are sent.

Only one thread at a time uses a pair.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from netback.dataplane.abi cimport (
    PAGE_SIZE, VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, virtio_net_hdr,
)
from netback.dataplane.checksum cimport complete_checksum
from netback.dataplane.extras cimport clear_meta, frame_meta
from netback.dataplane.offload cimport (
    CAN_CSUM4, CAN_CSUM6, CAN_TSO4, CAN_TSO6, OFFLOAD_COMPLETE, OFFLOAD_PASS, netif_to_virtio,
)
from netback.dataplane.peers.peer cimport (
    FRAME_BYTES, FRAME_HEADROOM, FRAME_STRIDE, LARGE_BYTES, VNET_HDR, vnet_header,
)
from netback.dataplane.peers.vring cimport (
    VRING_WRITE, load16_relaxed, vring_arm, vring_avail, vring_desc, vring_disarm, vring_kick,
    vring_next_length, vring_offer, vring_pending, vring_publish, vring_take, vring_used,
)

cdef enum:
    MAX_HEADER = VNET_HDR + 2    # virtio_net_hdr_mrg_rxbuf: with num_buffers, in every frame of a VERSION_1 device
    KICK_BELOW = 64              # RX buffers that hold a frame of 64 KiB: a device that has as many waits for none
    ALIGNED = 64
    NO_ROOM = 0xffffffff
    FREE = 0                     # of a TX descriptor
    IN_FLIGHT = 1
    USED = 2
    MRG_RXBUF = 1 << 15          # features
    EVENT_IDX = 1 << 29


cdef void pair_init(pair_t *pair, uint8_t *memory, uint64_t address, uint32_t header, uint64_t features,
                    uint32_t large_buffers, uint32_t tx_bytes) noexcept nogil:
    """Lay out a pair in `memory` of zeros, and post every RX buffer; the device hears of nothing yet.

    `features`: of virtio, as agreed upon. Without MRG_RXBUF there are `large_buffers`, and with it as much memory.
    """
    pair.header = header
    pair.mergeable = (features & MRG_RXBUF) != 0
    pair.rx.event_idx = pair.tx.event_idx = (features & EVENT_IDX) != 0
    pair.buffers = <uint32_t>VRING_SLOTS if pair.mergeable else large_buffers
    pair.buffer_stride = pair.buffer_bytes = SMALL_BUFFER if pair.mergeable else LARGE_BUFFER
    pair.tx_area = RX_AREA + large_buffers * LARGE_BUFFER
    lay_out(pair, memory, address, tx_bytes)


cdef void pair_init_lending(
        pair_t *pair, uint8_t *memory, uint32_t large_buffers, uint32_t tx_bytes) noexcept nogil:
    """The same for the kernel as the device, which has EVENT_IDX and is told this process's own addresses. A buffer has
    its frame's header right before a page; The memory ends with the TX area.
    """
    pair.header = VNET_HDR
    pair.lends = pair.rx.event_idx = pair.tx.event_idx = True
    pair.buffers = large_buffers
    pair.buffer_stride = LENT_BUFFER
    pair.buffer_at = PAGE_SIZE - VNET_HDR
    pair.buffer_bytes = VNET_HDR + LARGE_BYTES
    pair.tx_area = RX_AREA + large_buffers * LENT_BUFFER
    lay_out(pair, memory, <uint64_t>memory, tx_bytes)


cdef void lay_out(pair_t *pair, uint8_t *memory, uint64_t address, uint32_t tx_bytes) noexcept nogil:
    """Set up both rings, and post every buffer."""
    cdef uint32_t i
    pair.memory = memory
    pair.address = address
    pair.tx_bytes = tx_bytes
    init_ring(&pair.rx, memory, RX_DESC, RX_AVAIL, RX_USED)
    init_ring(&pair.tx, memory, TX_DESC, TX_AVAIL, TX_USED)
    for i in range(pair.buffers):
        pair.rx.desc[i].address = address + RX_AREA + i * pair.buffer_stride + pair.buffer_at
        pair.rx.desc[i].length = pair.buffer_bytes
        pair.rx.desc[i].flags = VRING_WRITE
        pair.posted[i] = True
        vring_offer(&pair.rx, <uint16_t>i)
    vring_publish(&pair.rx)


cdef void init_ring(vring_t *ring, uint8_t *memory, uint32_t desc, uint32_t avail, uint32_t used) noexcept nogil:
    ring.desc = <vring_desc *>(memory + desc)
    ring.avail = <vring_avail *>(memory + avail)
    ring.used = <vring_used *>(memory + used)
    vring_disarm(ring)


# --- receive: the device's frames

cdef inline int take_buffer(pair_t *pair, uint8_t **data, uint32_t *length) noexcept nogil:
    """Take the next used RX buffer; returns a reason if the device lies. The caller knows that there is one."""
    cdef uint32_t id = vring_take(&pair.rx, length)
    if id >= VRING_SLOTS or not pair.posted[id]:
        return REASON_ID
    if length[0] > pair.buffer_bytes:
        return REASON_LENGTH
    pair.posted[id] = False
    pair.read[pair.reads] = <uint16_t>id
    pair.reads += 1
    data[0] = pair.memory + RX_AREA + id * pair.buffer_stride + pair.buffer_at
    return REASON_NONE


cdef inline int take_frame(pair_t *pair, peer_t *peer, int pending, frame_t *frame) noexcept nogil:
    """Copy the next of the device's frames to frame.data, its header before that; returns a reason if the device lies.
    A length of 0 is no frame.
    """
    cdef uint8_t header[MAX_HEADER]
    cdef uint8_t *data = NULL
    cdef uint32_t length = 0, at, _i, buffers = 1
    cdef int reason = take_buffer(pair, &data, &length)
    if reason == REASON_NONE and length < pair.header:
        reason = REASON_LENGTH
    if reason != REASON_NONE:
        return reason
    memcpy(header, data, pair.header)
    if pair.mergeable:
        buffers = header[VNET_HDR] | <uint32_t>header[VNET_HDR + 1] << 8
    if buffers == 0 or <int>buffers > pending:
        return REASON_BUFFERS
    memcpy(frame.data - VNET_HDR, header, VNET_HDR)
    at = length - pair.header
    if at <= FRAME_BYTES:
        memcpy(frame.data, data + pair.header, at)
    for _i in range(1, buffers):
        reason = take_buffer(pair, &data, &length)
        if reason != REASON_NONE:
            return reason
        if at + length <= FRAME_BYTES:
            memcpy(frame.data + at, data, length)
        at += length
    peer.short_frames += at == 0
    peer.truncated += at > FRAME_BYTES
    frame.length = at if at <= FRAME_BYTES else 0
    if frame.length and pair.header != VNET_HDR and is_vouched(vnet_header(frame)):
        vouch(frame)
    pair.brought += 1
    return REASON_NONE


cdef inline int lend_frame(pair_t *pair, peer_t *peer, uint32_t largest, frame_t *frame) noexcept nogil:
    """The same without a copy, of a pair that lends."""
    cdef uint8_t *data = NULL
    cdef uint32_t length = 0
    cdef int reason = take_buffer(pair, &data, &length)
    if reason == REASON_NONE and length < VNET_HDR:
        reason = REASON_LENGTH
    if reason != REASON_NONE:
        return reason
    frame.data = data + VNET_HDR
    frame.length = length - VNET_HDR
    peer.short_frames += frame.length == 0
    peer.truncated += frame.length > largest
    if frame.length > largest:
        frame.length = 0
    pair.brought += 1
    return REASON_NONE


cdef inline bint comes_alone(pair_t *pair) noexcept nogil:
    """Whether the next frame is so large that a read must return no other (peer.pxd)."""
    return pair.lends and vring_next_length(&pair.rx) > VNET_HDR + FRAME_BYTES


cdef void vouch(frame_t *frame) noexcept nogil:
    """The device vouches for the checksum (DATA_VALID), which says that nobody needs to check it, not that it is there:
    passt leaves it out. So it is requested, or completed where padding follows the packet.
    """
    cdef frame_meta meta
    cdef uint8_t fixed_up
    cdef virtio_net_hdr *header = vnet_header(frame)
    cdef int verdict
    clear_meta(&meta)
    meta.csum_blank = 1
    verdict = netif_to_virtio(
        frame.data, frame.length, &frame.length, &meta, CAN_CSUM4 | CAN_CSUM6, header, &fixed_up)
    if verdict == OFFLOAD_COMPLETE:
        complete_checksum(frame.data, frame.length, header)
    if verdict != OFFLOAD_PASS:
        memset(header, 0, VNET_HDR)


cdef inline bint is_vouched(const virtio_net_hdr *header) noexcept nogil:
    return (header.flags & (VIRTIO_NET_HDR_F_DATA_VALID | VIRTIO_NET_HDR_F_NEEDS_CSUM) == VIRTIO_NET_HDR_F_DATA_VALID
            and header.gso_type == VIRTIO_NET_HDR_GSO_NONE)


cdef void pair_release(pair_t *pair) noexcept nogil:
    """Post the buffers that were read. A device that has had enough of them all the time waits for none, so it is
    kicked only if it had fewer.
    """
    cdef uint16_t before = pair.rx.published
    cdef uint32_t i
    for i in range(pair.reads):
        pair.posted[pair.read[i]] = True
        vring_offer(&pair.rx, pair.read[i])
    pair.reads = 0
    if vring_publish(&pair.rx) and <uint16_t>(before - load16_relaxed(&pair.rx.used.idx)) < KICK_BELOW:
        vring_kick(&pair.rx)


cdef inline bint has_frames(pair_t *pair, int *pending) noexcept nogil:
    """Whether used buffers, or an impossible index, are there; if not, the device is asked for a call."""
    pending[0] = vring_pending(&pair.rx)
    if pending[0] == 0 and not pair.rx.armed:
        vring_arm(&pair.rx, 0)
        pending[0] = vring_pending(&pair.rx)
    return pending[0] != 0


cdef bint pair_has_frames(pair_t *pair) noexcept nogil:
    """Whether the device has used RX buffers that were not taken yet. Asks for nothing."""
    return vring_pending(&pair.rx) != 0


cdef int pair_receive(
        pair_t *pair, peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil:
    """Return up to `count` frames, as `receive` of peer.pxd: copied to the arena, or lent until `pair_release`. Buffers
    are posted again at the end, so the device cannot prolong this. If there are fewer, the device is asked for a call.
    """
    cdef int reason = REASON_NONE, pending = 0, kept = 0
    cdef bint alone = False
    if pair.rx.armed and vring_pending(&pair.rx):
        vring_disarm(&pair.rx)
    while kept < count and not alone and reason == REASON_NONE and has_frames(pair, &pending):
        if pending < 0:
            reason = REASON_INDEX
            break
        alone = comes_alone(pair)
        if alone and kept:
            break
        if pair.lends:
            reason = lend_frame(pair, peer, largest, &frames[kept])
        else:
            frames[kept].data = arena + <size_t>kept * FRAME_STRIDE + FRAME_HEADROOM
            reason = take_frame(pair, peer, pending, &frames[kept])
        kept += reason == REASON_NONE and frames[kept].length != 0
    if not pair.lends:
        pair_release(pair)
    if reason != REASON_NONE:
        pair.broken = reason
    return kept


cdef bint pair_reclaim(pair_t *pair) noexcept nogil:
    """Take the used TX descriptors; False if there are none, or the device lies, which breaks the pair."""
    cdef uint32_t id, length = 0
    cdef int _i, pending = vring_pending(&pair.tx)
    if pending < 0:
        pair.broken = REASON_INDEX
    for _i in range(pending):
        id = vring_take(&pair.tx, &length)       # the length means nothing: the device writes nothing
        if id >= VRING_SLOTS or pair.state[id] != IN_FLIGHT:
            pair.broken = REASON_ID
            return False
        pair.state[id] = USED
    while pair.oldest != pair.newest and pair.state[pair.oldest % VRING_SLOTS] == USED:
        pair.state[pair.oldest % VRING_SLOTS] = FREE
        pair.oldest += 1
    pair.taken += max(pending, 0)
    return pending > 0


cdef inline uint32_t oldest_byte(pair_t *pair) noexcept nogil:
    """Where the TX area is in use from on, if it is."""
    if pair.offer_end and <uint16_t>(pair.newest - pair.oldest) <= <uint16_t>(pair.newest - pair.offer_first):
        return pair.offer
    return pair.start[pair.oldest % VRING_SLOTS]


cdef inline uint32_t find_room(pair_t *pair, uint32_t size) noexcept nogil:
    """Where `size` bytes of the TX area are free, in one piece, behind the newest frame and what was offered; else
    NO_ROOM.
    """
    cdef uint32_t oldest
    if pair.oldest == pair.newest:
        pair.at = pair.offer_end             # whatever was copied behind the offer is free again
        if not pair.offer_end:
            return 0
    if <uint16_t>(pair.newest - pair.oldest) == VRING_SLOTS:
        return NO_ROOM
    oldest = oldest_byte(pair)
    if pair.at <= oldest:
        return pair.at if pair.at + size < oldest else NO_ROOM
    if pair.at + size <= pair.tx_bytes:
        return pair.at
    return 0 if size < oldest else NO_ROOM


cdef uint8_t *pair_offer(pair_t *pair, uint32_t size) noexcept nogil:
    """Memory of `size` bytes for frames of the next `pair_send`, as `room` of peer.pxd; NULL if there is none now. An
    earlier offer is void.
    """
    cdef uint32_t at
    if pair.at == pair.offer_end:
        pair.at = pair.offer_used            # no frame was copied behind it: what is left of it is free
    pair.offer_end = 0
    pair_reclaim(pair)
    at = find_room(pair, size + PAGE_SIZE)
    if at == NO_ROOM or pair.broken:
        return NULL
    at = ((at + FRAME_HEADROOM + PAGE_SIZE - 1) & ~<uint32_t>(PAGE_SIZE - 1)) - FRAME_HEADROOM
    pair.offer = pair.offer_used = at
    pair.offer_end = pair.at = at + size
    pair.offer_first = pair.newest
    return pair.memory + pair.tx_area + at


cdef inline uint32_t offered_at(pair_t *pair, const iovec *vectors, uint32_t count) noexcept nogil:
    """Where a frame lies in the offered memory, if it can be sent from there; else NO_ROOM. Frames lie in the area in
    the order of their descriptors, so none can once another one was copied behind the offer.
    """
    cdef size_t at = <size_t>vectors[0].iov_base - <size_t>(pair.memory + pair.tx_area)
    if count != 1 or pair.at != pair.offer_end or at < pair.offer_used or at >= pair.offer_end:
        return NO_ROOM
    return <uint32_t>at if <uint16_t>(pair.newest - pair.oldest) < VRING_SLOTS else NO_ROOM


cdef inline bint is_accepted(pair_t *pair, const virtio_net_hdr *header) noexcept nogil:
    """Whether the device accepts the offloads that a frame requests: the pair may have changed since they were chosen.
    """
    cdef uint32_t needs = CAN_CSUM4 if header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM else 0
    if header.gso_type:
        needs |= CAN_TSO4 if header.gso_type == VIRTIO_NET_HDR_GSO_TCPV4 else CAN_TSO6
    return not needs & ~pair.caps


cdef inline size_t frame_size(pair_t *pair, const iovec *vectors, uint32_t count) noexcept nogil:
    """Bytes of a frame in the TX area: with num_buffers."""
    cdef size_t size = pair.header - VNET_HDR
    cdef uint32_t i
    for i in range(count):
        size += vectors[i].iov_len
    return size


cdef inline void place(pair_t *pair, const iovec *vectors, uint32_t count, uint8_t *to) noexcept nogil:
    """Copy a frame to its place."""
    cdef const iovec *vector
    cdef uint32_t i
    memcpy(to, vectors[0].iov_base, VNET_HDR)
    memset(to + VNET_HDR, 0, pair.header - VNET_HDR)     # num_buffers is for frames to a driver
    memcpy(to + pair.header, <uint8_t *>vectors[0].iov_base + VNET_HDR, vectors[0].iov_len - VNET_HDR)
    to += pair.header - VNET_HDR + vectors[0].iov_len
    for i in range(1, count):
        vector = &vectors[i]
        memcpy(to, vector.iov_base, vector.iov_len)
        to += vector.iov_len


cdef inline bint fill(pair_t *pair, const iovec *vectors, uint32_t count, uint32_t size) noexcept nogil:
    """Bring a frame of `size` into the TX area, unless it lies there, and offer it to the device; False without room.
    """
    cdef uint32_t id, at = offered_at(pair, vectors, count)
    if at != NO_ROOM:
        pair.offer_used = at + size
    else:
        at = find_room(pair, size)
        if at == NO_ROOM:
            return False
        place(pair, vectors, count, pair.memory + pair.tx_area + at)
        pair.at = (at + size + ALIGNED - 1) & ~<uint32_t>(ALIGNED - 1)
    pair.memory[pair.tx_area + at] &= VIRTIO_NET_HDR_F_NEEDS_CSUM        # the others are for frames to a driver
    id = pair.newest % VRING_SLOTS
    pair.newest += 1
    pair.start[id] = at
    pair.state[id] = IN_FLIGHT
    pair.tx.desc[id].address = pair.address + pair.tx_area + at
    pair.tx.desc[id].length = size
    pair.tx.desc[id].flags = 0
    vring_offer(&pair.tx, <uint16_t>id)
    return True


cdef inline bint wait_for_room(pair_t *pair) noexcept nogil:
    """Whether there is more room after all. If not, the device is asked for a call when half of it is used."""
    if pair_reclaim(pair):
        return True
    vring_arm(&pair.tx, <uint16_t>(pair.tx.published - pair.tx.taken) // 2)
    return pair_reclaim(pair)


cdef int pair_send(
        pair_t *pair, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil:
    """Send frames, as `send` of peer.pxd; returns fewer than `count` if the pair is full or broken. If it is full, the
    device is asked for a call.
    """
    cdef size_t size
    cdef int done = 0
    if pair.tx.armed:
        vring_disarm(&pair.tx)
    pair_reclaim(pair)
    while not pair.broken and done < count:
        size = frame_size(pair, &vectors[first[done]], first[done + 1] - first[done])
        if size > pair.header + FRAME_BYTES or not is_accepted(pair, <virtio_net_hdr *>vectors[first[done]].iov_base):
            refused[0] += 1
            done += 1
        elif fill(pair, &vectors[first[done]], first[done + 1] - first[done], <uint32_t>size):
            done += 1
        else:
            if vring_publish(&pair.tx):
                vring_kick(&pair.tx)
            if not wait_for_room(pair):
                return done
    if not pair.broken and vring_publish(&pair.tx):
        vring_kick(&pair.tx)
    return done


cdef uint32_t pair_in_flight(pair_t *pair) noexcept nogil:
    """Frames that the device has not used."""
    cdef int i
    cdef uint32_t count = 0
    for i in range(VRING_SLOTS):
        count += pair.state[i] == IN_FLIGHT
    return count
