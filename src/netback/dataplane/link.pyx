# SPDX-License-Identifier: Apache-2.0
"""A queue of either end, as a worker serves it: the common part of the two ends."""
from libc.stdint cimport uint32_t
from netback.dataplane.notices import Notice
from netback.dataplane.ring cimport load_acquire, sring
from netback.dataplane.states import TABLE, State

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

_KINDS = (
    "frames",        # given to the peer, or delivered to the ring
    "bytes",         # of those
    "slots",         # of a ring that were used
    "bursts",        # pushes to a ring
    "notifies",      # events that the far side asked for
    "errors",        # TX frames answered ERROR, RX slots whose copy failed; at a frontend: responses with status ERROR
    "dropped",       # frames whose offloads cannot be done, and frames below 14 bytes
    "fixed_up",      # TX frames with GSO and without csum_blank
    "completed",     # checksums completed
    "segmented",     # frames that were segmented
    "too_big",       # frames that no number of slots can hold
    "full",          # ring to peer: polls after which the peer had not accepted everything
    "refused",       # ring to peer: frames that the peer will never accept
    "stalls",        # peer to ring: waits for slots
    "faults",        # peer to ring: reads that failed
    "short",         # peer to ring: messages without a frame
    "truncated",     # peer to ring: frames longer than any buffer
    "throttled",     # polls after which the next frame lacked credit: the rate limit
    "hashed",        # frames with a hash extra
    "copies",        # backend: copies from or to guest pages by grant operations ...
    "staged",        # ... and those from or to staged pages, which take none
)

COUNTERS = (
    *(f"tx_{kind}" for kind in _KINDS),
    *(f"rx_{kind}" for kind in _KINDS),
    "events",        # of the link's event channels
    "events_empty",  # events before which no producer index moved
    "tx_multicast",  # requests that add an address to the guest's multicast list or remove one; no frames
    "tx_multicast_full",     # ... of those: answered ERROR, since the list was full
    "rx_filtered",   # multicast frames that the guest's list does not have
    "rx_expired",    # frames dropped since they, or those read before them, waited too long for slots
)


cdef row_t *state_rows() noexcept nogil:
    """The table of states.py, by state."""
    return rows


cdef class Link:
    """A queue of either end, as a worker serves it."""

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

    def watch(self, *, bint traced, bint captured) -> None:
        """Record each slot and/or each frame from now on: Worker.records."""
        self.link.traced = traced
        self.link.captured = captured


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
