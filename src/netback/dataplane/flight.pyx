# SPDX-License-Identifier: Apache-2.0
"""The memory of flight.pxd, and its items: each function both appends one and plays one again."""
from libc.stdint cimport int16_t, int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from netback.dataplane.abi cimport GNTST_okay
from netback.dataplane.peers.peer cimport (
    FRAME_BYTES, FRAME_HEADROOM, FRAME_STRIDE, LARGE_BYTES, PEER_CLOSED, PEER_UNANNOUNCED, vnet_header,
)

cdef enum:
    MAX_REFUSED = 1 << 16        # of one poll: more than it can send

MIN_FLIGHT = 1 << 16
"""Bytes of a recorder's memory, at least."""


# --- bytes

cdef inline void copy_in(flight_t *flight, uint64_t to, const void *data, uint32_t length) noexcept nogil:
    """To this place of the ring, in two runs where it wraps."""
    cdef uint64_t at = to & (flight.size - 1)
    cdef uint64_t run = min(<uint64_t>length, flight.size - at)
    memcpy(flight.memory + at, data, run)
    memcpy(flight.memory, <const uint8_t *>data + run, length - run)


cdef inline uint32_t poll_bytes(flight_t *flight, uint64_t at) noexcept nogil:
    """The size of the poll that begins here: its first four bytes."""
    cdef uint32_t size
    cdef uint64_t i
    for i in range(4):
        (<uint8_t *>&size)[i] = flight.memory[(at + i) & (flight.size - 1)]
    return size


cdef void flight_put(flight_t *flight, const void *data, uint32_t length) noexcept nogil:
    """Append to the present poll, in the place of the oldest ones. One that needs all of the memory does not fit."""
    if not flight.open or flight.full:
        return
    while flight.head + length - flight.tail > flight.size:
        if flight.tail == flight.begin:
            flight.full = True
            return
        flight.tail += poll_bytes(flight, flight.tail)
    copy_in(flight, flight.head, data, length)
    flight.head += length


cdef bint flight_get(flight_t *flight, void *data, uint32_t length) noexcept nogil:
    """The next bytes of a poll that is played; False, and zeros, if they are not there."""
    if <size_t>(flight.end - flight.next) < length:
        memset(data, 0, length)
        flight.next = flight.end
        return False
    memcpy(data, flight.next, length)
    flight.next += length
    return True


# --- items

cdef inline void put_item(
        flight_t *flight, uint16_t kind, uint32_t count, uint32_t a, uint32_t b, uint32_t c) noexcept nogil:
    cdef flight_item item
    item.kind, item.count, item.a, item.b, item.c = kind, <uint16_t>count, a, b, c
    flight_put(flight, &item, sizeof(item))


cdef inline void differ(flight_t *flight, uint16_t kind, uint16_t found) noexcept nogil:
    if not flight.differs:
        flight.differs, flight.found = kind, found


cdef bint flight_expect(flight_t *flight, flight_item *item, uint16_t kind) noexcept nogil:
    """The next item of a poll that is played, if it is of this kind. Once it was another one, there is none any more,
    and each reading keeps what it brought.
    """
    if flight.differs or not flight.open:
        return False
    if not flight_get(flight, item, sizeof(flight_item)) or item.kind != kind:
        differ(flight, kind, item.kind)
        return False
    return True


cdef uint32_t flight_index(flight_t *flight, uint32_t index) noexcept nogil:
    """An index of the guest that was read."""
    cdef flight_item item
    if not flight.replaying:
        put_item(flight, ITEM_INDEX, 0, index, 0, 0)
        return index
    return item.a if flight_expect(flight, &item, ITEM_INDEX) else index


cdef bint expect_slots(flight_t *flight, uint16_t kind, uint32_t count, uint32_t size) noexcept nogil:
    """Whether a poll that is played comes to just these slots, whose bytes are next."""
    cdef flight_item item
    if not flight_expect(flight, &item, kind):
        return False
    if item.count != count or item.b != size or <size_t>(flight.end - flight.next) < count * size:
        differ(flight, kind, kind)
        return False
    return True


cdef inline void put_slots(
        flight_t *flight, uint16_t kind, const void *slots, uint32_t count, uint32_t size) noexcept nogil:
    put_item(flight, kind, count, 0, size, 0)
    flight_put(flight, slots, count * size)


cdef void flight_slots(flight_t *flight, const void *slots, uint32_t count, uint32_t size) noexcept nogil:
    """Requests that were read. Each is read once in a poll, so one that is played finds them in its page."""
    if not flight.replaying:
        put_slots(flight, ITEM_SLOTS, slots, count, size)
    elif expect_slots(flight, ITEM_SLOTS, count, size):
        flight.next += count * size


cdef uint32_t flight_claim(flight_t *flight, uint32_t allowed) noexcept nogil:
    """How many frames pass by the credit of the vif, which its other queues draw from, too."""
    cdef flight_item item
    if not flight.replaying:
        put_item(flight, ITEM_CLAIM, 0, allowed, 0, 0)
        return allowed
    return min(allowed, item.a) if flight_expect(flight, &item, ITEM_CLAIM) else allowed


cdef uint32_t flight_copies(
        flight_t *flight, workspace_t *ws, uint32_t chains, uint32_t segments, uint32_t copies) noexcept nogil:
    """The copies of a burst: of each its slot and its status, and the first bytes of each of the TX ring's `chains`;
    those to the guest (`chains` is 0) bring no bytes. Returns how many took a grant operation.
    """
    cdef flight_copy copy
    cdef uint32_t i, chain = 0, left = 0
    if flight.replaying:
        return play_copies(flight, ws, segments, copies)
    put_item(flight, ITEM_COPIES, segments, copies, 0, 0)
    for i in range(segments):
        while chain < chains and ws.chains[chain].segment <= i:
            left = flight.snaplen
            chain += 1
        if chains:
            copy.gref = ws.segments[i].source.foreign.ref
            copy.offset = ws.segments[i].source.foreign.offset
        else:
            copy.gref = ws.segments[i].dest.foreign.ref
            copy.offset = ws.segments[i].dest.foreign.offset
        copy.length = ws.segments[i].len
        copy.status = <uint16_t>ws.segments[i].status
        copy.kept = 0
        if chains and ws.segments[i].status == GNTST_okay:
            copy.kept = <uint16_t>min(left, <uint32_t>copy.length)
        left -= min(left, <uint32_t>copy.length)
        flight_put(flight, &copy, sizeof(copy))
        flight_put(flight, ws.segments[i].dest.virt, copy.kept)
    return copies


cdef uint32_t play_copies(flight_t *flight, workspace_t *ws, uint32_t segments, uint32_t copies) noexcept nogil:
    """Bytes that were not kept are zeros."""
    cdef flight_item item
    cdef flight_copy copy
    cdef uint32_t i
    if not flight_expect(flight, &item, ITEM_COPIES):
        return copies
    if item.count != segments:
        differ(flight, ITEM_COPIES, ITEM_COPIES)
        return copies
    for i in range(segments):
        if not flight_get(flight, &copy, sizeof(copy)) or copy.kept > copy.length or (
                copy.length != ws.segments[i].len):
            differ(flight, ITEM_COPIES, ITEM_COPIES)
            return copies
        ws.segments[i].status = <int16_t>copy.status
        if copy.kept and not flight_get(flight, ws.segments[i].dest.virt, copy.kept):
            differ(flight, ITEM_COPIES, ITEM_COPIES)
            return copies
    return item.a


cdef uint32_t flight_sent(
        flight_t *flight, peer_t *peer, uint32_t count, uint32_t done, int *refused) noexcept nogil:
    """What the peer did with `count` frames; returns how many it is done with."""
    cdef flight_item item
    if not flight.replaying:
        put_item(flight, ITEM_SENT, <uint32_t>peer.blocked, done, count, <uint32_t>refused[0])
        return done
    if not flight_expect(flight, &item, ITEM_SENT):
        return done
    if item.b != count:
        differ(flight, ITEM_SENT, ITEM_SENT)
        return done
    peer.blocked = min(item.count, <uint16_t>PEER_UNANNOUNCED)
    refused[0] = <int>min(item.c, <uint32_t>MAX_REFUSED)
    return min(item.a, count)


# --- frames of the peer

cdef void flight_put_frame(flight_t *flight, frame_t *frame, uint32_t snaplen) noexcept nogil:
    cdef flight_frame entry
    entry.length = frame.length
    entry.kept = min(frame.length, snaplen)
    memcpy(entry.header, vnet_header(frame), VNET_HDR)
    entry.zero = 0
    flight_put(flight, &entry, sizeof(entry))
    flight_put(flight, frame.data, entry.kept)


cdef bint flight_get_frame(flight_t *flight, frame_t *frame, uint8_t *at, uint32_t largest) noexcept nogil:
    """A frame of a poll that is played, to `at`, which has room for `largest` bytes of it behind its headroom; bytes
    that were not kept are zeros. False: there is none that fits.
    """
    cdef flight_frame entry
    if not flight_get(flight, &entry, sizeof(entry)) or entry.length > largest or entry.kept > entry.length:
        return False
    frame.data = at + FRAME_HEADROOM
    frame.length = entry.length
    memcpy(vnet_header(frame), entry.header, VNET_HDR)
    memset(frame.data + entry.kept, 0, entry.length - entry.kept)
    return flight_get(flight, frame.data, entry.kept)


cdef int flight_frames(
        flight_t *flight, peer_t *peer, uint8_t *arena, frame_t *frames, int count, int got, bint kept) noexcept nogil:
    """What `receive` returned when it was asked for `count` frames, with the frames if they are `kept`."""
    cdef flight_item item
    cdef int i
    if not flight.replaying:
        put_item(flight, ITEM_FRAMES, peer.more | peer.condition << 1 | kept << 4, <uint32_t>got, peer.short_frames,
                 peer.truncated)
        for i in range(got if kept else 0):
            flight_put_frame(flight, &frames[i], flight.snaplen)
        return got
    if not flight_expect(flight, &item, ITEM_FRAMES):
        return 0
    if <int32_t>item.a > count or item.count >> 4 != kept:
        differ(flight, ITEM_FRAMES, ITEM_FRAMES)
        return 0
    peer.more = item.count & 1
    peer.condition = min(item.count >> 1 & 7, <uint16_t>PEER_CLOSED)
    peer.short_frames, peer.truncated = item.b, item.c
    for i in range(<int32_t>item.a if kept else 0):
        if not flight_get_frame(flight, &frames[i], arena + <size_t>i * FRAME_STRIDE,
                                LARGE_BYTES if item.a == 1 else FRAME_BYTES):
            differ(flight, ITEM_FRAMES, ITEM_FRAMES)
            return 0
    return <int32_t>item.a


# --- what a poll made

cdef void flight_responses(flight_t *flight, const void *bodies, uint32_t count, uint32_t size) noexcept nogil:
    """Responses that are published. A poll that is played must make the same ones."""
    if not flight.replaying:
        put_slots(flight, ITEM_RESPONSES, bodies, count, size)
    elif expect_slots(flight, ITEM_RESPONSES, count, size):
        if memcmp(flight.next, bodies, count * size) != 0:
            differ(flight, ITEM_RESPONSES, ITEM_RESPONSES)
        else:
            flight.next += count * size


cdef class Flight:
    """A recorder with `size` bytes of memory, a power of two and MIN_FLIGHT at least, that keeps the first `snaplen`
    bytes of a frame. For one queue (BackQueue.record), and for the thread that serves it.
    """

    def __cinit__(self, uint32_t size, uint32_t snaplen):
        if size < MIN_FLIGHT or size & (size - 1):
            raise ValueError("size is no power of two, or too small")
        self.flight.memory = <uint8_t *>malloc(size)
        if self.flight.memory == NULL:
            raise MemoryError
        self.flight.size = size
        self.flight.snaplen = snaplen

    def __dealloc__(self):
        free(self.flight.memory)

    def polls(self) -> list[bytes]:
        """The recorded polls, the oldest one first."""
        cdef uint64_t at = self.flight.tail
        cdef uint64_t i, size, run
        found = []
        while at < self.flight.begin:
            size = poll_bytes(&self.flight, at)
            i = at & (self.flight.size - 1)
            run = min(size, self.flight.size - i)
            found.append(
                (<char *>self.flight.memory + i)[:run] + (<char *>self.flight.memory)[:size - run]
            )
            at += size
        return found

    @property
    def recorded(self) -> int:
        """How many polls were recorded, also those that are not there any more."""
        return self.flight.polls

    @property
    def lost(self) -> int:
        """How many polls did not fit, so that those before them were lost, too."""
        return self.flight.lost
