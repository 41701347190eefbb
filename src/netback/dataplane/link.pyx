# SPDX-License-Identifier: Apache-2.0
"""A queue of either end, as a worker serves it. Knows what the two ends have in common, nothing of how frames move."""
from libc.stdint cimport uint32_t
from netback.dataplane.notices import Notice
from netback.dataplane.ring cimport load_acquire, sring

REASONS = {
    REASON_TX_INDEX: "TX req_prod is impossible",
    REASON_RX_INDEX: "RX req_prod is impossible",
    REASON_TRUNCATED: "TX chain runs past req_prod",
    REASON_SLOTS: "TX frame has too many slots",
    REASON_EXTRA: "TX extra info of an unknown type",
    REASON_GSO: "TX GSO extra with an impossible type or size",
    REASON_RESPONSE: "a response that cannot be: unknown id or impossible rsp_prod",
}

COUNTERS = (
    "tx_frames", "tx_bytes", "tx_slots", "tx_bursts", "tx_notifies", "tx_errors", "tx_dropped", "tx_refused",
    "tx_fixed_up", "tx_completed", "tx_segmented", "tx_full",
    "rx_frames", "rx_bytes", "rx_slots", "rx_bursts", "rx_notifies", "rx_errors", "rx_dropped", "rx_too_big",
    "rx_completed", "rx_segmented", "rx_stalls", "rx_faults",
    "events", "events_empty",
)


cdef class Link:
    """A queue of either end, as a worker serves it."""

    @property
    def broken(self) -> str | None:
        """Why the far side's misbehaviour ended it, or None."""
        return REASONS[self.link.broken] if self.link.broken else None

    @property
    def condition(self) -> Notice:
        """What the worker last found it to be."""
        return Notice(condition(self.link))

    @property
    def index(self) -> int:
        """Its place in its worker's table: the `link` of its records."""
        return self.link.index

    @property
    def counters(self) -> dict[str, int]:
        """A snapshot of everything that this queue counts, since it was made."""
        cdef int i
        return {COUNTERS[i]: self.link.counters[i] for i in range(COUNTERS_END)}

    @property
    def blocked(self) -> tuple[bool, bool]:
        """(the peer is full, slots lack)."""
        return bool(self.link.peer.blocked), bool(self.link.to_blocked)

    def watch(self, *, bint traced, bint captured) -> None:
        """Write down each slot and/or each frame from now on: Worker.records."""
        self.link.traced = traced
        self.link.captured = captured

    def freeze(self, bint frozen=True) -> None:
        """Refuse RX: the frontend is Closing."""
        self.link.frozen = frozen


cdef dict ring_indices(size_t page, uint32_t private):
    """A ring's four shared indices, and the private one of the end that asks."""
    cdef sring *shared = <sring *>page
    return {
        "req_prod": load_acquire(&shared.req_prod),
        "req_event": load_acquire(&shared.req_event),
        "rsp_prod": load_acquire(&shared.rsp_prod),
        "rsp_event": load_acquire(&shared.rsp_event),
        "private": private,
    }
