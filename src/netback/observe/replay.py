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
from netback.observe.recording import Note, Poll, Recording, kind_name
from netback.observe.rings import decode_queue
from netback.observe.slots import Ring

_EVENTS = {2: "event", 4: "frames", 8: "room", 16: "timer"}
"""EVENT_* of dataplane/link.pxd."""


@dataclass(frozen=True, slots=True)
class Step:
    """One poll that was played."""

    number: int
    """From 1 on, of all queues."""
    queue: int
    poll: Poll
    differs: str
    """How it went another way than the recorded one; empty if it did not."""
    skipped: bool
    """It cannot be played: it goes on with a frame that came before the recording."""
    broken: str | None
    """How the guest broke the protocol."""
    states: tuple[State, State]
    """Of both directions, after it."""
    pages: Mapping[str, bytes]
    """Both rings after it."""
    waiting: int
    """RX frames that wait for slots."""

    @property
    def ring(self) -> Ring:
        """The ring after it, decoded."""
        copies = {ring: (page, True, 0) for ring, page in self.pages.items()}
        suffix = f"-q{self.queue}" if self.queue else ""
        return decode_queue(suffix, self.states, copies, self.waiting, 0)[self.poll.ring == "rx"]


@dataclass(frozen=True, slots=True)
class Result:
    """What a replay came to."""

    steps: int
    skipped: int
    differs: Step | None
    """The first step that did."""
    broken: str | None


def play(recording: Recording) -> Iterator[Step | Note]:
    """Play the polls of all queues in the order of time, with the notes between them. ConfigError: a poll is damaged in
    a way that its form does not show.
    """
    replays: dict[int, Replay] = {}
    numbers = itertools.count(1)
    for _, number, what in heapq.merge(
        _in_order(-1, recording.header.notes), *(_in_order(*each) for each in enumerate(recording.queues)),
        key=lambda each: each[0],
    ):  # fmt: skip
        if isinstance(what, Note):
            yield what
            continue
        step = next(numbers)
        try:
            replay = replays[number] if number in replays else replays.setdefault(number, Replay())
            yield _step(replay, step, number, what, recording)
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


def _step(replay: Replay, step: int, number: int, poll: Poll, recording: Recording) -> Step:
    hash = None if poll.hash is None else Toeplitz(*poll.hash)
    outcome = replay.poll(poll.data, slots=poll.slots, req_prod=poll.req_prod, hash=hash)
    differs, broken = "", None
    if outcome is not None:
        state, reason, notify, counters, wanted, found = outcome
        broken = REASONS[reason] if reason else None
        end = poll.end
        names = recording.header.counters
        was = {names[number]: added for number, added in end.counters if number < len(names)}
        now = {COUNTERS[number]: added for number, added in counters.items()}
        if wanted and wanted == found:
            differs = f"its {kind_name(wanted)} are others"
        elif wanted:
            differs = f"it comes to {kind_name(wanted)} where the recording has {kind_name(found)}"
        elif state != end.a:
            differs = f"its state is {State(state).name}, and was {_state(end.a)}"
        elif reason != end.b:
            differs = f"it ends with {broken!r}, and ended with {REASONS.get(end.b)!r}"
        elif notify != bool(end.c):
            differs = f"the guest is {'' if notify else 'not '}notified"
        elif was != now:
            name = min(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
            differs = f"{name} rises by {now.get(name, 0)}, and rose by {was.get(name, 0)}"
    copies, waiting, _ = replay.snapshot()
    tx, rx = replay.states
    return Step(
        number=step,
        queue=number,
        poll=poll,
        differs=differs,
        skipped=outcome is None,
        broken=broken,
        states=(State(tx), State(rx)),
        pages={ring: page for ring, (page, _, _) in copies.items()},
        waiting=waiting,
    )


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
                parts.append(_count(item.count, "request"))
            case "claim":
                parts.append(f"credit for {_count(item.a, 'frame')}")
            case "copies":
                failed = sum(status != 0 for _, _, _, status, _ in item.copies)
                wrong = f", {failed} failed" if failed else ""
                parts.append(_count(item.count, "copy", "copies") + wrong)
            case "sent":
                lost = f", {item.c} refused" if item.c else ""
                parts.append(f"{item.a} of {_count(item.b, 'frame')} sent{lost}")
            case "frames" if item.a:
                parts.append(f"{_count(item.a, 'frame')} received" if item.a < 1 << 31 else "a read failed")
            case "responses":
                parts.append(_count(item.count, "response"))
    parts += ["the guest is notified"] if poll.end.c else []
    return f"{', '.join(parts)}; {_state(poll.end.a)}"


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"
