# SPDX-License-Identifier: Apache-2.0
"""Network to guest: one burst from the peer to the RX ring, top to bottom in a frame's order.

    collect   frames from the peer, no more than the guest has slots for
    place     a frame to response slots, with the copies it needs; flags and extras as this guest agreed
    deliver   grant_copy, then one push through the journal and at most one notify

Backpressure is by not reading: where slots lack, the frame at hand is held with those of the same read, the ring
is armed for exactly the slots that it needs, and the peer's descriptor rests until the guest's event (rules 1,
XSA-392).

May go wrong: the guest's index is impossible (the link breaks), a grant is bad (that slot is answered ERROR),
a frame can never fit (dropped and counted).
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from netback.dataplane.abi cimport (
    EXTRA_TYPE_GSO, GNTCOPY_dest_gref, GNTCOPY_source_gref, GNTST_okay, GSO_TYPE_NONE, NETIF_RSP_ERROR,
    NETRXF_csum_blank, NETRXF_data_validated, NETRXF_extra_info, NETRXF_more_data, PAGE_SIZE, RING_SLOTS, copy_segment,
    extra_info, rx_request, rx_response,
)
from netback.dataplane.arena cimport name_local
from netback.dataplane.platform.memory cimport grant_copy
from netback.dataplane.journal cimport kill_point, push_responses
from netback.dataplane.checksum cimport complete_checksum
from netback.dataplane.offload cimport (
    OFFLOAD_COMPLETE, OFFLOAD_DROP, OFFLOAD_SEGMENT, OFFLOAD_SPLIT, netif_offload, virtio_to_netif,
)
from netback.dataplane.segment cimport segments_begin, segments_next
from netback.dataplane.peers.peer cimport (
    BURST_FRAMES, FRAME_HEADROOM, FRAME_STRIDE, PEER_TAP, VNET_HDR, frame_t, peer_recv, vnet_header,
)
from netback.dataplane.back.queue cimport HELD_FRAMES, back_queue
from netback.dataplane.link cimport (
    LINK_BROKEN, LINK_MORE, REASON_RX_INDEX, RX_BURSTS, RX_BYTES, RX_COMPLETED, RX_DROPPED, RX_ERRORS, RX_FAULTS,
    RX_FRAMES, RX_NOTIFIES, RX_SEGMENTED, RX_SLOTS, RX_STALLS, RX_TOO_BIG, link_t,
)
from netback.dataplane.record cimport RECORD_RX_FRAME, RECORD_RX_SLOT, record, record_t
from netback.dataplane.workspace cimport BURST_BYTES, CUT_BYTES, workspace_t
from netback.dataplane.ring cimport back_arm, back_pending, rx_slot

cdef extern from *:
    """
    static inline uint64_t read_slot(const void *p) { return __atomic_load_n((const uint64_t *)p, __ATOMIC_RELAXED); }
    """
    uint64_t read_slot(const void *p) nogil

cdef enum:
    MIN_FRAME = 14
    FULL_FRAME_SLOTS = 18        # 64 KiB, a tag, an offset: 17 data slots, and one for the GSO extra
    LONE_BURSTS = 4
    LARGE_FRAMES = 4             # of them read at once: more would only push each other out of the cache


cdef struct burst_t:             # what is staged and not yet published
    uint32_t room                # requests that waited when the burst began
    uint32_t used                # slots staged of them
    uint32_t segments
    uint32_t bytes
    uint32_t frames


cdef inline uint32_t take_request(back_queue *queue, workspace_t *ws, burst_t *burst, rx_response *body) noexcept nogil:
    """The next posted request, read once: its gref; its response slot begins as zeros with its id."""
    cdef uint64_t raw = read_slot(rx_slot(queue.rx.shared, queue.rx.rsp_prod + burst.used))
    cdef rx_request *request = <rx_request *>&raw
    memset(body, 0, sizeof(rx_response))
    body.id = request.id
    ws.grefs[burst.used] = request.gref
    burst.used += 1
    return request.gref


cdef inline void stage_copy(
        back_queue *queue, workspace_t *ws, burst_t *burst, uint32_t gref, const uint8_t *data,
        rx_response *body) noexcept nogil:
    cdef copy_segment *copy = &ws.segments[burst.segments]
    ws.segment_body[burst.segments] = burst.used - 1
    copy.dest.foreign.ref = gref
    copy.dest.foreign.offset = body.offset
    copy.dest.foreign.domid = queue.memory.domid
    copy.len = body.status
    copy.flags = GNTCOPY_dest_gref
    if name_local(ws.pages, &copy.source, data, copy.len):
        copy.flags |= GNTCOPY_source_gref
    burst.segments += 1


cdef inline void stage_extra(back_queue *queue, workspace_t *ws, burst_t *burst, netif_offload *said) noexcept nogil:
    """The GSO extra takes a request's slot and returns its buffer unused (netif.h)."""
    cdef extra_info *extra = <extra_info *>(<rx_response *>ws.bodies + burst.used)
    take_request(queue, ws, burst, <rx_response *>extra)
    memset(extra, 0, sizeof(extra_info))
    extra.type = EXTRA_TYPE_GSO
    extra.gso_size = said.gso_size
    extra.gso_type = said.gso_type


cdef inline uint16_t rx_flags(netif_offload *said) noexcept nogil:
    return (
        (NETRXF_csum_blank if said.csum_blank else 0)
        | (NETRXF_data_validated if said.data_validated or said.csum_blank else 0)
        | (NETRXF_extra_info if said.gso_type != GSO_TYPE_NONE else 0)
    )


cdef inline void stage(
        back_queue *queue, workspace_t *ws, burst_t *burst, const uint8_t *data, uint32_t length,
        netif_offload *said) noexcept nogil:
    """Spread a frame over posted requests: flags and the extra go with the first slot, each status is the
    bytes of its slot.
    """
    cdef rx_response *bodies = <rx_response *>ws.bodies
    cdef rx_response *body
    cdef uint32_t gref, first = burst.used
    cdef uint32_t at = 0
    while at < length:
        body = bodies + burst.used
        gref = take_request(queue, ws, burst, body)
        body.offset = queue.rx_offset if at == 0 else 0
        body.status = <int>min(length - at, <uint32_t>PAGE_SIZE - body.offset)
        stage_copy(queue, ws, burst, gref, data + at, body)
        if at == 0:
            body.flags = rx_flags(said)
        at += body.status
        if at < length:
            body.flags |= NETRXF_more_data
        if bodies + first == body and said.gso_type != GSO_TYPE_NONE:
            stage_extra(queue, ws, burst, said)
    burst.bytes += length
    burst.frames += 1
    if queue.link.traced or queue.link.captured:
        write_down(queue, ws, first, burst.used, data, length, said)


cdef void write_down(
        back_queue *queue, workspace_t *ws, uint32_t first, uint32_t end, const uint8_t *data,
        uint32_t length, netif_offload *said) noexcept nogil:
    """Trace points and capture: only for links that ask for them."""
    cdef record_t entry
    cdef rx_response *bodies = <rx_response *>ws.bodies
    cdef uint32_t i
    memset(&entry, 0, sizeof(entry))
    entry.gso_type = said.gso_type
    entry.gso_size = said.gso_size
    if queue.link.traced:
        for i in range(first, end):
            if said.gso_type != GSO_TYPE_NONE and i == first + 1:
                continue
            entry.kind = RECORD_RX_SLOT
            entry.index = queue.rx.rsp_prod + i
            entry.gref = ws.grefs[i]
            entry.offset = bodies[i].offset
            entry.status = bodies[i].status
            entry.flags = bodies[i].flags
            record(ws, &queue.link, &entry, NULL, 0)
    if queue.link.captured:
        entry.kind = RECORD_RX_FRAME
        entry.index = queue.rx.rsp_prod + first
        entry.gref = ws.grefs[first]
        entry.offset = bodies[first].offset
        entry.flags = bodies[first].flags
        entry.slots = end - first
        entry.status = 0
        record(ws, &queue.link, &entry, data, length)


cdef inline uint32_t slots_of(back_queue *queue, uint32_t length, bint gso) noexcept nogil:
    return (queue.rx_offset + length + PAGE_SIZE - 1) // PAGE_SIZE + gso


cdef void hold(back_queue *queue, frame_t *frames, uint32_t count) noexcept nogil:
    """Keep the frame that lacks slots, and those that were read with it; their headers travel with them."""
    cdef uint32_t i
    for i in range(count):
        queue.held[i].data = queue.hold + i * FRAME_STRIDE + FRAME_HEADROOM
        memcpy(vnet_header(&queue.held[i]), vnet_header(&frames[i]), frames[i].length + VNET_HDR)
        queue.held[i].length = frames[i].length
    queue.held_first = 0
    queue.held_count = count


cdef uint32_t place_cut(back_queue *queue, workspace_t *ws, burst_t *burst, frame_t *frame) noexcept nogil:
    """Stage segments of a frame that is being cut while slots and memory last: 0 where it is done with, else the slots
    that the next one needs.
    """
    cdef netif_offload meta
    cdef uint32_t length, needed
    while queue.cut.index < queue.cut.count:
        needed = slots_of(queue, queue.cut.largest, queue.cut.gso_size != 0)
        if burst.used + needed > burst.room:
            return needed
        if ws.cuts_used + queue.cut.largest > CUT_BYTES:
            return 1             # memory of this burst, not the guest's slots: the next burst goes on
        length = segments_next(&queue.cut, frame.data, ws.cuts + ws.cuts_used, CUT_BYTES - ws.cuts_used, &meta)
        if length == 0:
            break
        stage(queue, ws, burst, ws.cuts + ws.cuts_used, length, &meta)
        ws.cuts_used += (length + 63) & ~<uint32_t>63
    queue.cutting = False
    queue.link.counters[RX_SEGMENTED] += 1
    return 0


cdef uint32_t place_whole(
        back_queue *queue, workspace_t *ws, burst_t *burst, frame_t *frame, netif_offload *said) noexcept nogil:
    """Stage a frame that goes as it is: 0 where it is done with, else the slots that it needs."""
    cdef uint32_t needed = slots_of(queue, frame.length, said.gso_type != GSO_TYPE_NONE)
    if needed > RING_SLOTS or (needed > 1 and not queue.sg):
        queue.link.counters[RX_TOO_BIG] += 1
        return 0
    if burst.used + needed > burst.room:
        return needed
    stage(queue, ws, burst, frame.data, frame.length, said)
    return 0


cdef uint32_t start_cut(
        back_queue *queue, workspace_t *ws, burst_t *burst, frame_t *frame, bint whole) noexcept nogil:
    """Begin to cut a frame; queue.cut is the place in it. `whole`: into GSO frames."""
    if segments_begin(&queue.cut, frame.data, frame.length, vnet_header(frame), whole) < 0:
        queue.link.counters[RX_DROPPED] += 1
        return 0
    if queue.cut.largest + queue.rx_offset > PAGE_SIZE and not queue.sg:
        queue.link.counters[RX_TOO_BIG] += 1
        return 0
    queue.cutting = True
    return place_cut(queue, ws, burst, frame)


cdef uint32_t place(back_queue *queue, workspace_t *ws, burst_t *burst, frame_t *frame) noexcept nogil:
    """Stage one frame from the peer: 0 where it is done with, else the slots that it needs."""
    cdef netif_offload said
    cdef uint32_t needed
    cdef int verdict
    if queue.cutting:
        return place_cut(queue, ws, burst, frame)
    if frame.length < MIN_FRAME:
        queue.link.counters[RX_DROPPED] += 1
        return 0
    verdict = virtio_to_netif(frame.data, frame.length, &frame.length, vnet_header(frame), queue.caps, &said)
    if verdict == OFFLOAD_SEGMENT or verdict == OFFLOAD_SPLIT:
        return start_cut(queue, ws, burst, frame, verdict == OFFLOAD_SPLIT and queue.rx_most >= FULL_FRAME_SLOTS)
    if verdict == OFFLOAD_DROP:
        queue.link.counters[RX_DROPPED] += 1
        return 0
    if verdict == OFFLOAD_COMPLETE:
        complete_checksum(frame.data, frame.length, vnet_header(frame))
        memset(vnet_header(frame), 0, VNET_HDR)
        memset(&said, 0, sizeof(said))
        queue.link.counters[RX_COMPLETED] += 1
    needed = place_whole(queue, ws, burst, frame, &said)
    if needed > queue.rx_most and said.gso_type != GSO_TYPE_NONE:
        return start_cut(queue, ws, burst, frame, False)     # this guest never posts so many: it would wait for ever
    return needed


cdef uint32_t place_held(back_queue *queue, workspace_t *ws, burst_t *burst) noexcept nogil:
    """Held frames come first, in a burst of their own: their places are not free before its copies are made."""
    cdef uint32_t needed
    while queue.held_count:
        needed = place(queue, ws, burst, &queue.held[queue.held_first])
        if needed:
            return needed
        queue.held_first += 1
        queue.held_count -= 1
    return 0


cdef inline uint32_t read_ahead(back_queue *queue, burst_t *burst) noexcept nogil:
    """How many frames to ask the peer for at once. A tap gives one a call whatever we ask; a socket gives many, and
    what then lacks slots is held, which costs a copy: so ask for no more large ones than surely fit.
    """
    cdef uint32_t room = burst.room - burst.used
    if queue.link.peer.kind == PEER_TAP:
        return 1
    if queue.rx_large:
        return max(<uint32_t>1, min(<uint32_t>LARGE_FRAMES, room // FULL_FRAME_SLOTS))
    return min(<uint32_t>HELD_FRAMES, room)


cdef inline bint expect_no_more(back_queue *queue, uint32_t taken) noexcept nogil:
    """A tap whose frames came one by one is not asked for a second one each time: epoll tells of it."""
    if queue.link.peer.kind != PEER_TAP or taken > 1 or queue.rx_lone < LONE_BURSTS:
        return False
    queue.rx_lone = 1            # and now and then it is asked after all
    return True


cdef inline uint8_t *behind(uint8_t *arena, uint32_t count, uint32_t length) noexcept nogil:
    """Where to read on behind `count` frames, the last of `length`: whole pages on, so data begins one again."""
    return (
        arena + <size_t>(count - 1) * FRAME_STRIDE
        + ((FRAME_HEADROOM + length + PAGE_SIZE - 1) & ~<uint32_t>(PAGE_SIZE - 1))
    )


cdef uint32_t collect(back_queue *queue, workspace_t *ws, burst_t *burst, bint *drained) noexcept nogil:
    """Read and place frames until the peer, the slots or the burst's budget end: the slots that the next frame
    needs, or 0.
    """
    cdef uint32_t count, needed = 0
    cdef uint32_t taken = 0
    cdef uint8_t *arena = ws.arena
    cdef int got, i
    while taken + HELD_FRAMES <= BURST_FRAMES and burst.used < burst.room and burst.bytes < BURST_BYTES:
        count = read_ahead(queue, burst)
        got = peer_recv(queue.link.peer, arena, ws.frames, count)
        if got < 0:
            queue.link.counters[RX_FAULTS] += 1
            drained[0] = True
            break
        kill_point()
        queue.rx_large = got > 0 and ws.frames[got - 1].length > PAGE_SIZE
        for i in range(got):
            needed = place(queue, ws, burst, &ws.frames[i])
            if needed:
                hold(queue, &ws.frames[i], got - i)
                return needed
        taken += got
        if <uint32_t>got < count or expect_no_more(queue, taken):
            drained[0] = True
            break
        arena = behind(arena, count, ws.frames[got - 1].length)
    return needed


cdef void deliver(back_queue *queue, workspace_t *ws, burst_t *burst) noexcept nogil:
    cdef uint64_t *counters = queue.link.counters
    cdef rx_response *bodies = <rx_response *>ws.bodies
    cdef uint32_t i
    if burst.used == 0:
        return
    kill_point()
    grant_copy(queue.memory, ws.segments, burst.segments)
    for i in range(burst.segments):
        if ws.segments[i].status != GNTST_okay:
            bodies[ws.segment_body[i]].status = NETIF_RSP_ERROR
            counters[RX_ERRORS] += 1
    counters[RX_FRAMES] += burst.frames
    counters[RX_BYTES] += burst.bytes
    counters[RX_SLOTS] += burst.used
    counters[RX_BURSTS] += 1
    if push_responses(&queue.rx, queue.rx_journal, ws.bodies, burst.used):
        counters[RX_NOTIFIES] += 1
        queue.link.to_notify = True


cdef int wait_for_slots(back_queue *queue, uint32_t needed) noexcept nogil:
    """Arm the ring for exactly `needed` requests and look again: LINK_MORE where they came meanwhile."""
    cdef int pending = back_arm(&queue.rx, needed)
    if pending < 0:
        queue.link.broken = REASON_RX_INDEX
        return LINK_BROKEN
    if <uint32_t>pending >= needed:
        queue.link.to_blocked = False
        return LINK_MORE
    queue.link.counters[RX_STALLS] += not queue.link.to_blocked
    queue.link.to_blocked = True
    return 0


cdef int serve_rx(link_t *link, workspace_t *ws) noexcept nogil:
    """One burst from the peer: LINK_MORE where another may follow; 0 where the peer is empty or slots lack
    (link.to_blocked).
    """
    cdef back_queue *queue = <back_queue *>link
    cdef burst_t burst
    cdef int pending = back_pending(&queue.rx)
    cdef uint32_t needed = 0
    cdef bint drained = False
    if pending < 0:
        link.broken = REASON_RX_INDEX
        return LINK_BROKEN
    memset(&burst, 0, sizeof(burst))
    burst.room = pending
    queue.rx_most = max(queue.rx_most, <uint32_t>pending)
    ws.cuts_used = 0
    if queue.held_count:
        needed = place_held(queue, ws, &burst)
    else:
        needed = collect(queue, ws, &burst, &drained)
    deliver(queue, ws, &burst)
    queue.rx_lone = queue.rx_lone + 1 if burst.frames == 1 else 0
    if burst.used or drained:
        link.to_blocked = False  # if slots lack now, they do so anew
    if drained and burst.used < burst.room:
        return 0
    return wait_for_slots(queue, max(needed, <uint32_t>1))
