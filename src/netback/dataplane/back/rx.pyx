# SPDX-License-Identifier: Apache-2.0
"""Network to guest: one burst from the peer to the RX ring. Read it top to bottom, as a frame goes:

    receive   frames of the backlog, or new ones from the peer, while slots last; drop unwanted multicast frames
    limit     keep in the backlog the frames for which a rate-limited vif has no credit yet
    place     decide for each frame: send it whole, send it in segments, drop it, or let it wait for slots
    stage     assign its bytes to posted requests: a response and a grant copy for each, flags and extras as agreed
    deliver   grant copy, then one push through the journal and at most one notify
    wait      arm the ring for exactly the slots that the next frame needs (XSA-392); drop frames that waited too long

Backpressure works by not reading. A read of a socket returns up to 16 frames before their sizes are known; those that
then lack slots are copied to the backlog, and the peer is not read while any waits there. The ring has one private
index, rsp_prod: a request is taken when its response is staged, and one push makes all staged responses visible.

Errors: the guest's index is impossible (the link breaks), a grant is bad (its slot is answered ERROR, the frame's
other slots are delivered), a frame can never fit (dropped and counted). What the peer received but cannot return
(a message without a frame, a frame longer than any buffer) is also counted.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset
from netback.dataplane.abi cimport (
    EXTRA_TYPE_HASH, FULL_FRAME_SLOTS, GNTCOPY_dest_gref, GNTCOPY_source_gref, GNTST_okay, GSO_TYPE_NONE, MAC_BYTES,
    MIN_FRAME, NETIF_RSP_ERROR, NETRXF_csum_blank, NETRXF_data_validated, NETRXF_extra_info, NETRXF_more_data,
    PAGE_SIZE, RING_SLOTS, copy_segment, extra_info, rx_request, rx_response, virtio_net_hdr,
)
from netback.dataplane.arena cimport arena_t, name_local
from netback.dataplane.back.queue cimport BACKLOG_FRAMES, back_queue
from netback.dataplane.backlog cimport backlog_add, backlog_first, backlog_pop
from netback.dataplane.capture cimport FRAME_RX, capture_frame, frame_record_t
from netback.dataplane.checksum cimport complete_checksum
from netback.dataplane.clock cimport coarse_ns, now_ns
from netback.dataplane.credit cimport credit_claim, credit_settle
from netback.dataplane.extras cimport clear_meta, copy_extras, extras_count, frame_meta, write_extra
from netback.dataplane.flight cimport flight_claim, flight_copies, flight_frames, flight_slots
from netback.dataplane.journal cimport kill_point, push_responses
from netback.dataplane.link cimport (
    EVENT_TIMER, REASON_RX_INDEX, RX_BURSTS, RX_BYTES, RX_COMPLETED, RX_COPIES, RX_DROPPED, RX_ERRORS, RX_EXPIRED,
    RX_FILTERED, RX_FRAMES, RX_HASHED, RX_NOTIFIES, RX_SEGMENTED, RX_SLOTS, RX_STAGED,
    RX_STALLS, RX_THROTTLED, RX_TOO_BIG, STATE_NO_CREDIT, STATE_NO_FRAME, STATE_NO_SLOTS,
    STATE_NO_SLOTS_LONG, STATE_NO_SLOTS_UNANNOUNCED, STATE_PEER_CLOSED, STATE_PEER_IDLE, STATE_PEER_MORE,
    STATE_STALLED, break_link, direction_t, lacks_slots, link_t, note_rx_losses, state_rows,
)
from netback.dataplane.headers cimport HEADERS_MAX
from netback.dataplane.offload cimport (
    OFFLOAD_COMPLETE, OFFLOAD_DROP, OFFLOAD_SEGMENT, OFFLOAD_SPLIT, virtio_to_netif,
)
from netback.dataplane.peers.peer cimport (
    BURST_FRAMES, FRAME_BYTES, FRAME_HEADROOM, FRAME_STRIDE, LARGE_BYTES, PEER_CLOSED, VNET_HDR, frame_t, peer_t,
    vnet_header,
)
from netback.dataplane.record cimport RECORD_RX_SLOT, record, record_t
from netback.dataplane.ring cimport back_arm, back_pending, rx_slot
from netback.dataplane.segment cimport segments_begin, segments_next
from netback.dataplane.settings cimport multicast_listed
from netback.dataplane.staged cimport copy_segments
from netback.dataplane.toeplitz cimport hash_frame
from netback.dataplane.workspace cimport BURST_BYTES, SEGMENTS_BYTES, workspace_t

cdef extern from *:
    """
    static inline uint64_t read_slot(const void *p) { return __atomic_load_n((const uint64_t *)p, __ATOMIC_RELAXED); }
    """
    uint64_t read_slot(const void *p) nogil

cdef const char *BROADCAST = b"\xff\xff\xff\xff\xff\xff"

cdef enum:
    LONE = 16                    # bursts of one frame that are a habit, and after so many it is checked
    MAX_TCP = 60                 # bytes of a TCP header
    LARGE_FRAMES = 4             # of several slots in one read: more would evict each other from the cache
    MAX_DROPPED = 4096           # frames dropped at once: more than a tap's queue holds; a flood cannot prolong it


cdef struct burst_t:             # staged and not yet published
    uint32_t room                # requests available when the burst began
    uint32_t used                # slots staged of them
    uint32_t segments            # grant copies
    uint32_t bytes
    uint32_t frames
    bint unpaid                  # a frame waits for credit
    const arena_t *pages         # local pages that a copy may name by gref: the worker's ...
    const arena_t *lent          # ... and the peer's


cdef arena_t no_pages            # none: a copy to a staged page needs an address


# --- poll: one burst

cdef int poll_rx(link_t *link, workspace_t *ws) noexcept nogil:
    """Serve one burst from the peer; returns the direction's next state (states.py)."""
    cdef back_queue *queue = <back_queue *>link
    cdef burst_t burst
    cdef int pending = back_pending(&queue.rx)
    cdef uint32_t needed
    cdef int state
    cdef bint drained = False
    if pending < 0:
        return break_link(link, REASON_RX_INDEX)
    if link.peer_to_ring.state == STATE_STALLED and pending < <int>queue.stalled_needed:
        return stay_stalled(queue)
    if link.peer_to_ring.state == STATE_STALLED or is_expired(queue):
        drop_waiting(queue, ws)
    note_posted(queue, pending)
    memset(&burst, 0, sizeof(burst))
    burst.room = pending
    burst.pages = ws.pages if queue.staged == NULL else &no_pages
    burst.lent = link.source.pages if link.source.pages != NULL and queue.staged == NULL else &no_pages
    ws.segments_used = 0
    if pending == 0 and queue.backlog.count == 0 and has_waited(link):
        read_one(queue, ws)
    if queue.backlog.count:
        needed = place_backlog(queue, ws, &burst)
    else:
        needed = receive(queue, ws, &burst, &drained)
    deliver(queue, ws, &burst)
    if link.peer_to_ring.allowance.credit != NULL:
        credit_settle(&link.peer_to_ring.allowance, burst.bytes)
    if link.source.release != NULL:
        link.source.release(link.source)
    state = next_state(queue, &burst, needed, drained)
    if state == STATE_STALLED:
        drop_waiting(queue, ws)
    return state


cdef int next_state(back_queue *queue, burst_t *burst, uint32_t needed, bint drained) noexcept nogil:
    """The state after a burst. `needed`: slots that the next frame lacks, 0 if no known frame waits for slots."""
    cdef link_t *link = &queue.link
    cdef bint moved = burst.used or drained
    if moved:
        link.peer_to_ring.progress += 1
        queue.habits.waited = 0
    if burst.used:
        queue.waits_since = 0
    if burst.unpaid and not needed:
        link.counters[RX_THROTTLED] += 1
        queue.read_at = coarse_ns()      # the guest is not to blame for this wait
        link.peer_to_ring.due = link.peer_to_ring.allowance.due
        return STATE_NO_CREDIT
    if drained and link.source.more and burst.used < burst.room:
        return STATE_PEER_MORE
    if drained and burst.used < burst.room:
        return STATE_PEER_CLOSED if link.source.condition == PEER_CLOSED else STATE_PEER_IDLE
    return wait_for_slots(queue, max(needed, <uint32_t>1), moved)


# --- receive: frames from the peer, or from the backlog

cdef uint32_t place_backlog(back_queue *queue, workspace_t *ws, burst_t *burst) noexcept nogil:
    """Place frames of an earlier read, in their own burst, since their memory is in use until its copies are made.
    Returns the slots that the next frame needs, or 0.
    """
    cdef uint32_t needed
    cdef uint32_t left = queue.backlog.count
    if queue.link.peer_to_ring.allowance.credit != NULL:
        left = limit_backlog(queue, burst)
    while left:
        needed = place(queue, ws, burst, backlog_first(&queue.backlog))
        if needed:
            return needed
        backlog_pop(&queue.backlog)
        left -= 1
    return 0


cdef uint32_t receive(back_queue *queue, workspace_t *ws, burst_t *burst, bint *drained) noexcept nogil:
    """Read and place frames until the peer, the slots or the burst's budget are used up; if a frame lacks slots, the
    rest of the read goes to the backlog. Returns the slots that this frame needs, or 0.
    """
    cdef peer_t *source = queue.link.source
    cdef uint32_t count, needed, last
    cdef uint32_t taken = 0
    cdef uint8_t *arena = ws.arena
    cdef int got, kept, allowed, i
    while taken + BACKLOG_FRAMES <= BURST_FRAMES and burst.used < burst.room and burst.bytes < BURST_BYTES:
        count = read_ahead(queue, burst)
        got = source.receive(source, arena, LARGE_BYTES, ws.frames, count)
        if queue.link.flight != NULL:
            got = flight_frames(queue.link.flight, source, arena, ws.frames, count, got, True)
        note_rx_losses(&queue.link, got)
        if got <= 0:
            if taken:
                queue.habits.lone = queue.habits.lone + 1 if taken == 1 else 0
            drained[0] = True
            return 0
        kill_point()
        last = ws.frames[got - 1].length
        queue.habits.large = last > PAGE_SIZE
        kept = allowed = drop_unwanted(queue, ws.frames, got) if queue.multicast_control else got
        if queue.link.peer_to_ring.allowance.credit != NULL:
            allowed = limit(queue, burst, ws.frames, kept)
        for i in range(allowed):
            needed = place(queue, ws, burst, &ws.frames[i])
            if needed:
                keep(queue, ws, i, kept)
                return needed
        if allowed < kept:
            keep(queue, ws, allowed, kept)
            return 0
        taken += got
        if <uint32_t>got < count:
            drained[0] = True
            return 0
        if last > FRAME_BYTES:
            return 0             # the arena has no room for many of these, and dropped ones do not count as bytes
        if came_alone(queue, taken):
            source.unread = drained[0] = True
            return 0
        arena = next_buffer(arena, count, last)
    return 0


cdef inline bint came_alone(back_queue *queue, uint32_t taken) noexcept nogil:
    """Whether the only frame of a burst is its last: frames have come one by one of late, and a read that finds none
    would only delay this one. Now and then it is tried. A wrong guess costs a call of epoll.
    """
    if taken != 1 or queue.link.source.frames_per_read != 1 or queue.habits.lone < LONE:
        return False
    queue.habits.lone += 1
    return queue.habits.lone % LONE != 0


cdef inline bint is_unwanted(back_queue *queue, frame_t *frame) noexcept nogil:
    """Whether a frame is multicast, not broadcast, and its address is not in the guest's list (netif.h)."""
    cdef const uint8_t *address = frame.data
    if frame.length < MAC_BYTES or not address[0] & 1:
        return False
    return memcmp(address, BROADCAST, MAC_BYTES) != 0 and not multicast_listed(queue.settings, address)


cdef int drop_unwanted(back_queue *queue, frame_t *frames, int count) noexcept nogil:
    """Drop the multicast frames of a read that the guest does not want; returns how many frames are left."""
    cdef int i, kept = 0
    for i in range(count):
        if is_unwanted(queue, &frames[i]):
            queue.link.counters[RX_FILTERED] += 1
        else:
            frames[kept] = frames[i]
            kept += 1
    return kept


cdef inline void keep(back_queue *queue, workspace_t *ws, int first, int end) noexcept nogil:
    """Keep the rest of a read in the backlog."""
    cdef int i
    if first < end and queue.backlog.count == 0:
        queue.read_at = coarse_ns()
    for i in range(first, end):
        backlog_add(&queue.backlog, &ws.frames[i])


cdef inline uint32_t read_ahead(back_queue *queue, burst_t *burst) noexcept nogil:
    """How many frames to request from the peer at once. Frames that then lack slots are copied to the backlog, so only
    as many large ones are requested as surely fit: else a frame of 64 KiB costs half as much again.
    """
    cdef uint32_t room = burst.room - burst.used
    if queue.habits.large:
        room = max(<uint32_t>1, min(<uint32_t>LARGE_FRAMES, room // full_frame_slots(queue)))
    return min(min(<uint32_t>BACKLOG_FRAMES, room), queue.link.source.frames_per_read)


cdef inline uint8_t *next_buffer(uint8_t *arena, uint32_t count, uint32_t length) noexcept nogil:
    """Where to continue reading after `count` frames, the last of `length`: whole pages further, so that data begins at
    a page.
    """
    return (
        arena + <size_t>(count - 1) * FRAME_STRIDE
        + ((FRAME_HEADROOM + length + PAGE_SIZE - 1) & ~<uint32_t>(PAGE_SIZE - 1))
    )


cdef inline void note_posted(back_queue *queue, uint32_t pending) noexcept nogil:
    """Remember the most slots that this guest posts. If a wait lasts as long as NO_SLOTS does without any slot used,
    the presently posted slots become the maximum: a guest that once posted 256 and later never more than 8 then gets
    its GSO frames segmented.
    """
    cdef link_t *link = &queue.link
    queue.habits.most_posted = max(queue.habits.most_posted, pending)
    if link.peer_to_ring.events & EVENT_TIMER and lacks_slots(link.peer_to_ring.state):
        queue.habits.waited += link.peer_to_ring.period
        if queue.habits.waited >= state_rows()[<int>STATE_NO_SLOTS].timer:
            queue.habits.most_posted = pending


# --- limit: by the vif's credit

cdef inline uint32_t most_bytes(frame_t *frame) noexcept nogil:
    """The most bytes that can be counted for a frame: if it is segmented, each segment has the headers again."""
    cdef virtio_net_hdr *header = vnet_header(frame)
    if header.gso_size == 0:
        return frame.length
    return frame.length + frame.length // header.gso_size * (min(header.csum_start, <uint16_t>HEADERS_MAX) + MAX_TCP)


cdef uint32_t limit(back_queue *queue, burst_t *burst, frame_t *frames, uint32_t count) noexcept nogil:
    """How many of the frames may pass now; if fewer than all, the rest waits for credit."""
    cdef uint32_t costs[BURST_FRAMES]
    cdef uint32_t i
    for i in range(count):
        costs[i] = most_bytes(&frames[i])
    i = credit_claim(&queue.link.peer_to_ring.allowance, now_ns(), costs, count)
    if queue.link.flight != NULL:
        i = flight_claim(queue.link.flight, i)
    burst.unpaid = i < count
    return i


cdef uint32_t limit_backlog(back_queue *queue, burst_t *burst) noexcept nogil:
    cdef frame_t frames[BACKLOG_FRAMES]
    cdef uint32_t i
    for i in range(queue.backlog.count):
        frames[i] = queue.backlog.frames[(queue.backlog.first + i) % queue.backlog.capacity]
    return limit(queue, burst, frames, queue.backlog.count)


# --- place: what becomes of a frame

cdef inline uint32_t place(back_queue *queue, workspace_t *ws, burst_t *burst, frame_t *frame) noexcept nogil:
    """Stage one frame, segment it or drop it. Returns 0 if it is done, else the slots that it, or its next segment,
    needs.
    """
    cdef frame_meta meta
    cdef uint32_t needed
    cdef int verdict
    cdef bint gso
    if queue.segmenting:
        return place_segments(queue, ws, burst, frame)
    if frame.length < MIN_FRAME:
        queue.link.counters[RX_DROPPED] += 1
        return 0
    verdict = virtio_to_netif(frame.data, frame.length, &frame.length, vnet_header(frame), queue.caps, &meta)
    if verdict == OFFLOAD_SEGMENT or verdict == OFFLOAD_SPLIT:
        gso = verdict == OFFLOAD_SPLIT and queue.habits.most_posted >= full_frame_slots(queue)
        return begin_segments(queue, ws, burst, frame, gso)
    if verdict == OFFLOAD_DROP:
        queue.link.counters[RX_DROPPED] += 1
        return 0
    if verdict == OFFLOAD_COMPLETE:
        complete_checksum(frame.data, frame.length, vnet_header(frame))
        memset(vnet_header(frame), 0, VNET_HDR)
        clear_meta(&meta)
        queue.link.counters[RX_COMPLETED] += 1
    add_extras(queue, frame, &meta)
    needed = slots_needed(queue, frame.length, extras_count(&meta))
    if meta.gso_type != GSO_TYPE_NONE and needed > queue.habits.most_posted:
        return begin_segments(queue, ws, burst, frame, False)    # it would wait for ever
    return place_whole(queue, ws, burst, frame, needed, &meta)


cdef uint32_t place_whole(back_queue *queue, workspace_t *ws, burst_t *burst, frame_t *frame, uint32_t needed,
                          frame_meta *meta) noexcept nogil:
    """Stage a frame as it is. Returns 0 if it is done, else `needed`, the slots that it takes."""
    if needed > 1 and (needed > RING_SLOTS or (not queue.sg and needed > 1 + extras_count(meta))):
        queue.link.counters[RX_TOO_BIG] += 1
        return 0
    if burst.used + needed > burst.room:
        return needed
    stage(queue, ws, burst, frame.data, frame.length, meta)
    return 0


cdef uint32_t begin_segments(
        back_queue *queue, workspace_t *ws, burst_t *burst, frame_t *frame, bint gso) noexcept nogil:
    """Begin to segment a frame, with `gso` into GSO frames; `segments` is the position in it."""
    if segments_begin(&queue.segments, frame.data, frame.length, vnet_header(frame), gso) < 0:
        queue.link.counters[RX_DROPPED] += 1
        return 0
    queue.segmenting = True
    return place_segments(queue, ws, burst, frame)


cdef uint32_t place_segments(back_queue *queue, workspace_t *ws, burst_t *burst, frame_t *frame) noexcept nogil:
    """Stage segments of a frame while slots and memory last. Returns 0 if it is done, else the slots that the next
    segment needs.
    """
    cdef frame_meta meta, flow       # of a segment; what every segment of the frame has
    cdef uint32_t length, needed
    cdef bint gso = queue.segments.gso_size != 0
    if queue.segments.largest + queue.rx_offset > PAGE_SIZE and not queue.sg:
        queue.link.counters[RX_TOO_BIG] += 1
        queue.segmenting = False
        return 0
    memset(&flow, 0, sizeof(flow))
    add_extras(queue, frame, &flow)
    while queue.segments.index < queue.segments.count:
        needed = slots_needed(queue, queue.segments.largest, gso + extras_count(&flow))
        if gso and needed > queue.habits.most_posted:
            queue.link.counters[RX_DROPPED] += 1     # the guest no longer posts that many: the rest would wait for ever
            break
        if burst.used + needed > burst.room:
            return needed
        if ws.segments_used + queue.segments.largest > SEGMENTS_BYTES:
            return 1             # the burst's memory is used up, not the guest's slots: the next burst continues
        length = segments_next(
            &queue.segments, frame.data, ws.segment_memory + ws.segments_used, SEGMENTS_BYTES - ws.segments_used, &meta
        )
        if length == 0:
            break
        copy_extras(&meta, &flow)
        stage(queue, ws, burst, ws.segment_memory + ws.segments_used, length, &meta)
        ws.segments_used += (length + 63) & ~<uint32_t>63
    queue.segmenting = False
    queue.link.counters[RX_SEGMENTED] += 1
    return 0


cdef inline void add_extras(back_queue *queue, frame_t *frame, frame_meta *meta) noexcept nogil:
    """Add the extra infos that frames for this guest have beside GSO."""
    meta.extras |= queue.rx_extras
    meta.xdp_headroom = queue.rx_offset
    if queue.hash != NULL:
        hash_frame(queue.hash, frame.data, frame.length, meta)


cdef inline uint32_t full_frame_slots(back_queue *queue) noexcept nogil:
    return FULL_FRAME_SLOTS + (queue.rx_extras != 0) + (queue.hash != NULL)


cdef inline uint32_t slots_needed(back_queue *queue, uint32_t length, uint32_t extras) noexcept nogil:
    return (queue.rx_offset + length + PAGE_SIZE - 1) // PAGE_SIZE + extras


# --- stage: a frame's bytes to posted requests

cdef inline void stage(
        back_queue *queue, workspace_t *ws, burst_t *burst, const uint8_t *data, uint32_t length,
        frame_meta *meta) noexcept nogil:
    """Spread a frame over posted requests: flags and the extra go with the first slot, each status is the bytes of its
    slot (netif.h). The caller has checked that there are enough slots.
    """
    cdef rx_response *body
    cdef uint32_t size, gref, first = burst.used
    cdef uint32_t offset = queue.rx_offset
    cdef uint16_t flags = rx_flags(meta)
    cdef uint32_t at = 0
    while at < length:
        size = min(length - at, <uint32_t>PAGE_SIZE - offset)
        body = <rx_response *>ws.bodies + burst.used
        gref = take_request(queue, ws, burst, body)
        body.offset = offset
        body.flags = flags | (NETRXF_more_data if at + size < length else 0)
        body.status = size
        stage_copy(queue, ws, burst, gref, data + at, offset, size)
        if flags & NETRXF_extra_info:
            stage_extras(queue, ws, burst, meta)
        at += size
        flags = 0
        offset = 0
    burst.bytes += length
    burst.frames += 1
    if queue.link.traced:
        trace_frame(queue, ws, first, burst.used, meta)
    if queue.link.sinks != NULL:
        capture_staged(queue, ws, first, burst.used, data, length, meta)


cdef inline uint32_t take_request(back_queue *queue, workspace_t *ws, burst_t *burst, rx_response *body) noexcept nogil:
    """The next posted request, read once (XSA-155): returns its gref; the response has its id."""
    cdef uint64_t raw = read_slot(rx_slot(queue.rx.shared, queue.rx.rsp_prod + burst.used))
    cdef rx_request *request = <rx_request *>&raw
    body.id = request.id
    ws.grefs[burst.used] = request.gref
    burst.used += 1
    return request.gref


cdef inline void stage_copy(
        back_queue *queue, workspace_t *ws, burst_t *burst, uint32_t gref, const uint8_t *data,
        uint32_t offset, uint32_t size) noexcept nogil:
    """A copy of `size` bytes to the page of the request taken last."""
    cdef copy_segment *copy = &ws.segments[burst.segments]
    ws.segment_body[burst.segments] = burst.used - 1
    copy.dest.foreign.ref = gref
    copy.dest.foreign.offset = offset
    copy.dest.foreign.domid = queue.memory.domid
    copy.len = size
    copy.flags = GNTCOPY_dest_gref
    if name_local(burst.pages, &copy.source, data, size) or name_local(burst.lent, &copy.source, data, size):
        copy.flags |= GNTCOPY_source_gref
    burst.segments += 1


cdef void stage_extras(back_queue *queue, workspace_t *ws, burst_t *burst, frame_meta *meta) noexcept nogil:
    """An extra info uses a request's slot and returns its buffer unused (netif.h)."""
    cdef rx_response *body
    cdef uint32_t left = meta.extras
    queue.link.counters[RX_HASHED] += meta.extras >> EXTRA_TYPE_HASH & 1
    while left:
        body = <rx_response *>ws.bodies + burst.used
        take_request(queue, ws, burst, body)
        left = write_extra(<extra_info *>body, meta, left)


cdef inline uint16_t rx_flags(frame_meta *meta) noexcept nogil:
    return (
        (NETRXF_csum_blank if meta.csum_blank else 0)
        | (NETRXF_data_validated if meta.data_validated or meta.csum_blank else 0)
        | (NETRXF_extra_info if meta.extras else 0)
    )


cdef void trace_frame(
        back_queue *queue, workspace_t *ws, uint32_t first, uint32_t end, frame_meta *meta) noexcept nogil:
    """Write a record of each slot of a frame."""
    cdef record_t entry
    cdef rx_response *bodies = <rx_response *>ws.bodies
    cdef uint32_t i
    memset(&entry, 0, sizeof(entry))
    entry.kind = RECORD_RX_SLOT
    for i in range(first, end):
        if first < i <= first + extras_count(meta):
            continue
        entry.index = queue.rx.rsp_prod + i
        entry.gref = ws.grefs[i]
        entry.offset = bodies[i].offset
        entry.status = bodies[i].status
        entry.flags = bodies[i].flags
        record(ws, &queue.link, &entry)


cdef void capture_staged(
        back_queue *queue, workspace_t *ws, uint32_t first, uint32_t end, const uint8_t *data,
        uint32_t length, frame_meta *meta) noexcept nogil:
    """Pass a frame to the captures of the queue."""
    cdef frame_record_t entry
    cdef rx_response *bodies = <rx_response *>ws.bodies
    memset(&entry, 0, sizeof(entry))     # with the status: copies that fail later are counted (rx_errors)
    entry.direction = FRAME_RX
    entry.length = length
    entry.index = queue.rx.rsp_prod + first
    entry.gref = ws.grefs[first]
    entry.offset = bodies[first].offset
    entry.flags = bodies[first].flags
    entry.slots = end - first
    capture_frame(queue.link.sinks, &ws.captured_at, &entry, meta, data, length)


# --- deliver: copies, then one push

cdef uint32_t record_requests(back_queue *queue, workspace_t *ws, burst_t *burst, uint32_t copies) noexcept nogil:
    """Have the recorder keep the requests of a burst as they were read, and its copies. An extra info's response has
    no id, so that of its request is not known any more.
    """
    cdef rx_request requests[RING_SLOTS]
    cdef rx_response *bodies = <rx_response *>ws.bodies
    cdef uint32_t i
    memset(requests, 0, burst.used * sizeof(rx_request))
    for i in range(burst.used):
        requests[i].gref = ws.grefs[i]
    for i in range(burst.segments):
        requests[ws.segment_body[i]].id = bodies[ws.segment_body[i]].id
    flight_slots(queue.link.flight, requests, burst.used, sizeof(rx_request))
    return flight_copies(queue.link.flight, ws, 0, burst.segments, copies)


cdef void deliver(back_queue *queue, workspace_t *ws, burst_t *burst) noexcept nogil:
    cdef uint64_t *counters = queue.link.counters
    cdef rx_response *bodies = <rx_response *>ws.bodies
    cdef uint32_t i, copies
    if burst.used == 0:
        return
    kill_point()
    copies = copy_segments(queue.memory, queue.staged, ws, burst.segments)
    if queue.link.flight != NULL:
        copies = record_requests(queue, ws, burst, copies)
    counters[RX_COPIES] += copies
    counters[RX_STAGED] += burst.segments - copies
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
        queue.link.peer_to_ring.notify = True


# --- wait: for slots

cdef int wait_for_slots(back_queue *queue, uint32_t needed, bint moved) noexcept nogil:
    """Arm the ring for exactly `needed` requests and check again (io/ring.h's final check); returns the state that
    follows. If nothing moved, it is still the same wait.
    """
    cdef link_t *link = &queue.link
    cdef int state = link.peer_to_ring.state
    cdef int pending = back_arm(&queue.rx, needed)
    if pending < 0:
        return break_link(link, REASON_RX_INDEX)
    if <uint32_t>pending >= needed:
        return STATE_PEER_MORE
    if queue.backlog.count and not queue.waits_since:
        queue.waits_since = coarse_ns()
    if lacks_slots(state) and not moved:
        return wait_longer(queue, state, needed)
    link.counters[RX_STALLS] += 1
    return STATE_NO_SLOTS_UNANNOUNCED if link.rx_unannounced else STATE_NO_SLOTS


cdef int wait_longer(back_queue *queue, int state, uint32_t needed) noexcept nogil:
    """The state of a wait that goes on."""
    cdef direction_t *direction = &queue.link.peer_to_ring
    if state == STATE_NO_SLOTS or state == STATE_NO_SLOTS_UNANNOUNCED:
        return state
    if queue.backlog.count == 0:
        return STATE_PEER_CLOSED if queue.link.source.condition == PEER_CLOSED else STATE_NO_FRAME
    direction.due = queue.read_at + queue.drain
    if queue.stall:
        if coarse_ns() >= queue.waits_since + queue.stall:
            queue.stalled_needed = needed
            return STATE_STALLED
        direction.due = min(direction.due, queue.waits_since + queue.stall)
    return STATE_NO_SLOTS_LONG


cdef inline bint has_waited(link_t *link) noexcept nogil:
    """Whether the ring has been empty for so long that a frame is read without a slot for it, so that it has an age."""
    return link.peer_to_ring.state == STATE_NO_SLOTS_LONG or link.peer_to_ring.state == STATE_NO_FRAME or (
        link.peer_to_ring.state == STATE_NO_SLOTS_UNANNOUNCED and link.peer_to_ring.events & EVENT_TIMER)


cdef inline int read_unplaced(back_queue *queue, workspace_t *ws, bint kept) noexcept nogil:
    """One read of the peer whose frames are not placed now, and are `kept` or dropped."""
    cdef peer_t *source = queue.link.source
    cdef int count = min(<uint32_t>BACKLOG_FRAMES, source.frames_per_read)
    cdef int got = source.receive(source, ws.arena, LARGE_BYTES, ws.frames, count)
    if queue.link.flight != NULL:
        got = flight_frames(queue.link.flight, source, ws.arena, ws.frames, count, got, kept)
    note_rx_losses(&queue.link, got)
    return got


cdef void read_one(back_queue *queue, workspace_t *ws) noexcept nogil:
    """One read of the peer, into the backlog."""
    cdef peer_t *source = queue.link.source
    cdef int got = read_unplaced(queue, ws, True)
    if got > 0 and queue.multicast_control:
        got = drop_unwanted(queue, ws.frames, got)
    keep(queue, ws, 0, got)
    if source.release != NULL:
        source.release(source)


cdef inline bint is_expired(back_queue *queue) noexcept nogil:
    """Whether the frames that wait for slots reached the drain time. At every event: no timer ends while a guest posts
    a slot now and then.
    """
    return (
        queue.backlog.count and lacks_slots(queue.link.peer_to_ring.state)
        and coarse_ns() >= queue.read_at + queue.drain
    )


cdef void drop_waiting(back_queue *queue, workspace_t *ws) noexcept nogil:
    """Drop and count the frames that wait, and those that the peer has now: they are as old, or soon will be."""
    cdef peer_t *source = queue.link.source
    cdef uint32_t dropped = queue.backlog.count
    cdef int got = 1
    queue.backlog.count = 0
    queue.segmenting = False
    while got > 0 and dropped < MAX_DROPPED:
        got = read_unplaced(queue, ws, False)
        if source.release != NULL:
            source.release(source)
        dropped += max(got, 0)
    queue.link.counters[RX_EXPIRED] += dropped


cdef int stay_stalled(back_queue *queue) noexcept nogil:
    """Arm the ring of a stalled guest for what it must post."""
    cdef int pending = back_arm(&queue.rx, queue.stalled_needed)
    if pending < 0:
        return break_link(&queue.link, REASON_RX_INDEX)
    return STATE_STALLED if pending < <int>queue.stalled_needed else STATE_PEER_MORE
