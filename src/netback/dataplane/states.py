# SPDX-License-Identifier: Apache-2.0
"""The states of a link's directions, and what the worker waits for in each. docs/dataplane-states.md is made from it.

A link has two directions. ring_to_peer takes frames from a ring and gives them to the peer: the backend's TX, the
frontend's RX. peer_to_ring takes frames from the peer: the backend's RX, the frontend's TX. A poll of a direction
returns the direction's next state, the worker stores it, and that state's row alone decides when the direction is
polled next, what the peer's descriptor is watched for, and which timer runs. Nothing else blocks a direction, and no
state is left but by a poll, by its timer's end, or by the caller of `Worker.refuse_rx`, `refresh` and `set_peer`.

Two things are separate. The back-off of events is one deadline per port: an event that moved no producer index of its
rings delays the unmasking of its port (XSA-332), whatever the states are. A link's condition (notices.py) is the
summary of its states and its peer for Python.

A distributor (back/distributor.pyx) is a link without rings: its ring_to_peer stays RING_IDLE, and its peer_to_ring
never lacks slots.

dataplane/link.pyx fills the worker's own table from this one.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

MS = 1_000_000
"""Nanoseconds."""


class Event(enum.IntFlag):
    """What may have happened since a direction was last polled: EVENT_* of dataplane/link.pxd."""

    POLL = 1
    """The link is polled, for any reason."""
    RING = 2
    """The far side's event channel fired."""
    FRAMES = 4
    """The peer's descriptor is readable."""
    ROOM = 8
    """The peer's descriptor is writable."""
    TIMER = 16
    """The direction's own timer ended."""


NOTHING = Event(0)


class State(enum.IntEnum):
    """STATE_* of dataplane/link.pxd."""

    RING_IDLE = 0
    RING_MORE = 1
    PEER_FULL = 2
    PEER_BUSY = 3
    NO_CREDIT = 4
    PEER_IDLE = 5
    PEER_MORE = 6
    NO_SLOTS = 7
    NO_SLOTS_LONG = 8
    NO_FRAME = 9
    STALLED = 10
    NO_SLOTS_UNANNOUNCED = 11
    REFUSED = 12
    PEER_CLOSED = 13
    BROKEN = 14


@dataclass(frozen=True, slots=True)
class Row:
    """One state.

    `polled`: the events at which the direction is polled. `watch`: FRAMES and ROOM, what the descriptor is watched for
    beside errors. `timer`: nanoseconds, 0 without one; it is set when the state is entered, and a state with `expires`
    becomes that one when the time ends without progress in this direction. `early`: the poll knows when it can go on
    (direction_t.due), and `timer` is the most. `again`: another poll of the link follows at
    once, after one of every other link that has work.
    """

    means: str
    polled: Event = NOTHING
    watch: Event = NOTHING
    timer: int = 0
    expires: State | None = None
    early: bool = False
    again: bool = False
    armed: str = "no"


_ANY = Event.POLL | Event.RING | Event.FRAMES | Event.ROOM | Event.TIMER

_NO_CREDIT = Row(
    "the next frame lacks credit (the vif's rate): the timer ends when it is there",
    polled=Event.TIMER,
    timer=1000 * MS,
    early=True,
)
_BROKEN = Row("the far side broke the protocol")
"""The two states that either direction may be in."""

RING_TO_PEER: Mapping[State, Row] = {
    State.RING_IDLE: Row(
        "the ring is drained; reading it costs less than an event, so each poll of the link does it",
        polled=_ANY,
        armed="for one",
    ),
    State.RING_MORE: Row(
        "the budget of a poll ended before the work, or another poll follows anyway", polled=_ANY, again=True
    ),
    State.PEER_FULL: Row(
        "EAGAIN: the peer is full; what it did not accept stays in the ring",
        polled=Event.ROOM,
        watch=Event.ROOM,
    ),
    State.PEER_BUSY: Row(
        "ENOBUFS, ENOMEM: a queue behind the peer is full, and its descriptor stays writable; or none tells of room",
        polled=Event.TIMER,
        timer=MS,
    ),
    State.NO_CREDIT: _NO_CREDIT,
    State.BROKEN: _BROKEN,
}

PEER_TO_RING: Mapping[State, Row] = {
    State.PEER_IDLE: Row("the peer is drained", polled=Event.FRAMES, watch=Event.FRAMES),
    State.PEER_MORE: Row("the budget of a poll ended before the work", polled=_ANY, again=True),
    State.NO_SLOTS: Row(
        "the next frame lacks slots",
        polled=Event.RING | Event.TIMER,
        timer=200 * MS,
        expires=State.NO_SLOTS_LONG,
        armed="for what the frame needs",
    ),
    State.NO_SLOTS_LONG: Row(
        "it still lacks them; at the stall time it is STALLED. A backend segments a GSO frame that needs more slots "
        "than the guest has posted, and drops frames that reach the drain time, with all that the peer has then",
        polled=Event.RING | Event.TIMER,
        timer=1000 * MS,
        early=True,
        armed="for what the frame needs",
    ),
    State.NO_FRAME: Row(
        "the ring has had no slot for long, and the peer no frame: the next one is read, so that it has an age",
        polled=Event.RING | Event.FRAMES,
        watch=Event.FRAMES,
        armed="for one",
    ),
    State.STALLED: Row(
        "frames have lacked slots for the stall time, and the far side took none: reported once; a backend drops what "
        "waited",
        polled=Event.RING,
        armed="for what the frame needs",
    ),
    State.NO_SLOTS_UNANNOUNCED: Row(
        "it lacks slots, and the guest has no feature-rx-notify, so no event may come; frames that reach the drain "
        "time are dropped as in NO_SLOTS_LONG",
        polled=Event.RING | Event.TIMER,
        timer=MS,
        armed="for what the frame needs",
    ),
    State.NO_CREDIT: _NO_CREDIT,
    State.REFUSED: Row("the vif is Closing, or another queue takes all frames of a common descriptor"),
    State.PEER_CLOSED: Row("the peer's far end is gone and everything it sent was read"),
    State.BROKEN: _BROKEN,
}

TABLE: Mapping[State, Row] = {**RING_TO_PEER, **PEER_TO_RING}


def _words(events: Event) -> str:
    if events == _ANY:
        return "any event"
    return ", ".join((event.name or "").lower() for event in events) or "-"


def _timer(row: Row) -> str:
    if not row.timer:
        return "-"
    length = f"{row.timer // MS} ms" if row.timer < 1000 * MS else f"{row.timer // (1000 * MS)} s"
    if row.early:
        return f"{length} at most"
    return f"{length}, then {row.expires.name}" if row.expires is not None else length


def _render(rows: Mapping[State, Row]) -> list[str]:
    lines = [
        f"| {state.name} | {row.means} | {row.armed} | {_words(row.watch)} | {_timer(row)} | "
        f"{'at once' if row.again else _words(row.polled)} |"
        for state, row in rows.items()
    ]
    return [
        "| state | means | ring armed | descriptor watched for | timer | polled at |",
        "|---|---|---|---|---|---|",
        *lines,
    ]


def render_document() -> str:
    """docs/dataplane-states.md."""
    return "\n".join(
        [
            "<!-- SPDX-License-Identifier: Apache-2.0 -->",
            "# States of a link's two directions",
            "",
            "Made from `src/netback/dataplane/states.py` by `make docs`. `tests/dataplane/test_states.py` raises every",
            "event in every state of a served queue and compares what the worker then waits for with these rows.",
            "",
            "## From a ring to the peer",
            "The backend's TX (`back/tx.pyx`), the frontend's RX (`front/rx.pyx`).",
            "",
            *_render(RING_TO_PEER),
            "",
            "## From the peer to a ring",
            "The backend's RX (`back/rx.pyx`), the frontend's TX (`front/tx.pyx`).",
            "",
            *_render(PEER_TO_RING),
            "",
            "Errors and hang-up of the descriptor are watched for in every state, unless the peer is closed already.",
            "A link begins in RING_MORE and PEER_MORE. Its condition is BROKEN, PEER_GONE, STALLED or READY, in this",
            "order of precedence, and each change is reported (`dataplane/notices.py`).",
            "",
        ]
    )


if __name__ == "__main__":
    print(render_document(), end="")
