# SPDX-License-Identifier: Apache-2.0
"""Network behind a guest to its TX ring: one burst, in a frame's order.

    reap      free the pages of requests answered since the last burst; no event is requested for these responses
    read      read frames from the peer, into granted pages if the backend accepts frames of many slots
    place     assign a frame to requests; complete checksums and segment where the backend cannot
    publish   one push, at most one notify

Frames of one read that lack slots go to the backlog; only then is the ring armed for an event. If the backend lacks
what the peer's frame requests (no scatter-gather, a tag, a tunnel), the frame goes through private memory, where it is
completed or segmented.

Errors: the backend answers a request that was never made (the link breaks), a frame can never fit (dropped, counted).
"""
from libc.stdint cimport int16_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from netback.dataplane.abi cimport (
    EXTRA_TYPE_HASH, GSO_TYPE_NONE, MIN_FRAME, NETIF_RSP_NULL, NETIF_RSP_OKAY, NETTXF_csum_blank,
    NETTXF_data_validated, NETTXF_extra_info, NETTXF_more_data, PAGE_SIZE, RING_SLOTS, TX_SLOT, extra_info, tx_request,
    virtio_net_hdr,
)
from netback.dataplane.checksum cimport complete_checksum
from netback.dataplane.clock cimport coarse_ns
from netback.dataplane.extras cimport clear_meta, extras_count, frame_meta, write_extra
from netback.dataplane.front.queue cimport LARGE_BURSTS, SENT_CHANGE, SENT_FRAME, front_queue, slots_at_a_time
from netback.dataplane.offload cimport (
    OFFLOAD_COMPLETE, OFFLOAD_DROP, OFFLOAD_PASS, OFFLOAD_SEGMENT, OFFLOAD_SPLIT, virtio_to_netif,
)
from netback.dataplane.segment cimport MAX_NETIF_FRAME, segments_begin, segments_next
from netback.dataplane.backlog cimport backlog_add, backlog_first, backlog_pop
from netback.dataplane.link cimport (
    REASON_RESPONSE, STATE_NO_SLOTS, STATE_NO_SLOTS_LONG, STATE_PEER_CLOSED, STATE_PEER_IDLE, STATE_PEER_MORE,
    STATE_STALLED, TX_BURSTS, TX_BYTES, TX_COMPLETED, TX_DROPPED, TX_ERRORS, TX_FAULTS, TX_FRAMES, TX_HASHED,
    TX_NOTIFIES, TX_SEGMENTED, TX_SHORT, TX_SLOTS, TX_STALLS, TX_TRUNCATED, break_link, lacks_slots, link_t,
)
from netback.dataplane.peers.peer cimport (
    BURST_FRAMES, FRAME_BYTES, FRAME_HEADROOM, FRAME_STRIDE, PEER_CLOSED, VLAN_TAG, VNET_HDR, frame_t, peer_t,
    received_t, restore_tag, vnet_header,
)
from netback.dataplane.platform.events cimport events_notify
from netback.dataplane.workspace cimport BURST_BYTES, SEGMENTS_BYTES, workspace_t
from netback.dataplane.ring cimport front_arm, front_pending, front_push, load_relaxed, tx_slot
from netback.dataplane.sockets cimport iovec
from netback.dataplane.toeplitz cimport hash_frame

cdef uint64_t STALL = 60000000000      # ns without an answer after which the backend is reported: a backend's default

cdef enum:
    FRAME_PAGES = 16             # bytes of the longest frame that is read directly into pages
    FIRST_BYTES = PAGE_SIZE - FRAME_HEADROOM             # of a frame that was read into its first page
    FULL_FRAME_SLOTS = FRAME_PAGES + 1                   # ... and the GSO extra
    VECTORS = RING_SLOTS         # for one read: each frame's pages, and private memory for the rest


cdef struct scattered_t:         # a frame after its read: in pages, the rest in private memory
    uint16_t pages[FRAME_PAGES]
    uint32_t count               # of pages
    frame_t frame                # where the frame begins, in its first page
    uint8_t *linear              # where it begins in private memory, if it has to be gathered there


# --- pages and slots

cdef inline uint32_t slots(front_queue *queue) noexcept nogil:
    """Slots that may be filled now."""
    cdef uint32_t most = slots_at_a_time(queue.tx_slots, queue.tx_large)
    cdef uint32_t used = queue.tx.req_prod - queue.tx.rsp_cons
    return most - used if used < most else 0


cdef inline uint32_t room(front_queue *queue) noexcept nogil:
    """Slots that may be filled with further pages: fewer while a read waits to be placed."""
    return min(slots(queue), queue.free_count)


cdef inline uint16_t take_page(front_queue *queue) noexcept nogil:
    queue.free_count -= 1
    return queue.free[queue.free_count]


cdef inline void give_page(front_queue *queue, uint16_t page) noexcept nogil:
    queue.free[queue.free_count] = page
    queue.free_count += 1


cdef inline bint take_response(front_queue *queue, uint32_t index) noexcept nogil:
    """False if no request in flight can have that response."""
    cdef uint32_t raw = load_relaxed(<uint32_t *>tx_slot(queue.tx.shared, index))
    cdef uint16_t id = <uint16_t>raw
    cdef int16_t status = <int16_t>(raw >> 16)
    if status == NETIF_RSP_NULL:
        if queue.extras_sent == 0:
            return False
        queue.extras_sent -= 1
        return True
    if id >= RING_SLOTS or not queue.sent[id]:
        return False
    if queue.sent[id] == SENT_CHANGE:
        queue.change_status = status
    else:
        queue.link.counters[TX_ERRORS] += status != NETIF_RSP_OKAY
    queue.sent[id] = 0
    give_page(queue, id)
    return True


cdef bint reap(front_queue *queue) noexcept nogil:
    """Take every pending response; False if one is impossible."""
    cdef int i, pending = front_pending(&queue.tx)
    for i in range(pending):
        if not take_response(queue, queue.tx.rsp_cons + i):
            return False
    if pending > 0:
        queue.tx.rsp_cons += pending
    return pending >= 0


# --- requests

cdef inline void put_request(front_queue *queue, uint16_t page, uint16_t offset, uint16_t flags,
                             uint16_t size) noexcept nogil:
    cdef tx_request *request = <tx_request *>tx_slot(queue.tx.shared, queue.tx.req_prod)
    request.gref = queue.tx_grefs[page]
    request.offset = offset
    request.flags = flags
    request.id = page
    request.size = size
    queue.sent[page] = SENT_FRAME
    queue.tx.req_prod += 1


cdef inline void put_extras(front_queue *queue, frame_meta *meta) noexcept nogil:
    cdef uint8_t *slot
    cdef uint32_t left = meta.extras
    while left:
        slot = tx_slot(queue.tx.shared, queue.tx.req_prod)
        memset(slot, 0, TX_SLOT)
        left = write_extra(<extra_info *>slot, meta, left)
        queue.extras_sent += 1
        queue.tx.req_prod += 1


cdef inline uint16_t tx_flags(frame_meta *meta) noexcept nogil:
    return (
        (NETTXF_csum_blank if meta.csum_blank else 0)
        | (NETTXF_data_validated if meta.data_validated or meta.csum_blank else 0)
        | (NETTXF_extra_info if meta.extras else 0)
    )


cdef void put_frame(front_queue *queue, const uint16_t *pages, uint32_t offset, uint32_t length,
                    frame_meta *meta) noexcept nogil:
    """Write the requests of a frame in pages: the first one's size is the frame's, the others' are their own
    (netif.h)."""
    cdef uint32_t size = min(length, PAGE_SIZE - offset)
    cdef uint32_t at = size
    cdef uint32_t i = 1
    put_request(queue, pages[0], offset, tx_flags(meta) | (NETTXF_more_data if at < length else 0), length)
    put_extras(queue, meta)
    while at < length:
        size = min(length - at, <uint32_t>PAGE_SIZE)
        at += size
        put_request(queue, pages[i], 0, NETTXF_more_data if at < length else 0, size)
        i += 1
    queue.link.counters[TX_FRAMES] += 1
    queue.link.counters[TX_HASHED] += meta.extras >> EXTRA_TYPE_HASH & 1
    queue.link.counters[TX_BYTES] += length


cdef bint send_change(front_queue *queue, frame_meta *meta) noexcept nogil:
    """Send a request with MCAST extras, which is no frame (netif.h), and notify. False: no room now."""
    cdef uint16_t page
    if slots(queue) < 1 + extras_count(meta) or queue.free_count == 0:
        return False
    page = take_page(queue)
    put_request(queue, page, 0, tx_flags(meta), 0)
    queue.sent[page] = SENT_CHANGE
    queue.change_status = NETIF_RSP_NULL
    put_extras(queue, meta)
    if front_push(&queue.tx):
        events_notify(queue.link.events, queue.link.peer_to_ring.port)
    return True


# --- frames in private memory

cdef inline uint32_t slots_needed(uint32_t length, uint32_t extras) noexcept nogil:
    return (length + PAGE_SIZE - 1) // PAGE_SIZE + extras


cdef inline bint has_hash(front_queue *queue, uint32_t needed) noexcept nogil:
    """Whether frames that take so many slots go with their hash: the ring must be able to hold the extra too."""
    return queue.hash != NULL and needed < queue.tx_slots


cdef inline uint32_t add_hash(front_queue *queue, const uint8_t *data, uint32_t have, uint32_t needed,
                              frame_meta *meta) noexcept nogil:
    """Add the hash of a frame, of which `have` bytes are at `data`, if it has one; returns the slots that it needs."""
    cdef uint32_t extras = extras_count(meta)
    if has_hash(queue, needed):
        hash_frame(queue.hash, data, have, meta)
    return needed + extras_count(meta) - extras


cdef void copy_frame(front_queue *queue, const uint8_t *data, uint32_t length, frame_meta *meta) noexcept nogil:
    """Copy a frame into pages and write their requests to the ring. The caller has checked that there is room."""
    cdef uint16_t pages[FRAME_PAGES]
    cdef uint32_t i, at = 0
    for i in range((length + PAGE_SIZE - 1) // PAGE_SIZE):
        pages[i] = take_page(queue)
        memcpy(queue.tx_pages[pages[i]], data + at, min(length - at, <uint32_t>PAGE_SIZE))
        at += PAGE_SIZE
    put_frame(queue, pages, 0, length, meta)


cdef uint32_t place_segments(front_queue *queue, workspace_t *ws, const uint8_t *data) noexcept nogil:
    """Write segments of the frame at `data` to the ring. Returns 0 if it is done, else the slots that the next one
    needs.
    """
    cdef frame_meta meta
    cdef uint32_t length
    cdef uint32_t plain = slots_needed(queue.segments.largest, queue.segments.gso_size != 0)
    cdef uint32_t needed = plain + has_hash(queue, plain)
    while queue.segments.index < queue.segments.count:
        if room(queue) < needed:
            return needed
        length = segments_next(&queue.segments, data, ws.segment_memory, SEGMENTS_BYTES, &meta)
        if length == 0:
            break
        add_hash(queue, ws.segment_memory, length, plain, &meta)
        copy_frame(queue, ws.segment_memory, length, &meta)
    queue.segmenting = False
    queue.link.counters[TX_SEGMENTED] += 1
    return 0


cdef inline bint fits(front_queue *queue, uint32_t length, uint32_t slots) noexcept nogil:
    """Whether the backend can ever accept it whole."""
    return length <= MAX_NETIF_FRAME and slots <= queue.tx_slots and (length <= PAGE_SIZE or queue.sg)


cdef uint32_t begin_segments(front_queue *queue, workspace_t *ws, frame_t *frame, bint whole) noexcept nogil:
    """Begin to segment a frame; if not all segments have room, this continues later. `whole`: into GSO frames."""
    cdef int begun = segments_begin(&queue.segments, frame.data, frame.length, vnet_header(frame), whole)
    cdef uint32_t largest = queue.segments.largest
    queue.tx_single_reads = BURST_FRAMES
    if begun < 0 or not fits(queue, largest, slots_needed(largest, queue.segments.gso_size != 0)):
        queue.link.counters[TX_DROPPED] += 1
        return 0
    queue.segmenting = True
    return place_segments(queue, ws, frame.data)


cdef uint32_t place(front_queue *queue, workspace_t *ws, frame_t *frame) noexcept nogil:
    """Write one frame from private memory to the ring. Returns 0 if it is done, else the slots that it lacks."""
    cdef frame_meta meta
    cdef virtio_net_hdr *hdr = vnet_header(frame)
    cdef uint32_t needed
    cdef int verdict = virtio_to_netif(frame.data, frame.length, &frame.length, hdr, queue.caps, &meta)
    if verdict == OFFLOAD_SPLIT:
        return begin_segments(queue, ws, frame, queue.sg and queue.tx_slots >= FULL_FRAME_SLOTS)
    if verdict == OFFLOAD_COMPLETE:
        complete_checksum(frame.data, frame.length, hdr)
        memset(hdr, 0, VNET_HDR)
        clear_meta(&meta)
        queue.link.counters[TX_COMPLETED] += 1
    needed = slots_needed(frame.length, extras_count(&meta))
    if verdict == OFFLOAD_SEGMENT or (meta.gso_type != GSO_TYPE_NONE and not fits(queue, frame.length, needed)):
        return begin_segments(queue, ws, frame, False)
    if verdict == OFFLOAD_DROP or frame.length < MIN_FRAME or not fits(queue, frame.length, needed):
        queue.link.counters[TX_DROPPED] += 1
        return 0
    needed = add_hash(queue, frame.data, frame.length, needed, &meta)
    if room(queue) < needed:
        return needed
    copy_frame(queue, frame.data, frame.length, &meta)
    return 0


cdef void place_or_keep(front_queue *queue, workspace_t *ws, frame_t *frame) noexcept nogil:
    """Frames stay in order: this one waits behind the backlog."""
    if queue.backlog.count == 0:
        queue.needed = place(queue, ws, frame)
        if queue.needed == 0:
            return
    backlog_add(&queue.backlog, frame)


cdef void place_backlog(front_queue *queue, workspace_t *ws) noexcept nogil:
    """Place frames of the backlog until one lacks slots."""
    cdef frame_t *frame
    while queue.backlog.count:
        frame = backlog_first(&queue.backlog)
        queue.needed = place_segments(queue, ws, frame.data) if queue.segmenting else place(queue, ws, frame)
        if queue.needed:
            return
        backlog_pop(&queue.backlog)


# --- frames in granted pages

cdef inline uint32_t pages_filled(scattered_t *read) noexcept nogil:
    """The number of pages that a frame fills, if they suffice."""
    return (FRAME_HEADROOM + read.frame.length + PAGE_SIZE - 1) // PAGE_SIZE


cdef inline void give_pages(front_queue *queue, scattered_t *read, uint32_t kept) noexcept nogil:
    """Free all pages but the first `kept`."""
    while read.count > kept:
        read.count -= 1
        give_page(queue, read.pages[read.count])


cdef void gather(front_queue *queue, scattered_t *read, frame_t *linear) noexcept nogil:
    """Gather a frame in private memory, where the part beyond its pages already is; its pages become free."""
    cdef uint32_t i, at = PAGE_SIZE - <uint32_t>(read.frame.data - queue.tx_pages[read.pages[0]])
    linear.length = read.frame.length
    linear.data = read.linear
    memcpy(vnet_header(linear), vnet_header(&read.frame), at + VNET_HDR)
    for i in range(1, read.count):
        memcpy(linear.data + at, queue.tx_pages[read.pages[i]], PAGE_SIZE)
        at += PAGE_SIZE
    give_pages(queue, read, 0)


cdef inline bint passes_in_pages(front_queue *queue, scattered_t *read, uint32_t offset,
                                 frame_meta *meta) noexcept nogil:
    """Whether a frame can go from its own pages, and its flags. Pages of padding become free."""
    cdef frame_t *frame = &read.frame
    cdef uint32_t have = min(frame.length, PAGE_SIZE - offset)
    if offset + frame.length > read.count * PAGE_SIZE or frame.length > MAX_NETIF_FRAME:
        return False
    if virtio_to_netif(frame.data, have, &frame.length, vnet_header(frame), queue.caps, meta) != OFFLOAD_PASS:
        return False
    give_pages(queue, read, (offset + frame.length + PAGE_SIZE - 1) // PAGE_SIZE)
    return slots(queue) >= add_hash(queue, frame.data, min(have, frame.length), read.count + extras_count(meta), meta)


cdef void place_in_pages(front_queue *queue, workspace_t *ws, scattered_t *read) noexcept nogil:
    """Write one frame in pages to the ring; through private memory if it cannot pass as it is."""
    cdef frame_t linear
    cdef frame_meta meta
    cdef uint32_t offset = <uint32_t>(read.frame.data - queue.tx_pages[read.pages[0]])
    if read.frame.length < MIN_FRAME:
        give_pages(queue, read, 0)
        queue.link.counters[TX_DROPPED] += read.frame.length != 0        # otherwise the peer has counted it
    elif queue.backlog.count == 0 and passes_in_pages(queue, read, offset, &meta):
        put_frame(queue, read.pages, offset, read.frame.length, &meta)
    else:
        gather(queue, read, &linear)
        place_or_keep(queue, ws, &linear)


# --- reading

cdef inline void prepare(front_queue *queue, scattered_t *read, uint8_t *private, iovec *vectors,
                         uint32_t pages) noexcept nogil:
    """Prepare the buffers of the next frame: this many pages, the first with headroom, then private memory."""
    cdef uint32_t page, header = queue.link.source.header
    cdef uint32_t paged = FIRST_BYTES + (pages - 1) * PAGE_SIZE
    for page in range(pages):
        read.pages[page] = take_page(queue)
        vectors[page].iov_base = queue.tx_pages[read.pages[page]]
        vectors[page].iov_len = PAGE_SIZE
    read.count = pages
    read.frame.data = queue.tx_pages[read.pages[0]] + FRAME_HEADROOM
    vectors[0].iov_base = read.frame.data - header
    vectors[0].iov_len = FIRST_BYTES + header
    read.linear = private
    vectors[pages].iov_base = private + paged
    vectors[pages].iov_len = FRAME_BYTES - VLAN_TAG - paged


cdef inline void note_size(front_queue *queue, uint32_t length) noexcept nogil:
    """A frame had several slots: provide for more of them."""
    if length > FIRST_BYTES:
        queue.tx_large = LARGE_BURSTS


cdef inline void note_losses(front_queue *queue, int got) noexcept nogil:
    """Count the frames that a read could not return."""
    cdef peer_t *peer = queue.link.source
    queue.link.counters[TX_FAULTS] += got < 0
    queue.link.counters[TX_SHORT] += peer.short_frames
    queue.link.counters[TX_TRUNCATED] += peer.truncated
    peer.short_frames = peer.truncated = 0


cdef inline void release_unused(front_queue *queue, scattered_t *reads, int got, int count) noexcept nogil:
    """Free the pages that the frames of a read did not fill, before any of them is placed."""
    cdef int i
    for i in range(count):
        give_pages(queue, &reads[i], pages_filled(&reads[i]) if i < got else 0)
        if i < got:
            note_size(queue, reads[i].frame.length)


cdef int read_into_pages(front_queue *queue, workspace_t *ws, int count) noexcept nogil:
    """Read frames into granted pages and place them. Returns how many came, -1 if the peer refuses."""
    cdef scattered_t reads[BURST_FRAMES]
    cdef received_t received[BURST_FRAMES]
    cdef iovec vectors[VECTORS]
    cdef peer_t *peer = queue.link.source
    cdef uint8_t *private = ws.arena + FRAME_HEADROOM
    cdef uint32_t pages = min(room(queue), <uint32_t>(FRAME_PAGES if queue.tx_large else 1))
    cdef int i, got
    for i in range(count):
        prepare(queue, &reads[i], private, &vectors[i * (pages + 1)], pages)
        private += FRAME_STRIDE
    got = peer.read(peer, vectors, pages + 1, received, count)
    for i in range(got):
        reads[i].frame.length = received[i].length
        if not peer.header:
            memset(vnet_header(&reads[i].frame), 0, VNET_HDR)
    release_unused(queue, reads, got, count)
    for i in range(got):
        if received[i].tag and reads[i].frame.length >= 12:
            restore_tag(&reads[i].frame, received[i].tag, peer.header != 0)
            reads[i].linear -= VLAN_TAG
        place_in_pages(queue, ws, &reads[i])
    return got


cdef int read_into_arena(front_queue *queue, workspace_t *ws, int count) noexcept nogil:
    """The same through private memory, for backends without scatter-gather and rings that use few slots at a time."""
    cdef peer_t *peer = queue.link.source
    cdef int i, got = peer.receive(peer, ws.arena, FRAME_BYTES, ws.frames, count)
    for i in range(got):
        note_size(queue, ws.frames[i].length)
        place_or_keep(queue, ws, &ws.frames[i])
    if peer.release != NULL:
        peer.release(peer)
    return got


cdef inline uint32_t frames_at_once(front_queue *queue) noexcept nogil:
    """The number of frames that probably fit; one at a time while the peer returns frames that must be segmented."""
    cdef uint32_t each = FULL_FRAME_SLOTS if queue.tx_large else 1
    if queue.tx_single_reads:
        queue.tx_single_reads -= 1
        return 1
    return max(<uint32_t>1, room(queue) // each)


cdef void collect(front_queue *queue, workspace_t *ws, bint *drained) noexcept nogil:
    """Read and place frames until the peer, the slots or the burst's budget are used up."""
    cdef uint64_t *moved = &queue.link.counters[TX_BYTES]
    cdef uint64_t enough = moved[0] + BURST_BYTES
    cdef uint32_t taken = 0
    cdef int count, got
    cdef bint direct
    while taken < BURST_FRAMES and room(queue) and moved[0] < enough and queue.backlog.count == 0:
        count = min(frames_at_once(queue), <uint32_t>BURST_FRAMES - taken)
        direct = queue.direct and queue.link.source.read != NULL
        got = read_into_pages(queue, ws, count) if direct else read_into_arena(queue, ws, count)
        queue.tx_large -= queue.tx_large != 0
        note_losses(queue, got)
        if got < count:
            drained[0] = True
            break
        taken += got


# --- the ring

cdef void publish(front_queue *queue, uint32_t first) noexcept nogil:
    """One push for the burst, at most one notify."""
    cdef uint64_t *counters = queue.link.counters
    if queue.tx.req_prod == first:
        return
    counters[TX_SLOTS] += <uint32_t>(queue.tx.req_prod - first)
    counters[TX_BURSTS] += 1
    if front_push(&queue.tx):
        counters[TX_NOTIFIES] += 1
        queue.link.peer_to_ring.notify = True


cdef int wait_for_slots(front_queue *queue, uint32_t needed, bint moved) noexcept nogil:
    """Ask for an event when a quarter of our requests is answered, or more if the current frame needs more, then check
    again: the backend works on the rest while we wake up."""
    cdef link_t *link = &queue.link
    cdef uint32_t sent = queue.tx.req_prod - queue.tx.rsp_cons
    cdef uint32_t most = slots_at_a_time(queue.tx_slots, queue.tx_large)
    cdef uint32_t wanted = max(sent + needed - most, (sent + 3) // 4)
    cdef int pending = front_arm(&queue.tx, wanted)
    if pending < 0:
        return break_link(link, REASON_RESPONSE)
    if <uint32_t>pending >= wanted:
        return STATE_PEER_MORE
    if lacks_slots(link.peer_to_ring.state) and not moved:
        if link.peer_to_ring.state == STATE_NO_SLOTS_LONG and coarse_ns() >= queue.waits_since + STALL:
            return STATE_STALLED
        return link.peer_to_ring.state
    queue.waits_since = coarse_ns()
    link.counters[TX_STALLS] += 1
    return STATE_NO_SLOTS


cdef int poll_front_tx(link_t *link, workspace_t *ws) noexcept nogil:
    """Serve one burst from the peer; returns the direction's next state (states.py)."""
    cdef front_queue *queue = <front_queue *>link
    cdef uint32_t first = queue.tx.req_prod
    cdef uint32_t answered = queue.tx.rsp_cons
    cdef uint32_t needed
    cdef bint moved, drained = False
    if not reap(queue):
        return break_link(link, REASON_RESPONSE)
    place_backlog(queue, ws)
    if queue.backlog.count == 0:
        collect(queue, ws, &drained)
    publish(queue, first)
    moved = queue.tx.req_prod != first or queue.tx.rsp_cons != answered or drained
    link.peer_to_ring.progress += moved
    if queue.backlog.count == 0 and drained and link.source.more:
        return STATE_PEER_MORE
    if queue.backlog.count == 0 and drained:
        return STATE_PEER_CLOSED if link.source.condition == PEER_CLOSED else STATE_PEER_IDLE
    needed = queue.needed if queue.backlog.count else 1
    return STATE_PEER_MORE if room(queue) >= needed else wait_for_slots(queue, needed, moved)
