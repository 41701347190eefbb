# SPDX-License-Identifier: Apache-2.0
"""A backend's queue: its two rings, the guest's memory and the peer, combined for the worker.

back/tx and back/rx move frames; the worker decides when.
"""
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from netback.errors import GuestError
from netback.dataplane.abi cimport EXTRA_TYPE_XDP, RX_SLOT, TX_SLOT
from netback.dataplane.back.rx cimport poll_rx
from netback.dataplane.back.tx cimport poll_tx
from netback.dataplane.backlog cimport backlog_free, backlog_init
from netback.dataplane.journal cimport Journal, complete_journal
from netback.dataplane.clock cimport now_ns
from netback.dataplane.link cimport REASON_RX_INDEX, REASON_TX_INDEX, copy_ring, ring_indices
from netback.dataplane.link import REASONS
from netback.dataplane.peers.peer cimport Peer
from netback.dataplane.platform.events cimport Events
from netback.dataplane.platform.memory cimport GuestMemory
from netback.dataplane.ring cimport back_attach, back_pending
from netback.dataplane.settings cimport Settings
from netback.dataplane.staged cimport Staged
from netback.dataplane.toeplitz cimport Toeplitz


cdef int attach(back_queue *queue, size_t tx_page, size_t rx_page) except -1:
    """Check the indices first, then complete the journal: a guest with an impossible index gets nothing completed."""
    back_attach(&queue.tx, <void *>tx_page)
    back_attach(&queue.rx, <void *>rx_page)
    if back_pending(&queue.tx) < 0:
        raise GuestError(REASONS[REASON_TX_INDEX])
    if back_pending(&queue.rx) < 0:
        raise GuestError(REASONS[REASON_RX_INDEX])
    complete_journal(&queue.tx, queue.tx_journal)
    complete_journal(&queue.rx, queue.rx_journal)
    back_attach(&queue.tx, <void *>tx_page)
    back_attach(&queue.rx, <void *>rx_page)
    return 0


cdef class BackQueue(Link):
    """The backend's end of one queue.

    `tx_page` and `rx_page` are addresses of the mapped ring pages; `tx_name` and `rx_name` are 64-bit
    names of these rings that another process would give them too (gref and remote port): a journal of
    other rings is void. `tx_port` and `rx_port` are our bound ports, the same for one shared channel. `caps` are
    CAN_* bits of what the guest takes; `sg` whether it takes frames of more than a page; `rx_offset`
    where a frame begins in its first page, in bytes. The queue keeps every argument alive.

    `rx_unannounced`: no event follows the RX slots that the guest posts (no feature-rx-notify). The peer's network
    takes what `peer.caps` say. `settings` are the vif's, shared by its queues: an own page if None. `drain`: ns that a
    frame may wait for RX slots before it is dropped, with all that the peer has then. `stall`: ns without a frame taken
    after which the guest is reported as stalled; 0: never.

    The caller has bound the port. Attaching checks the indices (GuestError if one is impossible), completes the
    journal, and takes the rings up at rsp_prod. The worker drains and arms both when the queue is added to it, and
    notifies once.
    """

    def __cinit__(
        self, Events events, GuestMemory memory, Peer peer, Journal journal, *, size_t tx_page, size_t rx_page,
        uint64_t tx_name, uint64_t rx_name, uint32_t tx_port, uint32_t rx_port, uint32_t caps, bint sg,
        uint16_t rx_offset=0, bint rx_unannounced=False, Settings settings=None, uint64_t drain=10000000000,
        uint64_t stall=60000000000, object keep=None,
    ):
        self.journal = journal
        self.settings = settings if settings is not None else Settings()
        self.keep = (events, memory, keep)
        self.link = &self.queue.link
        self.link.ring_to_peer.poll = poll_tx
        self.link.ring_to_peer.port = tx_port
        self.link.peer_to_ring.poll = poll_rx
        self.link.peer_to_ring.port = rx_port
        self.join(peer, peer)
        self.link.events = events.events
        self.link.rx_unannounced = rx_unannounced
        self.queue.memory = memory.memory
        self.queue.caps = caps
        self.queue.sg = sg
        self.queue.rx_offset = self.plain_offset = rx_offset
        self.queue.settings = self.settings.settings
        self.queue.drain = drain
        self.queue.stall = stall
        self.queue.tx_journal = journal.of_ring(0, tx_name, TX_SLOT)
        self.queue.rx_journal = journal.of_ring(1, rx_name, RX_SLOT)
        backlog_init(&self.queue.backlog, BACKLOG_FRAMES)
        attach(&self.queue, tx_page, rx_page)
        self.link.ring_to_peer.producer = &self.queue.tx.shared.req_prod
        self.link.peer_to_ring.producer = &self.queue.rx.shared.req_prod

    def __dealloc__(self):
        backlog_free(&self.queue.backlog)

    def change(self, *, bint multicast_control=False, uint16_t xdp_headroom=0) -> None:
        """Apply what the guest may change while it is connected; for the worker's thread.

        `multicast_control`: drop multicast frames whose address the guest's list does not have. `xdp_headroom`: bytes
        before each RX frame in its first page, with the extra info that says so; 0: none, and `rx_offset` counts.
        """
        self.queue.multicast_control = multicast_control
        self.queue.rx_offset = xdp_headroom if xdp_headroom else self.plain_offset
        self.queue.rx_extras = 1 << EXTRA_TYPE_XDP if xdp_headroom else 0

    def set_hash(self, Toeplitz hash: Toeplitz | None) -> None:
        """Send the hash of each RX frame with it from the next burst on, or none."""
        self.queue.hash = NULL if hash is None else &hash.hash
        self.hash = hash

    def set_staged(self, Staged staged: Staged | None) -> None:
        """Use staged pages from the next burst on, or none. The pages of the table before it are not used any more."""
        self.queue.staged = NULL if staged is None else &staged.staged
        self.staged = staged

    @property
    def rings(self) -> dict[str, dict[str, int]]:
        """The indices of both rings in the shared pages, and the backend's private one."""
        return {"tx": ring_indices(<size_t>self.queue.tx.shared, self.queue.tx.rsp_prod),
                "rx": ring_indices(<size_t>self.queue.rx.shared, self.queue.rx.rsp_prod)}

    def snapshot(self) -> tuple[dict[str, tuple[bytes, bool, int]], int, int]:
        """What `rings` show and the slots, as another thread sees them while the worker serves this queue.

        By ring: a copy of its page, whether no response was published meanwhile, and the ns since the last one was, or
        since the queue was attached. Then the RX frames that wait for slots, and the ns for which the first of them has
        waited.
        """
        cdef uint64_t now = now_ns()
        cdef uint32_t waiting = self.queue.backlog.count
        return (
            {
                "tx": (*copy_ring(<size_t>self.queue.tx.shared), now - min(now, self.queue.tx.pushed_at)),
                "rx": (*copy_ring(<size_t>self.queue.rx.shared), now - min(now, self.queue.rx.pushed_at)),
            },
            waiting,
            now - min(now, self.queue.read_at) if waiting else 0,
        )
