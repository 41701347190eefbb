# SPDX-License-Identifier: Apache-2.0
"""What was seen of one run of a frontend, as a list of events in their order. The rules judge this and nothing else.

Events are frozen values that JSON can hold, so a recorded run is judged again as it was (recording.py). Ring indices
run freely in 32 bits; a ring is named "tx", "rx" or "ctrl" with its queue.
"""

from typing import Literal

import msgspec

Ring = Literal["tx", "rx", "ctrl"]


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """One thing that was seen."""


class Joined(Event, frozen=True):
    """A domain began."""

    domid: int


class Ended(Event, frozen=True):
    """A domain ended."""

    domid: int


class StoreRequest(Event, frozen=True):
    """A request of the store that changes something, or that was refused, in the server's order.

    Of the frontend's domain all such requests; of domain 0 the writes of the backend's `state` alone.
    """

    domid: int
    op: str
    path: str
    """Absolute."""
    value: str = ""
    """Of WRITE; "T" or "F" of TRANSACTION_END."""
    tx: int = 0
    """The transaction, 0 for none; of TRANSACTION_START the one that began."""
    error: str = ""


class StoreLoad(Event, frozen=True):
    """The number of all requests of the frontend's domain, at the run's end."""

    requests: int


class Opened(Event, frozen=True):
    """The backend mapped a ring and bound its port; `error` where that failed."""

    ring: Ring
    queue: int
    gref: int
    port: int
    error: str = ""
    writable: bool = True
    header: tuple[int, int, int, int] = (0, 1, 0, 1)
    """req_prod, req_event, rsp_prod, rsp_event as first seen."""


class Requests(Event, frozen=True):
    """Requests that the backend took: those from index `first` to `prod`, which is req_prod as read."""

    ring: Ring
    queue: int
    first: int
    prod: int
    slots: list[bytes]
    """Empty where `prod` cannot be."""


class Page(Event, frozen=True):
    """How the page of one request can be used. `data` is what the backend copied out of it (TX)."""

    ring: Ring
    queue: int
    index: int
    gref: int
    status: int
    """GNTST of the copy, or of a map for reading."""
    writable: bool | None = None
    """Whether the grant lets the backend write; None: not tried."""
    data: bytes = b""


class Changed(Event, frozen=True):
    """A page changed, or its grant ended, between its request and the response."""

    ring: Ring
    queue: int
    index: int
    what: Literal["data", "grant"]


class Responses(Event, frozen=True):
    """Responses that the backend published."""

    ring: Ring
    queue: int
    first: int
    slots: list[bytes]
    notified: bool


class Frame(Event, frozen=True):
    """A frame that the backend put into the RX ring, or could not put there for want of slots."""

    form: str
    queue: int
    slots: int
    posted: bool
    """Whether there were slots for it."""
    consumed: bool = False
    """Whether the frontend asked for the next event, or posted a buffer, within the time."""
    data: bytes = b""


class Missed(Event, frozen=True):
    """Requests lay in a ring whose req_event asked for an event, and none came in time."""

    ring: Ring
    queue: int
    prod: int
    req_event: int


class Events(Event, frozen=True):
    """Notifications of a port, at the run's end: all, those without a new request, and those that nothing asked for."""

    rings: list[str]
    queue: int
    count: int
    empty: int
    unasked: int


class Indices(Event, frozen=True):
    """A ring's indices at rest, and what the backend wrote into its own two."""

    ring: Ring
    queue: int
    header: tuple[int, int, int, int]
    """req_prod, req_event, rsp_prod, rsp_event."""
    req_event: int
    rsp_prod: int
    quiet: bool = True
    """False: the frontend was leaving, perhaps with a frame half taken."""


class Control(Event, frozen=True):
    """A control request and its response."""

    request: bytes
    status: int


class Step(Event, frozen=True):
    """A step of the drive began or ended: what the backend did next, and what came of it."""

    name: str
    outcome: str = ""
    """Empty at the beginning; "done", "timeout" or another word at the end."""


class Remains(Event, frozen=True):
    """What the frontend still grants to the backend, and the backend's ports, after both ends are Closed."""

    grants: int
    ports: list[int]


class Exited(Event, frozen=True):
    """The frontend's process ended: its exit code, negative for a signal; the signal that netback sent, 0 for none."""

    code: int
    sent: int = 0
    output: str = ""
    """Its last words."""


class Cut(Event, frozen=True):
    """The recording reached its bound: later events of this kind are missing."""

    what: str


AnyEvent = (
    Joined
    | Ended
    | StoreRequest
    | StoreLoad
    | Opened
    | Requests
    | Page
    | Changed
    | Responses
    | Frame
    | Missed
    | Events
    | Indices
    | Control
    | Step
    | Remains
    | Exited
    | Cut
)


class Observation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run: the backend that was played, the device, and the events."""

    profile: str
    offer: dict[str, str]
    """The keys that the backend offered."""
    domid: int
    """The frontend's; 0 if none came."""
    index: int
    mac: str
    seed: int
    events: list[AnyEvent]

    @property
    def frontend(self) -> str:
        """The frontend's directory."""
        return f"/local/domain/{self.domid}/device/vif/{self.index}"

    @property
    def backend(self) -> str:
        """The backend's directory."""
        return f"/local/domain/0/backend/vif/{self.domid}/{self.index}"
