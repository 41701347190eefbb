# SPDX-License-Identifier: Apache-2.0
"""Guest to network: one burst from the TX ring to the peer. Read it top to bottom, as a frame goes:

    take      make private copies of the pending requests (XSA-155)
    read      turn requests into chains (frames) and validate each (netif.h)
    limit     leave the frames for which a rate-limited vif has no credit yet
    copy      bring their bytes to private memory by grant copies
    forward   complete checksums and segment where the peer cannot, then send to the peer
    respond   change the multicast list, then write one response per slot, in ring order, through the journal

A request is taken when it is answered: what the peer does not accept stays in the ring and is copied again. Only for a
frame sent in segments the number of segments sent is kept. A request with an MCAST extra is no frame: it changes the
guest's multicast list, and its other fields mean nothing, as in Linux's backend.

Errors: the guest's indices or chains are impossible (the link breaks, others continue), a chain is malformed (its slots
are answered ERROR), the peer is full or busy (the rest of the burst stays in the ring).
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from netback.dataplane.abi cimport (
    EXTRA_TYPE_HASH, EXTRA_TYPE_MCAST_ADD, GNTCOPY_source_gref, GNTST_okay, MIN_FRAME, NETIF_RSP_ERROR,
    NETIF_RSP_NULL, NETIF_RSP_OKAY, NETTXF_csum_blank, NETTXF_data_validated, NETTXF_extra_info, NETTXF_more_data,
    PAGE_SIZE, RING_HEADER, RING_SLOTS, TX_SLOT, copy_segment, tx_request, tx_response,
)
from netback.dataplane.back.queue cimport back_queue
from netback.dataplane.capture cimport FRAME_TX, capture_frame, frame_record_t
from netback.dataplane.checksum cimport complete_checksum
from netback.dataplane.clock cimport now_ns
from netback.dataplane.credit cimport credit_claim, credit_settle
from netback.dataplane.extras cimport EXTRAS_KNOWN, EXTRAS_MULTICAST, EXTRAS_OKAY, clear_meta, read_extras
from netback.dataplane.flight cimport flight_claim, flight_copies, flight_slots
from netback.dataplane.journal cimport kill_point, push_responses
from netback.dataplane.link cimport (
    REASON_EXTRA, REASON_GSO, REASON_NONE, REASON_SLOTS, REASON_TRUNCATED, REASON_TX_INDEX, STATE_NO_CREDIT,
    STATE_RING_IDLE, STATE_RING_MORE, TX_BURSTS, TX_BYTES, TX_COMPLETED, TX_COPIES, TX_DROPPED, TX_ERRORS,
    TX_FIXED_UP, TX_FRAMES, TX_FULL, TX_HASHED, TX_MULTICAST, TX_MULTICAST_FULL, TX_NOTIFIES, TX_REFUSED,
    TX_SEGMENTED, TX_SLOTS, TX_STAGED, TX_THROTTLED, break_link, link_t, peer_refuses,
)
from netback.dataplane.offload cimport OFFLOAD_COMPLETE, OFFLOAD_PASS, OFFLOAD_SEGMENT, netif_to_virtio
from netback.dataplane.peers.peer cimport (
    BURST_FRAMES, FRAME_HEADROOM, FRAME_STRIDE, VNET_HDR, frame_t, vnet_header,
)
from netback.dataplane.record cimport RECORD_TX_SLOT, record, record_t
from netback.dataplane.ring cimport back_arm, back_pending, compiler_fence
from netback.dataplane.send cimport (
    SEGMENTS_BLOCKED, SEGMENTS_DONE, SEGMENTS_IMPOSSIBLE, SEGMENTS_PAUSED, send_frames, send_segments,
)
from netback.dataplane.settings cimport multicast_add, multicast_remove
from netback.dataplane.staged cimport copy_segments
from netback.dataplane.workspace cimport (
    BURST_BYTES, CHAIN_MULTICAST, MAX_DATA_SLOTS, POLL_SEGMENTS, chain_t, workspace_t,
)

cdef enum:
    CHAIN_BYTES = BURST_BYTES + FRAME_STRIDE     # of the frames of a burst: the last one begins within the budget

cdef int[4] extras_reason = [REASON_NONE, REASON_TRUNCATED, REASON_EXTRA, REASON_GSO]    # by EXTRAS_*


# --- poll: one burst

cdef int poll_tx(link_t *link, workspace_t *ws) noexcept nogil:
    """Serve one burst of the TX ring; returns the direction's next state (states.py)."""
    cdef back_queue *queue = <back_queue *>link
    cdef int state = STATE_RING_MORE
    cdef int pending, broken = REASON_NONE
    cdef uint32_t chains, allowed, done
    cdef uint8_t *memory
    pending = back_pending(&queue.tx)
    if pending == 0 and link.poll_follows:
        return STATE_RING_MORE   # while the other direction continues, this one needs no events
    if pending == 0:
        pending = back_arm(&queue.tx, 1)
    if pending < 0:
        return break_link(link, REASON_TX_INDEX)
    if pending == 0:
        return STATE_RING_IDLE
    take(queue, ws, pending)
    memory = link.peer.room(link.peer, CHAIN_BYTES) if link.peer.room != NULL else NULL
    chains = read_chains(queue, ws, memory if memory != NULL else ws.packed, pending, &broken)
    allowed = chains if link.ring_to_peer.allowance.credit == NULL else limit(queue, ws, chains)
    if allowed == 0 and chains:
        link.counters[TX_THROTTLED] += 1
        return STATE_NO_CREDIT
    copy(queue, ws, allowed)
    done = forward(queue, ws, allowed, &state)
    respond(queue, ws, done)
    if done < allowed:
        link.counters[TX_FULL] += state != STATE_RING_MORE
        return state
    if allowed < chains:
        link.counters[TX_THROTTLED] += 1
        return STATE_NO_CREDIT
    return break_link(link, broken) if broken != REASON_NONE else STATE_RING_MORE


# --- take: private copies

cdef inline void take(back_queue *queue, workspace_t *ws, uint32_t count) noexcept nogil:
    """Copy `count` pending requests out of the shared page, once."""
    cdef uint32_t at = queue.tx.rsp_prod & (RING_SLOTS - 1)
    cdef uint32_t run = min(count, RING_SLOTS - at)
    cdef uint8_t *slots = <uint8_t *>queue.tx.shared + RING_HEADER
    memcpy(ws.requests, slots + at * TX_SLOT, run * TX_SLOT)
    memcpy(ws.requests + run, slots, (count - run) * TX_SLOT)
    compiler_fence()             # after the copies: the compiler must not read the page again for them
    if queue.link.flight != NULL:
        flight_slots(queue.link.flight, ws.requests, count, TX_SLOT)


# --- read: chains, validated

cdef inline int read_chain(workspace_t *ws, uint32_t at, uint32_t available, chain_t *chain) noexcept nogil:
    """Read one frame's slots: the first request's size is the frame's, the others' are their own (netif.h)."""
    cdef tx_request *first = &ws.requests[at]
    cdef tx_request *request = first
    cdef uint32_t others = 0
    cdef uint32_t data_slots = 1
    cdef int outcome
    cdef bint bad = first.size < MIN_FRAME
    chain.slots = 1
    chain.extras = 0
    chain.flags = first.flags
    chain.length = first.size
    clear_meta(&chain.meta)
    chain.meta.csum_blank = (first.flags & NETTXF_csum_blank) != 0
    chain.meta.data_validated = (first.flags & NETTXF_data_validated) != 0
    chain.fixed_up = chain.completed = chain.dropped = 0
    chain.segments = 0
    if first.flags & NETTXF_extra_info:
        outcome = read_extras(<uint8_t *>(first + 1), sizeof(tx_request), available - 1, EXTRAS_KNOWN, &chain.meta,
                              &chain.extras)
        chain.slots += chain.extras
        if outcome != EXTRAS_OKAY:
            return extras_reason[outcome]
        if chain.meta.extras & EXTRAS_MULTICAST:
            chain.status = CHAIN_MULTICAST
            ws.multicast_changes += 1
            return REASON_NONE
    while request.flags & NETTXF_more_data:
        if data_slots > MAX_DATA_SLOTS:
            return REASON_SLOTS
        if chain.slots >= available:
            return REASON_TRUNCATED
        request = &ws.requests[at + chain.slots]
        chain.slots += 1
        data_slots += 1
        others += request.size
        bad |= <uint32_t>request.offset + request.size > PAGE_SIZE
    bad |= data_slots > MAX_DATA_SLOTS or others > chain.length
    bad |= <uint32_t>first.offset + chain.length - others > PAGE_SIZE
    first.size = <uint16_t>(chain.length - others) if not bad else first.size
    chain.status = NETIF_RSP_ERROR if bad else NETIF_RSP_OKAY
    return REASON_NONE


cdef inline uint32_t stage_copies(
        back_queue *queue, workspace_t *ws, uint32_t at, chain_t *chain, uint32_t segment) noexcept nogil:
    """Stage the copies that bring a chain into private memory; a zero-length slot contributes nothing (XSA-448)."""
    cdef uint8_t *to = chain.data
    cdef uint32_t i
    cdef tx_request *request
    cdef copy_segment *copy
    for i in range(chain.slots - chain.extras):
        request = &ws.requests[at + (i + chain.extras if i else 0)]
        if request.size == 0:
            continue
        copy = &ws.segments[segment]
        copy.source.foreign.ref = request.gref
        copy.source.foreign.offset = request.offset
        copy.source.foreign.domid = queue.memory.domid
        copy.dest.virt = to
        copy.len = request.size
        copy.flags = GNTCOPY_source_gref
        to += request.size
        segment += 1
    chain.segments = segment - chain.segment
    return segment


cdef uint32_t read_chains(
        back_queue *queue, workspace_t *ws, uint8_t *memory, uint32_t pending, int *broken) noexcept nogil:
    """Turn requests into chains, as many as the burst's budget holds, and stage the copies of their bytes to `memory`,
    of CHAIN_BYTES; a budget never splits a chain. `broken` becomes the reason if a chain is fatal; those before it are
    good.
    """
    cdef uint32_t count = 0
    cdef uint32_t at = 0
    cdef uint32_t segment = 0
    cdef uint32_t used = FRAME_HEADROOM
    cdef uint32_t segments = 0
    cdef chain_t *chain
    ws.multicast_changes = 0
    while count < BURST_FRAMES and at < pending and used < BURST_BYTES and segments < POLL_SEGMENTS:
        chain = &ws.chains[count]
        broken[0] = read_chain(ws, at, pending - at, chain)
        if broken[0] != REASON_NONE:
            break
        if chain.slots - chain.extras > 1:   # the bytes of its second slot begin at a page, as in back/rx
            used += -<uint32_t>(<size_t>(memory + used) + ws.requests[at].size) & (PAGE_SIZE - 1)
        chain.data = memory + used
        chain.segment = segment
        if chain.status == NETIF_RSP_OKAY:
            segment = stage_copies(queue, ws, at, chain, segment)
            used += (chain.length + FRAME_HEADROOM + 63) & ~<uint32_t>63
            segments += chain.length // chain.meta.gso_size if chain.meta.gso_size else 0
        at += chain.slots
        count += 1
    return count


cdef inline void copy(back_queue *queue, workspace_t *ws, uint32_t chains) noexcept nogil:
    """Copy the bytes of the first `chains` chains."""
    cdef uint32_t segments = 0
    cdef uint32_t copies
    if chains:
        segments = ws.chains[chains - 1].segment + ws.chains[chains - 1].segments
    kill_point()
    copies = copy_segments(queue.memory, queue.staged, ws, segments)
    if queue.link.flight != NULL:
        copies = flight_copies(queue.link.flight, ws, chains, segments, copies)
    queue.link.counters[TX_COPIES] += copies
    queue.link.counters[TX_STAGED] += segments - copies


# --- limit: by the vif's credit

cdef uint32_t limit(back_queue *queue, workspace_t *ws, uint32_t chains) noexcept nogil:
    """How many of the chains may pass now. A frame costs the bytes that are counted for it: its first slot's size, so
    that a GSO frame costs the same whether or not it is segmented. A malformed one costs nothing.
    """
    cdef uint32_t costs[BURST_FRAMES]
    cdef uint32_t i
    for i in range(chains):
        costs[i] = ws.chains[i].length if ws.chains[i].status == NETIF_RSP_OKAY else 0
    i = credit_claim(&queue.link.ring_to_peer.allowance, now_ns(), costs, chains)
    if queue.link.flight != NULL:
        i = flight_claim(queue.link.flight, i)
    queue.link.ring_to_peer.due = queue.link.ring_to_peer.allowance.due
    return i


# --- forward: to the peer

cdef inline bint copied(workspace_t *ws, chain_t *chain) noexcept nogil:
    """Whether every byte of the chain was copied: bytes whose copy failed are never sent."""
    cdef uint32_t i
    for i in range(chain.segment, chain.segment + chain.segments):
        if ws.segments[i].status != GNTST_okay:
            return False
    return True


cdef inline int offload(back_queue *queue, chain_t *chain, frame_t *frame) noexcept nogil:
    """Fill in the frame's header, completing in software what the peer cannot accept; returns PASS, SEGMENT or DROP."""
    cdef int verdict = netif_to_virtio(
        frame.data, frame.length, &frame.length, &chain.meta, queue.link.peer.caps, vnet_header(frame), &chain.fixed_up
    )
    if verdict == OFFLOAD_COMPLETE:
        complete_checksum(frame.data, frame.length, vnet_header(frame))
        memset(vnet_header(frame), 0, VNET_HDR)
        chain.completed = 1
        return OFFLOAD_PASS
    return verdict


cdef uint32_t send(back_queue *queue, workspace_t *ws, uint32_t count) noexcept nogil:
    """Send the whole frames collected so far; returns how many the peer is done with."""
    cdef int refused = 0
    cdef uint32_t sent = 0
    if count:
        kill_point()
        sent = send_frames(&queue.link, ws.frames, count, &refused)
        kill_point()
        queue.link.counters[TX_REFUSED] += refused
    return sent


cdef int forward_segments(back_queue *queue, workspace_t *ws, frame_t *frame) noexcept nogil:
    """Send a frame in segments; returns a SEGMENTS_*. If it is not done, the ring keeps the frame, and
    tx_segments_sent the position in it.
    """
    cdef int refused = 0
    cdef int done = send_segments(&queue.link, ws, frame, &queue.tx_segments_sent, &refused)
    queue.link.counters[TX_REFUSED] += refused
    queue.link.counters[TX_DROPPED] += done == SEGMENTS_IMPOSSIBLE
    queue.link.counters[TX_SEGMENTED] += done == SEGMENTS_DONE
    return done


cdef uint32_t forward(back_queue *queue, workspace_t *ws, uint32_t chains, int *state) noexcept nogil:
    """Send the good chains to the peer in order; returns how many are done. If fewer than all, `state` has the cause,
    MORE if this poll's segments are used up.
    """
    cdef uint32_t i, sent, count = 0
    cdef chain_t *chain
    cdef frame_t frame
    cdef int verdict, outcome
    ws.segments_left = POLL_SEGMENTS
    for i in range(chains):
        chain = &ws.chains[i]
        if i:
            queue.tx_segments_sent = 0       # applies only to the ring's first frame
        if chain.status != NETIF_RSP_OKAY:
            continue
        if not copied(ws, chain):
            chain.status = NETIF_RSP_ERROR
            continue
        frame.data = chain.data
        frame.length = chain.length
        verdict = offload(queue, chain, &frame)
        if verdict == OFFLOAD_PASS:
            ws.frames[count] = frame
            ws.frame_chain[count] = i
            count += 1
        elif verdict == OFFLOAD_SEGMENT:
            sent = send(queue, ws, count)
            if sent < count:
                state[0] = peer_refuses(&queue.link)
                return ws.frame_chain[sent]
            count = 0
            outcome = forward_segments(queue, ws, &frame)
            if outcome == SEGMENTS_BLOCKED:
                state[0] = peer_refuses(&queue.link)
            if outcome == SEGMENTS_BLOCKED or outcome == SEGMENTS_PAUSED:
                return i
        else:
            chain.dropped = 1
    queue.tx_segments_sent = 0   # no segmentation is in progress: the guest changed the frame after it began
    sent = send(queue, ws, count)
    if sent == count:
        return chains
    state[0] = peer_refuses(&queue.link)
    return ws.frame_chain[sent]


# --- respond: one push

cdef inline void fill_responses(tx_response *bodies, tx_request *requests, chain_t *chain) noexcept nogil:
    """Write a chain's responses: whole slots, NULL for extras, which have no id."""
    cdef uint32_t i
    for i in range(chain.slots):
        bodies[i].zero[0] = bodies[i].zero[1] = 0
        if 0 < i <= chain.extras:
            bodies[i].id = 0
            bodies[i].status = NETIF_RSP_NULL
        else:
            bodies[i].id = requests[i].id
            bodies[i].status = chain.status


cdef void trace_chain(back_queue *queue, workspace_t *ws, chain_t *chain, uint32_t at) noexcept nogil:
    """Write a record of each slot of a good chain."""
    cdef record_t entry
    cdef uint32_t i
    if chain.status != NETIF_RSP_OKAY:
        return
    memset(&entry, 0, sizeof(entry))
    entry.kind = RECORD_TX_SLOT
    for i in range(chain.slots):
        if 0 < i <= chain.extras:
            continue
        entry.index = queue.tx.rsp_prod + at + i
        entry.gref = ws.requests[at + i].gref
        entry.offset = ws.requests[at + i].offset
        entry.size = ws.requests[at + i].size
        entry.flags = ws.requests[at + i].flags
        record(ws, &queue.link, &entry)


cdef void capture_chain(back_queue *queue, workspace_t *ws, chain_t *chain, uint32_t at) noexcept nogil:
    """Pass a frame to the captures of the queue; one that is answered ERROR has no bytes."""
    cdef frame_record_t entry
    if chain.status == CHAIN_MULTICAST:
        return                   # no frame
    memset(&entry, 0, sizeof(entry))
    entry.direction = FRAME_TX
    entry.status = chain.status
    entry.length = chain.length
    entry.index = queue.tx.rsp_prod + at
    entry.gref = ws.requests[at].gref
    entry.offset = ws.requests[at].offset
    entry.flags = chain.flags
    entry.slots = chain.slots
    capture_frame(queue.link.sinks, &ws.captured_at, &entry, &chain.meta, chain.data,
                  chain.length if chain.status == NETIF_RSP_OKAY else 0)


cdef void change_multicast(back_queue *queue, workspace_t *ws, uint32_t chains) noexcept nogil:
    """Make the changes of the multicast list that are answered now, and fill in their status: ERROR if the list is
    full. Where a request has both extras Linux's backend adds, and ignores the other.
    """
    cdef tx_response *bodies = <tx_response *>ws.bodies
    cdef chain_t *chain
    cdef uint32_t i, slots = 0
    for i in range(chains):
        chain = &ws.chains[i]
        if chain.status == CHAIN_MULTICAST:
            bodies[slots].status = NETIF_RSP_OKAY
            if not chain.meta.extras >> EXTRA_TYPE_MCAST_ADD & 1:
                multicast_remove(queue.settings, chain.meta.mcast_del)
            elif not multicast_add(queue.settings, chain.meta.mcast_add):
                bodies[slots].status = NETIF_RSP_ERROR
                queue.link.counters[TX_MULTICAST_FULL] += 1
            queue.link.counters[TX_MULTICAST] += 1
            kill_point()
        slots += chain.slots


cdef void respond(back_queue *queue, workspace_t *ws, uint32_t chains) noexcept nogil:
    """Publish once per burst; the guest is notified after the poll of both directions, if it asked for that."""
    cdef uint64_t *counters = queue.link.counters
    cdef uint64_t bytes_before = counters[TX_BYTES]
    cdef uint32_t i, slots = 0
    cdef chain_t *chain
    for i in range(chains):
        chain = &ws.chains[i]
        fill_responses(<tx_response *>ws.bodies + slots, ws.requests + slots, chain)
        if queue.link.traced:
            trace_chain(queue, ws, chain, slots)
        if queue.link.sinks != NULL:
            capture_chain(queue, ws, chain, slots)
        slots += chain.slots
        counters[TX_FRAMES] += chain.status == NETIF_RSP_OKAY
        counters[TX_BYTES] += chain.length if chain.status == NETIF_RSP_OKAY else 0
        counters[TX_ERRORS] += chain.status == NETIF_RSP_ERROR
        counters[TX_FIXED_UP] += chain.fixed_up
        counters[TX_COMPLETED] += chain.completed
        counters[TX_DROPPED] += chain.dropped
        counters[TX_HASHED] += chain.meta.extras >> EXTRA_TYPE_HASH & 1
    if queue.link.ring_to_peer.allowance.credit != NULL:
        credit_settle(&queue.link.ring_to_peer.allowance, counters[TX_BYTES] - bytes_before)
    if slots == 0:
        return
    if ws.multicast_changes:
        change_multicast(queue, ws, chains)
    counters[TX_SLOTS] += slots
    counters[TX_BURSTS] += 1
    if push_responses(&queue.tx, queue.tx_journal, ws.bodies, slots):
        counters[TX_NOTIFIES] += 1
        queue.link.ring_to_peer.notify = True
