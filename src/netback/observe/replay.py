# SPDX-License-Identifier: Apache-2.0
"""Plays a recording: the backend's own code is given what it read then, poll by poll, and must do the same again.

Nothing here depends on this machine or on the time, so two replays of a file are the same.
"""

import heapq
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from netback.dataplane.back.replay import Replay
from netback.dataplane.link import COUNTERS, REASONS
from netback.dataplane.states import State
from netback.dataplane.toeplitz import Toeplitz
from netback.errors import ConfigError
from netback.observe.recording import Item, Note, Poll, Recording, kind_name
from netback.observe.rings import decode_queue
from netback.observe.slots import Ring

_EVENTS = {2: "event", 4: "frames", 8: "room", 16: "timer"}
"""EVENT_* of dataplane/link.pxd."""


@dataclass(frozen=True, slots=True)
class Step:
    """One poll that was played."""

    number: int
    """From 1 on, of all queues."""
    time: int
    """ns, CLOCK_MONOTONIC, not before the last step of its queue."""
    queue: int
    poll: Poll
    differs: str
    """How it went another way than the recorded one; empty if it did not."""
    broken: str | None
    """How the guest broke the protocol."""
    states: tuple[State, State]
    """Of both directions, after it."""
    pages: Mapping[str, bytes]
    """Both rings after it."""
    waiting: int
    """RX frames that wait for slots."""
    quiet: int
    """ns since a response was published in this ring, or since its first poll."""

    @property
    def ring(self) -> Ring:
        """The ring after it, decoded."""
        copies = {ring: (page, True, self.quiet) for ring, page in self.pages.items()}
        suffix = f"-q{self.queue}" if self.queue else ""
        return decode_queue(suffix, self.states, copies, self.waiting, 0)[self.poll.ring == "rx"]


def play(recording: Recording) -> Iterator[Step | Note]:
    """Play the polls of all queues in the order of time, with the notes between them. ConfigError: a poll is damaged in
    a way that its form does not show.
    """
    queues: dict[int, _Queue] = {}
    steps = itertools.count(1)
    parts = [
        _in_order(-1, recording.header.notes),
        *itertools.starmap(_in_order, enumerate(recording.queues)),
    ]
    for time, number, what in heapq.merge(*parts, key=lambda each: each[0]):
        if isinstance(what, Note):
            yield what
            continue
        if number not in queues:
            queues[number] = _Queue(number, recording.header.counters)
        step = next(steps)
        try:
            yield queues[number].play(step, time, what)
        except ValueError as error:
            raise ConfigError(f"step {step}, a poll of queue {number}, is damaged: {error}") from error


def _in_order(
    number: int, polls: tuple[Poll, ...] | tuple[Note, ...]
) -> Iterator[tuple[int, int, Poll | Note]]:
    """With their times, which do not decrease: the clock of RX polls is a little behind that of TX polls."""
    latest = 0
    for each in polls:
        latest = max(latest, each.time)
        yield latest, number, each


class _Queue:
    """One queue that is played."""

    def __init__(self, number: int, counters: tuple[str, ...]) -> None:
        self._number, self._counters = number, counters
        self._replay = Replay()
        self._responded: dict[str, int] = {}
        """When each ring got its last response, or was first polled, in ns."""

    def play(self, step: int, time: int, poll: Poll) -> Step:
        """ValueError: the poll is damaged."""
        hash = None if poll.hash is None else Toeplitz(*poll.hash)
        outcome = self._replay.poll(
            poll.data, slots=poll.slots, req_prod=poll.req_prod, rsp_event=poll.rsp_event, hash=hash
        )
        if any(poll.find("responses")):
            self._responded[poll.ring] = time
        copies, waiting, _ = self._replay.snapshot()
        tx, rx = self._replay.states
        return Step(
            number=step,
            time=time,
            queue=self._number,
            poll=poll,
            differs=self._difference(poll.end, *outcome),
            broken=REASONS[outcome[1]] if outcome[1] else None,
            states=(State(tx), State(rx)),
            pages={ring: page for ring, (page, _, _) in copies.items()},
            waiting=waiting,
            quiet=time - self._responded.setdefault(poll.ring, time),
        )

    def _difference(
        self,
        end: Item,
        state: int,
        reason: int,
        notify: bool,
        counters: dict[int, int],
        wanted: int,
        found: int,
    ) -> str:
        """How a poll went another way than the recorded one, which ended so; empty if it did not."""
        if wanted and wanted == found:
            return f"its {kind_name(wanted)} are others"
        if wanted:
            return f"it comes to {kind_name(wanted)} where the recording has {kind_name(found)}"
        if state != end.a:
            return f"its state is {_state(state)}, and was {_state(end.a)}"
        if reason != end.b:
            return f"it ends with {REASONS.get(reason)!r}, and ended with {REASONS.get(end.b)!r}"
        if notify != bool(end.c):
            return f"the guest is {'' if notify else 'not '}notified"
        was = {self._counters[each]: added for each, added in end.counters if each < len(self._counters)}
        now = {COUNTERS[each]: added for each, added in counters.items()}
        for name in sorted(was.keys() | now.keys()):
            if was.get(name) != now.get(name):
                return f"{name} rises by {now.get(name, 0)}, and rose by {was.get(name, 0)}"
        return ""


def _state(number: int) -> str:
    return State(number).name if number < len(State) else str(number)


def describe(poll: Poll) -> str:
    """A poll in one line: what woke it, what it read, and what it made."""
    events = [name for bit, name in _EVENTS.items() if poll.events & bit]
    parts = [f"after {' and '.join(events)}" if events else "polled"]
    if poll.req_prod is not None:
        parts.append(f"req_prod {poll.req_prod}")
    for item in poll.items:
        match item.kind:
            case "slots":
                parts.append(count(item.count, "request"))
            case "claim":
                parts.append(f"credit for {count(item.a, 'frame')}")
            case "copies":
                failed = sum(status != 0 for _, _, _, status, _ in item.copies)
                wrong = f", {failed} failed" if failed else ""
                parts.append(count(item.count, "copy", "copies") + wrong)
            case "sent":
                lost = f", {item.c} refused" if item.c else ""
                parts.append(f"{item.a} of {count(item.b, 'frame')} sent{lost}")
            case "frames" if item.a:
                parts.append(f"{count(item.a, 'frame')} received" if item.a < 1 << 31 else "a read failed")
            case "responses":
                parts.append(count(item.count, "response"))
    parts += ["the guest is notified"] if poll.end.c else []
    return f"{', '.join(parts)}; {_state(poll.end.a)}"


def count(number: int, one: str, several: str = "") -> str:
    """A number of things in words."""
    return f"{number} {one if number == 1 else several or one + 's'}"
