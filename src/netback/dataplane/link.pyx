# SPDX-License-Identifier: Apache-2.0
"""A queue of either end, as a worker serves it: the common part of the two ends."""
from collections.abc import Sequence

from libc.stdint cimport uint32_t
from netback.dataplane.counters import MEANINGS
from netback.dataplane.notices import Notice
from netback.dataplane.abi cimport PAGE_SIZE
from netback.dataplane.capture cimport Sink, sink_t
from netback.dataplane.peers.peer cimport Peer
from netback.dataplane.ring cimport compiler_fence, load_acquire, sring
from netback.dataplane.states import TABLE, State

cdef enum:
    COPY_TRIES = 4

cdef row_t rows[STATES_END]

for _state, _row in TABLE.items():
    rows[<int>_state].polled = _row.polled
    rows[<int>_state].watch = _row.watch
    rows[<int>_state].timer = _row.timer
    rows[<int>_state].expires = -1 if _row.expires is None else _row.expires
    rows[<int>_state].early = _row.early
    rows[<int>_state].again = _row.again

REASONS = {
    REASON_TX_INDEX: "TX req_prod is impossible",
    REASON_RX_INDEX: "RX req_prod is impossible",
    REASON_TRUNCATED: "TX chain runs past req_prod",
    REASON_SLOTS: "TX frame has too many slots",
    REASON_EXTRA: "TX extra info of an unknown type",
    REASON_GSO: "TX GSO extra with an impossible type or size",
    REASON_RESPONSE: "an impossible response: unknown id or impossible rsp_prod",
}

COUNTERS = tuple(MEANINGS)
if len(COUNTERS) != COUNTERS_END:
    raise ImportError("dataplane/counters.py and the enum in dataplane/link.pxd differ")


cdef row_t *state_rows() noexcept nogil:
    """The table of states.py, by state."""
    return rows


cdef class Link:
    """A queue of either end, as a worker serves it."""

    cdef void join(self, Peer peer, Peer source) noexcept:
        """Send to `peer` and receive from `source` from now on."""
        self.peer, self.source = peer, source
        self.link.peer, self.link.source = peer.peer, source.peer

    @property
    def broken(self) -> str | None:
        """The reason why the far side broke the link, or None."""
        return REASONS[self.link.broken] if self.link.broken else None

    @property
    def condition(self) -> Notice:
        """The link's condition at the worker's last check."""
        return Notice(link_condition(self.link))

    @property
    def index(self) -> int:
        """Its index in its worker's table: the `link` of its records."""
        return self.link.index

    @property
    def counters(self) -> dict[str, int]:
        """A snapshot of all counters of this queue, since it was created."""
        cdef int i
        return {COUNTERS[i]: self.link.counters[i] for i in range(COUNTERS_END)}

    @property
    def states(self) -> tuple[State, State]:
        """The states of ring_to_peer and peer_to_ring."""
        return State(self.link.ring_to_peer.state), State(self.link.peer_to_ring.state)

    @property
    def blocked(self) -> tuple[bool, bool]:
        """(the peer is full, slots are missing)."""
        return (self.link.ring_to_peer.state in (STATE_PEER_FULL, STATE_PEER_BUSY),
                lacks_slots(self.link.peer_to_ring.state))

    def watch(self, *, bint traced, sinks: Sequence[Sink] = ()) -> None:
        """Record each slot from now on (Worker.records), and pass each frame to these sinks. Each sink is for one link
        at a time, and `ring` that of the link's worker.
        """
        cdef Sink sink
        cdef sink_t *first = NULL
        for sink in sinks:
            sink.sink.next = first
            first = &sink.sink
        self.link.traced = traced
        self.link.sinks = first
        self.captures = tuple(sinks)


cdef dict ring_indices(size_t page, uint32_t private):
    """A ring's four shared indices, and the private one of this end."""
    cdef sring *shared = <sring *>page
    return {
        "req_prod": load_acquire(&shared.req_prod),
        "req_event": load_acquire(&shared.req_event),
        "rsp_prod": load_acquire(&shared.rsp_prod),
        "rsp_event": load_acquire(&shared.rsp_event),
        "private": private,
    }


cdef tuple copy_ring(size_t page):
    """A copy of a ring's page while both ends may write to it, and whether no response was published meanwhile: else
    slots of the copy may be older or newer than its indices.
    """
    cdef sring *shared = <sring *>page
    cdef uint32_t before
    copy = b""
    for _ in range(COPY_TRIES):
        before = load_acquire(&shared.rsp_prod)
        copy = (<char *>shared)[:PAGE_SIZE]
        compiler_fence()
        if load_acquire(&shared.rsp_prod) == before:
            return copy, True
    return copy, False
