# SPDX-License-Identifier: Apache-2.0
"""An observation as the rules look at it: keys when Connected, frames with their bytes, states in their order. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

from netback.abi.netif import RX_REQUEST
from netback.abi.netif_keys import Key
from netback.abi.xenbus import XenbusState as State
from netback.conform.chains import WRAP, Chain, read_chains
from netback.conform.frames import Transport, find_transport
from netback.conform.observation import (
    AnyEvent,
    Observation,
    Opened,
    Page,
    Requests,
    Responses,
    Ring,
    Step,
    StoreRequest,
)

E = TypeVar("E", bound="AnyEvent")

BACK, FRONT = "backend", "frontend"


class Change(NamedTuple):
    """A node that changed: `at` is the place in the observation; a value of None: removed."""

    at: int
    side: str
    key: str
    """Relative to the end's directory of the device."""
    value: str | None


class Sent(NamedTuple):
    """A frame that the guest sent, with its bytes; None where the backend could not copy all of them."""

    at: int
    chain: Chain
    frame: bytes | None

    @property
    def transport(self) -> Transport | None:
        """Its TCP or UDP header."""
        return None if self.frame is None else find_transport(self.frame)

    def __str__(self) -> str:
        return str(self.chain)


class RxRequest(NamedTuple):
    """A posted RX buffer."""

    at: int
    queue: int
    slot: int
    """Its index in the ring."""
    id: int
    pad: int
    gref: int

    def __str__(self) -> str:
        return f"RX {self.queue}:{self.slot}"


@dataclass(frozen=True)
class View:
    """The observation, and what follows from it."""

    seen: Observation

    def all(self, kind: type[E]) -> Iterator[tuple[int, E]]:
        """The events of a kind, with their places."""
        for at, event in enumerate(self.seen.events):
            if isinstance(event, kind):
                yield at, event

    def offers(self, key: str) -> bool:
        """Whether the backend offered a feature."""
        return self.seen.offer.get(key, "0") not in ("", "0")

    # ---- xenstore

    @cached_property
    def changes(self) -> list[Change]:
        """Changes of the device's nodes, those of a transaction where it was committed."""
        found: list[Change] = []
        pending: dict[tuple[int, int], list[tuple[str, str, str | None]]] = {}
        for at, request in self.all(StoreRequest):
            transaction = (request.domid, request.tx)
            if request.op == "TRANSACTION_END":
                held = pending.pop(transaction, [])
                if not request.error and request.value == "T":
                    found += [Change(at, *change) for change in held]
            elif not request.error and (change := self._change(request)) is not None:
                if request.tx:
                    pending.setdefault(transaction, []).append(change)
                else:
                    found.append(Change(at, *change))
        return found

    def _change(self, request: StoreRequest) -> tuple[str, str, str | None] | None:
        if request.op not in ("WRITE", "RM"):
            return None
        value = request.value if request.op == "WRITE" else None
        for side, directory in ((FRONT, self.seen.frontend), (BACK, self.seen.backend)):
            if request.path.startswith(directory + "/"):
                return side, request.path[len(directory) + 1 :], value
        return None

    def states(self, side: str) -> list[tuple[int, str]]:
        """The values that an end wrote to its `state`, repetitions left out, with their places."""
        found: list[tuple[int, str]] = []
        for change in self.changes:
            mine = change.side == side and change.key == "state" and change.value is not None
            if mine and (not found or found[-1][1] != change.value):
                found.append((change.at, change.value or ""))
        return found

    def reached(self, side: str, *states: State) -> int | None:
        """Where an end first wrote one of these states."""
        wanted = {str(int(state)) for state in states}
        return next((at for at, value in self.states(side) if value in wanted), None)

    @cached_property
    def connected(self) -> int | None:
        """Where the frontend said that its keys are complete: Connected, or Initialised."""
        return self.reached(FRONT, State.CONNECTED, State.INITIALISED)

    @cached_property
    def keys(self) -> dict[str, str]:
        """The frontend's keys at that point; without it none."""
        found: dict[str, str] = {}
        if self.connected is None:
            return found
        for change in self.changes:
            if change.side == FRONT and change.at <= self.connected:
                if change.value is not None:
                    found[change.key] = change.value
                else:
                    found = {
                        key: value
                        for key, value in found.items()
                        if key != change.key and not key.startswith(change.key + "/")
                    }
        return found

    @property
    def is_connected(self) -> bool:
        """Both ends were Connected."""
        return self.reached(BACK, State.CONNECTED) is not None

    @cached_property
    def queue_paths(self) -> list[str]:
        """The directory of each queue's keys, by the number that the frontend wrote."""
        text = self.keys.get(Key.QUEUES, "1")
        count = int(text) if text.isdecimal() and len(text) < 4 else 1
        return [""] if count < 2 else [f"queue-{queue}/" for queue in range(count)]

    # ---- the drive

    def step(self, name: str) -> str | None:
        """A step's outcome, None if the drive did not come to it."""
        return next((step.outcome for _, step in self.all(Step) if step.name == name and step.outcome), None)

    def begin(self, name: str) -> int:
        """Where a step began; the end of the observation if it did not."""
        return next((at for at, step in self.all(Step) if step.name == name), len(self.seen.events))

    @cached_property
    def leaving(self) -> int:
        """Where an end first wrote Closing or Closed, or the drive came to its end."""
        ends = [at for side in (FRONT, BACK) if (at := self.reached(side, State.CLOSING, State.CLOSED))]
        return min([*ends, self.begin("close"), self.begin("leave")])

    # ---- the rings

    @cached_property
    def sent(self) -> list[Sent]:
        """The chains of all TX rings. Slots that were taken twice, around a return of the backend, count once."""
        pages = {(page.queue, page.index): page for _, page in self.all(Page) if page.ring == "tx"}
        found = []
        last: dict[int, int] = {}
        for at, requests in self.all(Requests):
            if requests.ring != "tx" or not requests.slots:
                continue
            before = last.get(requests.queue, requests.first)
            skip = (before - requests.first) % WRAP
            last[requests.queue] = requests.prod
            for chain in read_chains(requests.queue, requests.first, requests.slots):
                if (chain.first - requests.first) % WRAP >= skip or skip >= WRAP // 2:
                    found.append(Sent(at, chain, self._bytes(chain, pages)))
        return found

    def _bytes(self, chain: Chain, pages: dict[tuple[int, int], Page]) -> bytes | None:
        parts = [pages.get((chain.queue, request.slot)) for request in chain.requests]
        if chain.multicast or any(part is None or part.status for part in parts):
            return None
        return b"".join(part.data for part in parts if part is not None)

    @property
    def frames(self) -> Iterator[Sent]:
        """The chains that are frames."""
        return (sent for sent in self.sent if not sent.chain.multicast)

    @cached_property
    def posted(self) -> list[RxRequest]:
        """All RX requests; those that were taken twice count once."""
        found = []
        last: dict[int, int] = {}
        for at, requests in self.all(Requests):
            if requests.ring != "rx":
                continue
            skip = (last.get(requests.queue, requests.first) - requests.first) % WRAP
            skip = 0 if skip >= WRAP // 2 else skip
            last[requests.queue] = requests.prod
            for number, slot in enumerate(requests.slots):
                if number >= skip:
                    ident, pad, gref = RX_REQUEST.unpack(slot)
                    index = (requests.first + number) % WRAP
                    found.append(RxRequest(at, requests.queue, index, ident, pad, gref))
        return found

    def opened(self, *rings: Ring) -> Iterator[Opened]:
        """The rings that the backend opened, each once."""
        seen = set()
        for _, opened in self.all(Opened):
            if opened.ring in rings and (opened.ring, opened.queue) not in seen:
                seen.add((opened.ring, opened.queue))
                yield opened

    @cached_property
    def answered(self) -> dict[tuple[str, int, int], int]:
        """Where the response of a slot was published, by ring, queue and index."""
        found: dict[tuple[str, int, int], int] = {}
        for at, responses in self.all(Responses):
            for number in range(len(responses.slots)):
                found[responses.ring, responses.queue, (responses.first + number) % WRAP] = at
        return found
