# SPDX-License-Identifier: Apache-2.0
"""A guest's RX ring to the network behind it: one burst, in a frame's order.

    take      make private copies of the pending responses
    read      turn responses into chains (frames), each checked against the posted requests
    forward   send frames to the peer from their pages; complete checksums and segment where the peer cannot
    repost    return the buffers to the ring in the same burst: one push, at most one notify

Headers are judged in private copies, since the backend may still write to the pages. What a full peer does not accept
stays in the ring.

Errors: a response is impossible (the link breaks), the backend answered ERROR (that frame is lost and counted).
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from netback.dataplane.abi cimport (
    EXTRA_TYPE_HASH, EXTRA_TYPE_XDP, GSO_TYPE_NONE, MIN_FRAME, NETIF_RSP_DROPPED, NETIF_RSP_ERROR, NETIF_RSP_OKAY,
    NETRXF_csum_blank, NETRXF_data_validated, NETRXF_extra_info, NETRXF_more_data, PAGE_SIZE, RING_HEADER,
    RING_SLOTS, RX_SLOT, rx_request, rx_response, virtio_net_hdr,
)
from netback.dataplane.checksum cimport complete_checksum
from netback.dataplane.extras cimport EXTRAS_OKAY, EXTRAS_RX, clear_meta, frame_meta, read_extras, same_hash
from netback.dataplane.front.queue cimport LARGE_BURSTS, front_queue, slots_at_a_time
from netback.dataplane.headers cimport HEADERS_MAX
from netback.dataplane.offload cimport (
    OFFLOAD_COMPLETE, OFFLOAD_DROP, OFFLOAD_PASS, OFFLOAD_SEGMENT, netif_to_virtio,
)
from netback.dataplane.link cimport (
    REASON_NONE, REASON_RESPONSE, RX_BURSTS, RX_BYTES, RX_COMPLETED, RX_DROPPED, RX_ERRORS, RX_FRAMES, RX_FULL,
    RX_HASH_WRONG, RX_HASHED, RX_NOTIFIES, RX_REFUSED, RX_SEGMENTED, RX_SLOTS, STATE_RING_IDLE, STATE_RING_MORE,
    break_link, link_t, peer_refuses,
)
from netback.dataplane.peers.peer cimport BURST_FRAMES, FRAME_BYTES, FRAME_HEADROOM, VNET_HDR, frame_t, vnet_header
from netback.dataplane.send cimport (
    SEGMENTS_BLOCKED, SEGMENTS_DONE, SEGMENTS_IMPOSSIBLE, SEGMENTS_PAUSED, send_segments, send_vectors,
)
from netback.dataplane.workspace cimport BURST_BYTES, MAX_DATA_SLOTS, POLL_SEGMENTS, chain_t, workspace_t
from netback.dataplane.ring cimport compiler_fence, front_arm, front_pending, front_push, rx_slot
from netback.dataplane.sockets cimport iovec
from netback.dataplane.toeplitz cimport hash_frame

cdef enum:
    VECTORS = RING_SLOTS + BURST_FRAMES          # of a burst: a slot's data, and before each frame its headers


cdef struct outgoing_t:          # messages for the peer, and which chain each of them is
    int count
    uint32_t used                # vectors
    uint32_t chain[BURST_FRAMES]
    uint32_t first[BURST_FRAMES + 1]             # vector of each message
    iovec vectors[VECTORS]


# --- responses

cdef inline void take(front_queue *queue, workspace_t *ws, uint32_t count) noexcept nogil:
    """Copy `count` pending responses out of the shared page, once."""
    cdef uint32_t at = queue.rx.rsp_cons & (RING_SLOTS - 1)
    cdef uint32_t run = min(count, RING_SLOTS - at)
    cdef uint8_t *slots = <uint8_t *>queue.rx.shared + RING_HEADER
    memcpy(ws.bodies, slots + at * RX_SLOT, run * RX_SLOT)
    memcpy(ws.bodies + run * RX_SLOT, slots, (count - run) * RX_SLOT)
    compiler_fence()             # after the copies: the compiler must not read the page again for them


cdef inline rx_response *response(workspace_t *ws, uint32_t at) noexcept nogil:
    return <rx_response *>ws.bodies + at


cdef inline uint8_t *page_of(front_queue *queue, uint32_t at) noexcept nogil:
    """The page that was posted in the slot of the `at`-th response."""
    return queue.rx_pages[(queue.rx.rsp_cons + at) & (RING_SLOTS - 1)]


cdef inline bint take_data(front_queue *queue, workspace_t *ws, uint32_t at, chain_t *chain) noexcept nogil:
    """Read one data slot: it must answer the request posted there, and stay within its page.

    Linux's backend says the XDP headroom in the extra info alone: each slot then has offset 0 and counts the headroom.
    """
    cdef rx_response *slot = response(ws, at)
    if slot.id != (queue.rx.rsp_cons + at) & (RING_SLOTS - 1):
        return False
    if slot.status < 0:
        chain.status = NETIF_RSP_ERROR
        return True
    if chain.headroom:
        if <uint32_t>slot.status < chain.headroom:
            return False
        slot.offset += chain.headroom
        slot.status -= chain.headroom
    chain.length += slot.status
    return <uint32_t>slot.offset + slot.status <= PAGE_SIZE


cdef inline bint take_chain(front_queue *queue, workspace_t *ws, uint32_t pending, chain_t *chain) noexcept nogil:
    """Read one frame's responses; False if the responses are impossible."""
    cdef rx_response *slot = response(ws, chain.segment)
    chain.slots = 1
    chain.extras = 0
    chain.length = 0
    chain.fixed_up = chain.hash_wrong = 0
    chain.headroom = 0
    chain.status = NETIF_RSP_OKAY
    chain.flags = slot.flags
    clear_meta(&chain.meta)
    chain.meta.csum_blank = (slot.flags & NETRXF_csum_blank) != 0
    chain.meta.data_validated = (slot.flags & NETRXF_data_validated) != 0
    if slot.flags & NETRXF_extra_info:
        if read_extras(<uint8_t *>(slot + 1), sizeof(rx_response), pending - chain.segment - 1, EXTRAS_RX,
                       &chain.meta, &chain.extras) != EXTRAS_OKAY:
            return False
        chain.slots += chain.extras
        if chain.meta.extras >> EXTRA_TYPE_XDP & 1 and slot.offset == 0:
            chain.headroom = chain.meta.xdp_headroom
    if not take_data(queue, ws, chain.segment, chain):
        return False
    while slot.flags & NETRXF_more_data:
        if chain.segment + chain.slots >= pending or chain.slots - chain.extras == MAX_DATA_SLOTS:
            return False
        slot = response(ws, chain.segment + chain.slots)
        if not take_data(queue, ws, chain.segment + chain.slots, chain):
            return False
        chain.slots += 1
    return chain.length <= FRAME_BYTES


cdef uint32_t read_chains(front_queue *queue, workspace_t *ws, uint32_t pending, int *broken) noexcept nogil:
    """Turn responses into chains, no more than a burst's budget, so that the backend has buffers while we send;
    chain.segment is the first response of each."""
    cdef uint32_t count = 0
    cdef uint32_t at = 0
    cdef uint32_t size = 0
    cdef uint32_t segments = 0
    while count < BURST_FRAMES and at < pending and size < BURST_BYTES and segments < POLL_SEGMENTS:
        ws.chains[count].segment = at
        if not take_chain(queue, ws, pending, &ws.chains[count]):
            broken[0] = REASON_RESPONSE
            break
        at += ws.chains[count].slots
        size += ws.chains[count].length
        segments += ws.chains[count].length // ws.chains[count].meta.gso_size if ws.chains[count].meta.gso_size else 0
        count += 1
    return count


# --- frames

cdef uint32_t gather(front_queue *queue, workspace_t *ws, chain_t *chain, uint8_t *to,
                     uint32_t limit) noexcept nogil:
    """Copy the beginning of a frame to private memory; returns the number of bytes."""
    cdef uint32_t i, size, at = 0
    cdef rx_response *slot
    for i in range(chain.slots):
        if 0 < i <= chain.extras:
            continue
        slot = response(ws, chain.segment + i)
        size = min(<uint32_t>slot.status, limit - at)
        memcpy(to + at, page_of(queue, chain.segment + i) + slot.offset, size)
        at += size
    return at


cdef void put_data(front_queue *queue, workspace_t *ws, outgoing_t *out, chain_t *chain,
                   uint32_t skip) noexcept nogil:
    """A frame's bytes from `skip` on, in the pages that hold them."""
    cdef uint32_t i, passed, size, rest = chain.length - skip
    cdef rx_response *slot
    for i in range(chain.slots):
        if 0 < i <= chain.extras:
            continue
        slot = response(ws, chain.segment + i)
        passed = min(skip, <uint32_t>slot.status)
        skip -= passed
        size = min(<uint32_t>slot.status - passed, rest)
        rest -= size
        if size:
            out.vectors[out.used].iov_base = page_of(queue, chain.segment + i) + slot.offset + passed
            out.vectors[out.used].iov_len = size
            out.used += 1


cdef void put_message(front_queue *queue, workspace_t *ws, outgoing_t *out, chain_t *chain,
                      frame_t *head) noexcept nogil:
    """Build a message: the peer's header with the private `head` of the frame, then the rest from its pages."""
    cdef uint32_t header = queue.link.peer.header
    out.first[out.count] = out.used
    if header + head.length:
        out.vectors[out.used].iov_base = head.data - header
        out.vectors[out.used].iov_len = header + head.length
        out.used += 1
    put_data(queue, ws, out, chain, head.length)
    out.count += 1
    out.first[out.count] = out.used


cdef bint flush(front_queue *queue, outgoing_t *out, uint32_t *done) noexcept nogil:
    """Send the messages built so far. False if the peer became full: then *done is the chain that it did not take."""
    cdef int refused = 0
    cdef int sent = 0
    if out.count:
        sent = send_vectors(&queue.link, out.vectors, out.first, out.count, &refused)
    queue.link.counters[RX_REFUSED] += refused
    if sent < out.count:
        done[0] = out.chain[sent]
        return False
    out.count = 0
    out.used = 0
    return True


cdef int forward_segments(front_queue *queue, workspace_t *ws, frame_t *frame) noexcept nogil:
    """Send a frame in segments; returns a SEGMENTS_*. If it is not done, the ring keeps the frame, and
    rx_segments_sent the position in it.
    """
    cdef int refused = 0
    cdef int done = send_segments(&queue.link, ws, frame, &queue.rx_segments_sent, &refused)
    queue.link.counters[RX_REFUSED] += refused
    queue.link.counters[RX_DROPPED] += done == SEGMENTS_IMPOSSIBLE
    queue.link.counters[RX_SEGMENTED] += done == SEGMENTS_DONE
    return done


cdef inline bint has_hash(front_queue *queue, chain_t *chain) noexcept nogil:
    """Whether a frame comes with a hash that can be compared."""
    return queue.hash != NULL and chain.meta.extras >> EXTRA_TYPE_HASH & 1


cdef void check_hash(front_queue *queue, chain_t *chain, frame_t *head) noexcept nogil:
    """Compare a frame's hash extra with the hash of its headers. It is only a hint, so the frame passes anyway."""
    cdef frame_meta own
    clear_meta(&own)
    hash_frame(queue.hash, head.data, head.length, &own)
    chain.hash_wrong = not same_hash(&own, &chain.meta)


cdef int offload(front_queue *queue, workspace_t *ws, chain_t *chain, frame_t *head) noexcept nogil:
    """Fill in the header. A frame that the peer cannot accept unchanged is gathered in private memory, and completed if
    only that is missing. Returns PASS, SEGMENT or DROP."""
    cdef uint32_t caps = queue.link.peer.caps
    cdef virtio_net_hdr *hdr = vnet_header(head)
    cdef uint8_t fixed_up
    cdef int verdict
    head.length = 0
    if chain.meta.csum_blank or chain.meta.gso_type != GSO_TYPE_NONE or has_hash(queue, chain):
        head.length = gather(queue, ws, chain, head.data, HEADERS_MAX)
    if has_hash(queue, chain):
        check_hash(queue, chain, head)
    verdict = netif_to_virtio(head.data, head.length, &chain.length, &chain.meta, caps, hdr, &fixed_up)
    if verdict == OFFLOAD_COMPLETE or verdict == OFFLOAD_SEGMENT:
        # Judge the whole private copy again: the backend may have changed its pages since.
        head.length = gather(queue, ws, chain, head.data, FRAME_BYTES)
        verdict = netif_to_virtio(head.data, head.length, &head.length, &chain.meta, caps, hdr, &fixed_up)
        chain.length = head.length
    if verdict == OFFLOAD_COMPLETE:
        complete_checksum(head.data, head.length, hdr)
        memset(hdr, 0, VNET_HDR)
        chain.fixed_up = 1
        return OFFLOAD_PASS
    return verdict


cdef uint32_t forward(front_queue *queue, workspace_t *ws, uint32_t chains, int *state) noexcept nogil:
    """Send the good chains to the peer in order; returns how many are done. If fewer than all, `state` has the cause,
    MORE if this poll's segments are used up.
    """
    cdef outgoing_t out
    cdef frame_t head
    cdef chain_t *chain
    cdef uint32_t i, done = chains
    cdef int verdict, outcome
    ws.segments_left = POLL_SEGMENTS
    state[0] = STATE_RING_MORE
    out.count = 0
    out.used = 0
    head.data = ws.arena + FRAME_HEADROOM
    for i in range(chains):
        chain = &ws.chains[i]
        if i:
            queue.rx_segments_sent = 0   # applies only to the ring's first frame
        if chain.status != NETIF_RSP_OKAY:
            continue
        verdict = offload(queue, ws, chain, &head) if chain.length >= MIN_FRAME else OFFLOAD_DROP
        if verdict == OFFLOAD_PASS:
            out.chain[out.count] = i
            put_message(queue, ws, &out, chain, &head)
            head.data += (head.length + FRAME_HEADROOM + 63) & ~<uint32_t>63
        elif verdict == OFFLOAD_SEGMENT:
            if not flush(queue, &out, &done):
                state[0] = peer_refuses(&queue.link)
                return done
            outcome = forward_segments(queue, ws, &head)
            if outcome == SEGMENTS_BLOCKED:
                state[0] = peer_refuses(&queue.link)
            if outcome == SEGMENTS_BLOCKED or outcome == SEGMENTS_PAUSED:
                return i
        else:
            chain.status = NETIF_RSP_DROPPED
    queue.rx_segments_sent = 0   # no segmentation is in progress: the backend changed the frame after it began
    if not flush(queue, &out, &done):
        state[0] = peer_refuses(&queue.link)
    return done


# --- the ring

cdef void post_buffers(front_queue *queue) noexcept nogil:
    """Post the buffers of all free slots."""
    cdef rx_request *request
    cdef uint32_t at, most = slots_at_a_time(queue.rx_slots, queue.rx_large)
    while <uint32_t>(queue.rx.req_prod - queue.rx.rsp_cons) < most:
        at = queue.rx.req_prod & (RING_SLOTS - 1)
        request = <rx_request *>rx_slot(queue.rx.shared, at)
        request.id = <uint16_t>at
        request.pad = 0
        request.gref = queue.rx_grefs[at]
        queue.rx.req_prod += 1


cdef void repost(front_queue *queue, workspace_t *ws, uint32_t chains) noexcept nogil:
    """The first `chains` are done: their buffers go back to the backend."""
    cdef uint64_t *counters = queue.link.counters
    cdef uint32_t i, slots = 0
    cdef chain_t *chain
    queue.rx_large -= queue.rx_large != 0
    for i in range(chains):
        chain = &ws.chains[i]
        slots += chain.slots
        if chain.slots > 1:
            queue.rx_large = LARGE_BURSTS
        counters[RX_FRAMES] += chain.status == NETIF_RSP_OKAY
        counters[RX_BYTES] += chain.length if chain.status == NETIF_RSP_OKAY else 0
        counters[RX_ERRORS] += chain.status == NETIF_RSP_ERROR
        counters[RX_DROPPED] += chain.status == NETIF_RSP_DROPPED
        counters[RX_COMPLETED] += chain.fixed_up
        counters[RX_HASHED] += chain.meta.extras >> EXTRA_TYPE_HASH & 1
        counters[RX_HASH_WRONG] += chain.hash_wrong
    if slots == 0:
        return
    counters[RX_SLOTS] += slots
    counters[RX_BURSTS] += 1
    queue.rx.rsp_cons += slots
    post_buffers(queue)
    if front_push(&queue.rx) and queue.rx_notify:
        counters[RX_NOTIFIES] += 1
        queue.link.ring_to_peer.notify = True


cdef int poll_front_rx(link_t *link, workspace_t *ws) noexcept nogil:
    """Serve one burst of the RX ring; returns the direction's next state (states.py)."""
    cdef front_queue *queue = <front_queue *>link
    cdef int state, broken = REASON_NONE
    cdef int pending = front_pending(&queue.rx)
    cdef uint32_t chains, done
    if pending == 0:
        pending = front_arm(&queue.rx, 1)
    if pending < 0:
        return break_link(link, REASON_RESPONSE)
    if pending == 0:
        return STATE_RING_IDLE
    take(queue, ws, pending)
    chains = read_chains(queue, ws, pending, &broken)
    done = forward(queue, ws, chains, &state)
    repost(queue, ws, done)
    if done < chains:
        link.counters[RX_FULL] += state != STATE_RING_MORE
        return state
    return break_link(link, broken) if broken != REASON_NONE else STATE_RING_MORE
