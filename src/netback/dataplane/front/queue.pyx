# SPDX-License-Identifier: Apache-2.0
"""A frontend's queue: its two rings, its granted pages and the peer behind it, combined for the worker.

front/tx and front/rx move frames, the worker decides when; frontend/ has grants, event channels and the store.
"""
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from netback.dataplane.abi cimport (
    CTRL_SLOT, CTRL_SLOTS, EXTRA_TYPE_MCAST_ADD, EXTRA_TYPE_MCAST_DEL, MAC_BYTES, NETIF_RSP_NULL, PAGE_SIZE,
    RING_HEADER, RING_SLOTS,
)
from netback.dataplane.backlog cimport backlog_free, backlog_init
from netback.dataplane.platform.events cimport Events
from netback.dataplane.front.queue cimport LARGE_BURSTS
from netback.dataplane.front.rx cimport post_buffers, poll_front_rx
from netback.dataplane.extras cimport clear_meta, frame_meta
from netback.dataplane.front.tx cimport poll_front_tx, reap, send_change
from netback.dataplane.peers.peer cimport BURST_FRAMES, Peer
from netback.dataplane.link cimport ring_indices
from netback.dataplane.toeplitz cimport Toeplitz
from netback.dataplane.ring cimport front_init, front_push, full_fence, load_acquire, load_relaxed, sring, store_release

cdef enum:
    FULL_FRAME_SLOTS = 17        # a ring of at least this many slots reads frames directly into granted pages


cdef int set_pages(uint8_t **addresses, uint32_t *grefs, object pages) except -1:
    """Convert Python's (address, gref) pairs."""
    cdef int i
    if len(pages) != RING_SLOTS:
        raise ValueError(f"a ring needs {RING_SLOTS} pages, not {len(pages)}")
    for i in range(RING_SLOTS):
        addresses[i] = <uint8_t *><size_t>pages[i][0]
        grefs[i] = pages[i][1]
    return 0


cdef class FrontQueue(Link):
    """The frontend's end of one queue, on rings of its own that begin empty.

    `tx_ring` and `rx_ring` are the addresses of the ring pages, `tx_pages` and `rx_pages` 256 pairs each of a
    page's address and the gref under which the backend may read or write it for as long as this object lives.
    `tx_port` and `rx_port` are the frontend's event channels, the same for a shared one. `caps` are CAN_* bits of
    what the backend takes, `sg` whether frames may have more than one slot. `tx_slots` and `rx_slots` (1 to 256)
    bound how many slots are used at a time; without `rx_notify` no event tells the backend of posted buffers. The
    queue keeps every argument alive. Raises ValueError for other bounds.

    All RX buffers are posted at once. The worker polls and arms both rings when the queue is added to it, and notifies
    once.
    """

    def __cinit__(self, Events events, Peer peer, *, size_t tx_ring, size_t rx_ring, object tx_pages, object rx_pages,
                  uint32_t tx_port, uint32_t rx_port, uint32_t caps, bint sg, uint32_t tx_slots=RING_SLOTS,
                  uint32_t rx_slots=RING_SLOTS, bint rx_notify=True, object keep=None):
        cdef front_queue *queue = &self.queue
        cdef int page
        if not (1 <= tx_slots <= RING_SLOTS and 1 <= rx_slots <= RING_SLOTS):
            raise ValueError(f"a ring has 1 to {RING_SLOTS} slots")
        self.keep = (events, keep)
        self.link = &queue.link
        self.link.ring_to_peer.poll = poll_front_rx
        self.link.peer_to_ring.poll = poll_front_tx
        self.link.ring_to_peer.port = rx_port
        self.link.peer_to_ring.port = tx_port
        self.join(peer, peer)
        self.link.events = events.events
        queue.caps = caps
        queue.sg = sg
        queue.tx_slots = tx_slots
        queue.rx_slots = rx_slots
        queue.rx_notify = rx_notify
        queue.tx_large = queue.rx_large = LARGE_BURSTS
        queue.direct = sg and tx_slots >= FULL_FRAME_SLOTS and peer.peer.read != NULL
        backlog_init(&queue.backlog, BURST_FRAMES)
        set_pages(queue.tx_pages, queue.tx_grefs, tx_pages)
        set_pages(queue.rx_pages, queue.rx_grefs, rx_pages)
        for page in range(RING_SLOTS):
            queue.free[page] = RING_SLOTS - 1 - page
        queue.free_count = RING_SLOTS
        front_init(&queue.tx, <void *>tx_ring)
        front_init(&queue.rx, <void *>rx_ring)
        self.link.ring_to_peer.producer = &queue.rx.shared.rsp_prod
        self.link.peer_to_ring.producer = &queue.tx.shared.rsp_prod
        post_buffers(queue)
        front_push(&queue.rx)

    def __dealloc__(self):
        backlog_free(&self.queue.backlog)

    def set_hash(self, Toeplitz hash: Toeplitz | None) -> None:
        """Send the hash of each TX frame with it from the next burst on, which a backend that knows the Toeplitz hash
        accepts (netif.h), and compare those that come with RX frames; None: neither. For the worker's thread.
        """
        self.queue.hash = NULL if hash is None else &hash.hash
        self.hash = hash

    def change_multicast(self, bytes address, *, bint add) -> bool:
        """Send the backend a change of its multicast list. False: no slot is free now. One change at a time, by the
        worker's thread.
        """
        cdef frame_meta meta
        if len(address) != MAC_BYTES:
            raise ValueError("an Ethernet address has 6 bytes")
        clear_meta(&meta)
        meta.extras = 1 << (EXTRA_TYPE_MCAST_ADD if add else EXTRA_TYPE_MCAST_DEL)
        memcpy(&meta.mcast_add if add else &meta.mcast_del, <const uint8_t *>address, MAC_BYTES)
        return self.link.broken == 0 and reap(&self.queue) and send_change(&self.queue, &meta)

    @property
    def multicast_changed(self) -> int | None:
        """The status of the last change's response, None until it comes; for the worker's thread."""
        reap(&self.queue)
        return None if self.queue.change_status == NETIF_RSP_NULL else self.queue.change_status

    @property
    def rings(self) -> dict[str, dict[str, int]]:
        """The indices of both rings in the shared pages, and our own: the next response to take."""
        return {"tx": ring_indices(<size_t>self.queue.tx.shared, self.queue.tx.rsp_cons),
                "rx": ring_indices(<size_t>self.queue.rx.shared, self.queue.rx.rsp_cons)}

    @property
    def in_flight(self) -> int:
        """TX slots whose responses were not taken yet; they are taken when room is needed or the next frame comes."""
        return <uint32_t>(self.queue.tx.req_prod - self.queue.tx.rsp_cons)


cdef class RingPage:
    """A ring's page as a script of either end has it: any index, any slot, nothing checked but the page's bounds.

    `address` is the page's, `slot_size` 12 for TX, 8 for RX, 16 for control; `keep` is kept alive.
    """

    cdef sring *shared
    cdef uint32_t slots
    cdef readonly uint32_t slot_size
    cdef object keep

    def __cinit__(self, size_t address, uint32_t slot_size, object keep=None):
        if not 4 <= slot_size <= CTRL_SLOT:
            raise ValueError("a slot of netif's rings has 8, 12 or 16 bytes")
        self.shared = <sring *>address
        self.slots = CTRL_SLOTS if slot_size == CTRL_SLOT else RING_SLOTS
        self.slot_size = slot_size
        self.keep = keep

    cdef uint8_t *at(self, uint32_t index) noexcept:
        return <uint8_t *>self.shared + RING_HEADER + (index & (self.slots - 1)) * self.slot_size

    def get(self, uint32_t index) -> bytes:
        """The bytes in a slot."""
        return (<char *>self.at(index))[:self.slot_size]

    def put(self, uint32_t index, bytes slot) -> None:
        """Write a slot; a shorter value leaves the rest of it unchanged."""
        cdef const unsigned char *source = slot
        cdef uint8_t *to = self.at(index)
        cdef uint32_t i
        if <uint32_t>len(slot) > self.slot_size:
            raise ValueError(f"a slot has {self.slot_size} bytes")
        for i in range(<uint32_t>len(slot)):
            to[i] = source[i]

    def push(self, uint32_t req_prod) -> bool:
        """Publish requests up to `req_prod`; returns whether the backend asked for an event."""
        cdef uint32_t old = load_relaxed(&self.shared.req_prod)
        self.req_prod = req_prod
        full_fence()
        return <uint32_t>(req_prod - load_relaxed(&self.shared.req_event)) < <uint32_t>(req_prod - old)

    def respond(self, uint32_t rsp_prod) -> bool:
        """Publish responses up to `rsp_prod`; returns whether the frontend asked for an event."""
        cdef uint32_t old = load_relaxed(&self.shared.rsp_prod)
        self.rsp_prod = rsp_prod
        full_fence()
        return <uint32_t>(rsp_prod - load_relaxed(&self.shared.rsp_event)) < <uint32_t>(rsp_prod - old)

    @property
    def raw(self) -> bytes:
        """The whole page."""
        return (<char *>self.shared)[:PAGE_SIZE]

    @property
    def req_prod(self) -> int:
        return load_acquire(&self.shared.req_prod)

    @req_prod.setter
    def req_prod(self, uint32_t value):
        store_release(&self.shared.req_prod, value)

    @property
    def req_event(self) -> int:
        return load_acquire(&self.shared.req_event)

    @req_event.setter
    def req_event(self, uint32_t value):
        """Ask for an event; a fence follows, so that later reads are not older than this."""
        store_release(&self.shared.req_event, value)
        full_fence()

    @property
    def rsp_prod(self) -> int:
        return load_acquire(&self.shared.rsp_prod)

    @rsp_prod.setter
    def rsp_prod(self, uint32_t value):
        store_release(&self.shared.rsp_prod, value)

    @property
    def rsp_event(self) -> int:
        return load_acquire(&self.shared.rsp_event)

    @rsp_event.setter
    def rsp_event(self, uint32_t value):
        """Ask for an event; a fence follows, so that later reads are not older than this."""
        store_release(&self.shared.rsp_event, value)
        full_fence()
