# SPDX-License-Identifier: Apache-2.0
"""Network to queues: one read of a network's descriptor, spread over the inboxes of a vif's queues.

The worker serves a distributor as a link without rings. An inbox is a pair of connected sockets: the distributor
writes to one end, and the other is the source of the queue's frames (link_t.source), on whatever worker it is. So the
kernel holds the frames between two threads, bounds them and wakes the queue. Which queue a frame goes to is one table:
a number of the frame, modulo the table's length, names the entry (netif.h, SET_HASH_MAPPING).

A full inbox drops the frame, which is counted: a queue that takes nothing stops no other one. Each flow's frames go
through one descriptor, one distributor and one inbox, in order. A new table applies between two reads: whatever was
read before has gone to its inbox by then.
"""
from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memset

from netback.dataplane.abi cimport PAGE_SIZE
from netback.dataplane.extras cimport frame_meta
from netback.dataplane.flow cimport flow_number
from netback.dataplane.journal cimport kill_point
from netback.dataplane.link cimport (
    RX_INBOX_FULL, STATE_PEER_CLOSED, STATE_PEER_IDLE, STATE_PEER_MORE, STATE_RING_IDLE, Link, link_t, note_rx_losses,
)
from netback.dataplane.peers.peer cimport LARGE_BYTES, PEER_CLOSED, Peer, frame_t, frame_vectors, peer_t
from netback.dataplane.sockets cimport iovec
from netback.dataplane.toeplitz cimport Toeplitz, hash_frame, toeplitz_t
from netback.dataplane.workspace cimport workspace_t

cdef enum:
    MAX_INBOXES = 256            # vif/features.py: MAX_QUEUES
    READ_FRAMES = 32
    LARGE_FRAMES = 4             # of several pages in one read: more would evict each other from the cache
    NO_INBOX = 0xFFFF


cdef struct distributor_t:       # `link` is first: a link_t * of a distributor is a distributor_t *
    link_t link
    peer_t *inboxes[MAX_INBOXES]
    const toeplitz_t *hash       # whose value is the number of a frame; NULL: that of its flow
    uint16_t table[MAX_INBOXES]  # the inbox of each number modulo `size`
    uint32_t size
    bint large                   # the last read had a frame of several pages


cdef inline uint32_t inbox_of(const distributor_t *own, const frame_t *frame) noexcept nogil:
    """A frame that the guest's hash does not cover has the number 0, as in Linux's backend."""
    cdef frame_meta meta
    cdef uint32_t number
    if own.size == 1:
        return own.table[0]
    if own.hash == NULL:
        return own.table[flow_number(frame.data, frame.length) % own.size]
    memset(meta.hash_value, 0, sizeof(meta.hash_value))
    hash_frame(own.hash, frame.data, frame.length, &meta)
    number = (<uint32_t>meta.hash_value[0] | <uint32_t>meta.hash_value[1] << 8
              | <uint32_t>meta.hash_value[2] << 16 | <uint32_t>meta.hash_value[3] << 24)
    return own.table[number % own.size]


cdef inline void give(distributor_t *own, peer_t *inbox, frame_t *frames, int count) noexcept nogil:
    """Send frames to an inbox; those that it does not take are lost."""
    cdef iovec vectors[READ_FRAMES]
    cdef uint32_t first[READ_FRAMES + 1]
    cdef int refused = 0
    cdef int done
    frame_vectors(inbox, frames, count, vectors, first)
    kill_point()
    done = inbox.send(inbox, vectors, first, count, &refused)
    own.link.counters[RX_INBOX_FULL] += count - done + refused


cdef void distribute(distributor_t *own, frame_t *frames, int count) noexcept nogil:
    """Give each frame to its inbox: all frames of one inbox at once, in order."""
    cdef frame_t chosen[READ_FRAMES]
    cdef uint16_t inbox[READ_FRAMES]
    cdef int i, first, taken
    cdef uint16_t target
    for i in range(count):
        inbox[i] = inbox_of(own, &frames[i])
    for first in range(count):
        target = inbox[first]
        if target == NO_INBOX:
            continue
        taken = 0
        for i in range(first, count):
            if inbox[i] == target:
                inbox[i] = NO_INBOX
                chosen[taken] = frames[i]
                taken += 1
        give(own, own.inboxes[target], chosen, taken)


cdef int poll_network(link_t *link, workspace_t *ws) noexcept nogil:
    """Read once from the network; returns the direction's next state (states.py)."""
    cdef distributor_t *own = <distributor_t *>link
    cdef peer_t *source = link.source
    cdef int count = LARGE_FRAMES if own.large else READ_FRAMES
    cdef int got = source.receive(source, ws.arena, LARGE_BYTES, ws.frames, count)
    note_rx_losses(link, got)
    if got > 0:
        own.large = ws.frames[got - 1].length > PAGE_SIZE
        distribute(own, ws.frames, got)
    if source.release != NULL:
        source.release(source)
    if got == count or source.more:
        return STATE_PEER_MORE
    return STATE_PEER_CLOSED if source.condition == PEER_CLOSED else STATE_PEER_IDLE


cdef int poll_no_ring(link_t *link, workspace_t *ws) noexcept nogil:
    return STATE_RING_IDLE


cdef class Distributor(Link):
    """Spreads the frames that arrive at `peer` over `inboxes`, the sending ends, at most 256, one for each queue.

    A worker serves it like a queue. Until `steer` is called, every frame goes to the first inbox.
    """

    cdef distributor_t own
    cdef tuple inboxes
    cdef Toeplitz hash           # keeps alive what own.hash points to

    def __cinit__(self, Peer peer, inboxes):
        cdef Peer inbox
        self.inboxes = tuple(inboxes)
        if not 1 <= len(self.inboxes) <= MAX_INBOXES:
            raise ValueError(f"a distributor has 1 to {MAX_INBOXES} inboxes")
        self.link = &self.own.link
        self.link.ring_to_peer.poll = poll_no_ring
        self.link.peer_to_ring.poll = poll_network
        self.join(peer, peer)
        for number, inbox in enumerate(self.inboxes):
            self.own.inboxes[<int>number] = inbox.peer
        self.own.size = 1

    def steer(self, table: Sequence[int], Toeplitz hash: Toeplitz | None) -> None:
        """Use this table of inboxes from the next read on; for the worker's thread, once a worker serves it.

        `hash` gives the number that selects an entry; None: the number of the frame's flow does. ValueError: an entry
        names no inbox, or the table has no entry or more than 256.
        """
        if not 1 <= len(table) <= MAX_INBOXES or not all(0 <= inbox < len(self.inboxes) for inbox in table):
            raise ValueError(f"a table has 1 to {MAX_INBOXES} entries, each an inbox")
        for number, inbox in enumerate(table):
            self.own.table[<int>number] = inbox
        self.own.size = len(table)
        self.own.hash = NULL if hash is None else &hash.hash
        self.hash = hash
