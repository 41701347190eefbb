# SPDX-License-Identifier: Apache-2.0
"""One set of subscriptions for any number of browsers: the backend serves a page's readers as one client.

Each topic has a thread that reads it, and starts again when the backend has returned. A browser that reads too slowly
loses the oldest events, which are counted for it.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from netback.control import Client, ControlError
from netback.control.client import Subscription
from netback.dataplane.counters import LOSSES

RETRY_SECONDS = 0.3
BACKLOG = 256
"""Events that wait for one browser."""
REMEMBERED = 200
"""Events of the timeline that a page which was just opened gets."""


_LOSSES = [name for names in LOSSES.values() for name in names]
"""The counters that the page adds up as lost frames."""


class Reader:
    """What waits for one browser."""

    def __init__(self) -> None:
        self._events: deque[tuple[str, Any]] = deque(maxlen=BACKLOG)
        self._news = asyncio.Event()
        self._lost = 0

    def put(self, kind: str, event: Any) -> None:
        self._lost += len(self._events) == BACKLOG
        self._events.append((kind, event))
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[tuple[str, Any]]:
        while True:
            await self._news.wait()
            self._news.clear()
            if self._lost:
                yield "lost", self._lost
                self._lost = 0
            while self._events:
                yield self._events.popleft()


class Hub:
    """The subscriptions to the backend in `directory`, from `start` to `stop`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._readers: set[Reader] = set()
        self._timeline: deque[tuple[str, Any]] = deque(maxlen=REMEMBERED)
        self._stopping = threading.Event()
        self._open: set[Subscription[Any]] = set()
        self._backend: Any = None

    def start(self) -> None:
        """Begin to read, in threads that end with the process at the latest."""
        self._loop = asyncio.get_running_loop()
        topics: dict[str, Callable[[Client], Subscription[Any]]] = {
            "state": lambda client: client.states(),
            "notice": lambda client: client.notices(),
            "trace": lambda client: client.trace(),
            "statistics": lambda client: client.statistics(1.0),
        }
        for kind, subscribe in topics.items():
            threading.Thread(target=self._follow, args=(kind, subscribe), name=kind, daemon=True).start()

    def stop(self) -> None:
        """End the subscriptions."""
        self._stopping.set()
        for subscription in [*self._open]:
            subscription.close()

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """A new browser's events, beginning with the backend and the timeline so far."""
        reader = Reader()
        reader.put("backend", self._backend)
        for kind, event in self._timeline:
            reader.put(kind, event)
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)

    @property
    def readers(self) -> int:
        """How many browsers listen."""
        return len(self._readers)

    def tell(self, kind: str, event: Any) -> None:
        """Send an event to every browser."""
        if kind == "backend":
            if event == self._backend:
                return
            self._backend = event
        elif kind not in ("statistics", "lesson"):
            self._timeline.append((kind, event))
        for reader in self._readers:
            reader.put(kind, event)

    def _follow(self, kind: str, subscribe: Callable[[Client], Subscription[Any]]) -> None:
        while not self._stopping.is_set():
            try:
                with Client(self.directory) as client, subscribe(client) as subscription:
                    self._open.add(subscription)
                    self._pass_on("backend", msgspec.to_builtins(client.info()) | {"losses": _LOSSES})
                    self._read(kind, subscription)
            except (ControlError, OSError, ValueError):  # the backend ended, or `stop` closed the socket
                if kind == "state":
                    self._pass_on("backend", None)
            self._stopping.wait(RETRY_SECONDS)

    def _read(self, kind: str, subscription: Subscription[Any]) -> None:
        try:
            for events in subscription.moments():
                self._pass_on(kind, msgspec.to_builtins(events))
        finally:
            self._open.discard(subscription)

    def _pass_on(self, kind: str, event: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: the process ends
            self._loop.call_soon_threadsafe(self.tell, kind, event)
