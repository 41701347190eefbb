# SPDX-License-Identifier: Apache-2.0
"""Trace points on their way from workers to subscribers: a worker pays for one event, however many subscribe.

Workers fill one feed. The event loop hands its events on, for at most half of its time; what comes faster is lost and
counted for every subscriber.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from netback.control.feed import Feed
from netback.control.schema import TraceEvent
from netback.errors import printable
from netback.observe.announce import Announcements
from netback.observe.trace import Tracer
from netback.vif.queue import queue_owner

Owned = tuple[str, TraceEvent]
"""The device that an event belongs to, and the event."""


class Traces:
    """The trace points of one backend for all subscribers."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._events: Announcements[Owned] = Announcements()
        self._losses: Announcements[int] = Announcements()
        self._feed = Feed()
        self._listeners = 0
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def heard_by(
        self, points: frozenset[str], hear: Callable[[Owned], object], lose: Callable[[int], object]
    ) -> Iterator[None]:
        """Call `hear` with events of these points and perhaps of others, and `lose` with numbers of lost ones, in the
        loop's thread while the context lasts.
        """
        with (
            self._tracer.sent_to(self._post, points),
            self._events.heard_by(hear),
            self._losses.heard_by(lose),
        ):
            self._listeners += 1
            self._task = self._task or asyncio.create_task(self._distribute())
            try:
                yield
            finally:
                self._listeners -= 1
                if not self._listeners:
                    self._task.cancel()
                    self._task = None

    def _post(self, name: str, time: float, values: Mapping[str, object]) -> None:
        """Called in any thread."""
        plain: dict[str, int | str] = {
            name: value if isinstance(value, int) else printable(str(value)) for name, value in values.items()
        }
        self._feed.post(TraceEvent(time=time, point=name, values=plain))

    async def _distribute(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._feed.take()
            if batch.lost:
                self._losses.announce(batch.lost)
            for event in batch.events:
                start = loop.time()
                assert isinstance(event, TraceEvent)
                self._events.announce((queue_owner(str(event.values["dev"])), event))
                await asyncio.sleep(loop.time() - start)
