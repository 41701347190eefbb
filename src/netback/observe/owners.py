# SPDX-License-Identifier: Apache-2.0
"""The owner of each slot of a ring, and for how long, from what a dump of the ring shows.

The rings carry no times of slots. A client that dumps a ring again and again sees the same index again, so it knows for
how long at least a slot has had its owner (`Ages`).
"""

import enum
from dataclasses import dataclass, replace

from netback.dataplane.states import State
from netback.observe.slots import Ring

_WORD = 1 << 32


class Owner(enum.Enum):
    """The owner of a slot; the value describes it."""

    FREE = "free: the guest's to use"
    REQUEST = "the guest's request, which the backend has not begun"
    WORK = "a request that the backend holds, since something must happen first"
    RESPONSE = "a response that the guest may not have taken"


@dataclass(frozen=True, slots=True)
class Cell:
    """One slot, at its place in the ring's page."""

    owner: Owner
    index: int | None = None
    """Free-running, of what the slot holds; None if it was never used."""
    failed: bool = False
    """A response with an error."""
    age: float = 0.0
    """Seconds for which it is known to have been so."""


def owners(ring: Ring) -> list[Cell]:
    """A cell for each slot, in the order of the page; none if an index is impossible.

    Requests from rsp_prod on have no response. The backend takes a request when it answers it, so of the TX ring all of
    them are held while its direction waits for anything but events; of the RX ring as many as frames wait for more.
    A response counts as taken once rsp_event is behind it: a frontend asks for the next event when it has taken all
    (RING_FINAL_CHECK_FOR_RESPONSES of ring.h). One that is further behind than the ring is long asks for no events, as
    a frontend that polls; its own index is not shared, so nothing then tells a response that it has not taken.
    """
    if ring.pending is None:
        return []
    cells = [Cell(Owner.FREE)] * ring.slots_total
    rsp_prod, rsp_event = ring.indices["rsp_prod"], ring.indices["rsp_event"]
    untaken = (rsp_prod - rsp_event + 1) % _WORD
    untaken = untaken if untaken <= ring.slots_total - ring.pending else 0
    held = _held(ring)
    for slot in ring.slots:
        place = (slot.index - rsp_prod) % _WORD
        failed = False
        if place < ring.pending:
            owner = Owner.WORK if place < held else Owner.REQUEST
        else:
            owner = Owner.RESPONSE if (rsp_prod - slot.index) % _WORD <= untaken else Owner.FREE
            failed = slot.status not in (None, "OKAY", "NULL", "SUCCESS")
        cells[slot.index % ring.slots_total] = Cell(owner, slot.index, failed)
    return cells


def _held(ring: Ring) -> int:
    """How many of the pending requests the backend holds."""
    pending = ring.pending or 0
    if ring.ring.startswith("tx"):
        return 0 if ring.state in (None, State.RING_IDLE.name) else pending
    return pending if ring.waiting else 0


class Ages:
    """For how long slots have had their owners, as far as the dumps so far show."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, int, Owner], float] = {}

    def measure(self, rings: list[Ring], now: float) -> list[list[Cell]]:
        """The cells of each ring at the time `now`, in seconds, with their ages."""
        known, self._since = self._since, {}
        return [[self._age(ring.ring, cell, known, now) for cell in owners(ring)] for ring in rings]

    def _age(self, ring: str, cell: Cell, known: dict[tuple[str, int, Owner], float], now: float) -> Cell:
        if cell.index is None or cell.owner is Owner.FREE:
            return cell
        key = (ring, cell.index, cell.owner)
        since = self._since[key] = known.get(key, now)
        return replace(cell, age=now - since)
