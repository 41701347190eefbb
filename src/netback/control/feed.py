# SPDX-License-Identifier: Apache-2.0
"""The events of a subscription on their way to its client: a bounded queue that any thread may fill.

A topic is a function from a subscription to an asynchronous iterator of batches. The server takes the next batch when
the client has room for it: a client that does not read keeps no more than the feed's bound, and learns what it missed.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from netback.control.schema import Result, SubscribeRequest

MAX_EVENTS = 1024
"""Events that wait for a client, at most; one more is lost."""
BATCH = 256
"""Events of one line, at most."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Events for one notification."""

    events: Sequence[Result]
    lost: int = 0
    """How many events of the subscription were lost since the last batch; of statistics, how many snapshots."""
    more: bool = False
    """Whether further batches belong to the same moment."""
    descriptors: tuple[int, ...] = ()
    """Descriptors that go to the client with the notification; they stay the source's."""


Source = Callable[[SubscribeRequest], AsyncGenerator[Batch, None]]
"""Begins a subscription. A NetbackError of the first step is the answer to `subscribe`; its batch may be empty."""
Topics = Mapping[str, Source]


class Feed:
    """Created in the event loop, which takes; any thread posts."""

    def __init__(self, bound: int = MAX_EVENTS) -> None:
        self._bound = bound
        self._events: deque[Result] = deque()
        self._lost = 0
        self._filled = asyncio.Event()
        self._woken = False
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()

    def post(self, event: Result) -> None:
        """Add an event, or count it as lost. Never blocks."""
        with self._lock:
            if len(self._events) >= self._bound:
                self._lost += 1
                return
            self._events.append(event)
            if self._woken:
                return
            self._woken = True
        with suppress(RuntimeError):  # the loop is closed: nobody takes
            self._loop.call_soon_threadsafe(self._filled.set)  # one such call waits in the loop at a time

    def lose(self, count: int) -> None:
        """Count events that were lost on their way here. The next batch tells."""
        with self._lock:
            self._lost += count

    async def take(self) -> Batch:
        """Wait for events; return the oldest ones, and how many were lost since the last call."""
        await self._filled.wait()
        with self._lock:
            events = [*islice(self._events, BATCH)]
            for _ in events:
                self._events.popleft()
            lost, self._lost = self._lost, 0
            if not self._events:
                self._woken = False
                self._filled.clear()
        return Batch(events, lost)
