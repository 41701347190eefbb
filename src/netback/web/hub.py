# SPDX-License-Identifier: Apache-2.0
"""One set of subscriptions for any number of browsers: the backend serves a page's readers as one client.

Each topic has a thread that reads it, and starts again when the backend has returned. A browser that reads too slowly
loses the oldest events, which are counted for it.
"""

import asyncio
import threading
import time
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
"""Entries of the timeline that a page which was just opened gets."""


_LOSSES = [name for names in LOSSES.values() for name in names]
"""The counters that the page adds up as lost frames."""


class Reader:
    """What waits for one browser. `present` returns the events that describe what is: after a loss they are sent."""

    def __init__(self, present: Callable[[], list[tuple[str, Any]]]) -> None:
        self._present = present
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
                for kind, event in self._present():
                    yield kind, event
            while self._events:
                yield self._events.popleft()


class Hub:
    """The subscriptions to the backend in `directory`, from `start` to `stop`.

    The kinds of events: "backend" (its info, or None), "devices" (the states of all), "state" (those that changed),
    "statistics", "timeline" (entries with the time at which the hub got them), and "lost" (how many events were).
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._readers: set[Reader] = set()
        self._timeline: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)
        self._stopping = threading.Event()
        self._open: set[Subscription[Any]] = set()
        self._backend: Any = None
        self._devices: dict[str, Any] = {}

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
        """A new browser's events, beginning with the backend, every device and the timeline so far."""
        reader = Reader(self._present)
        for kind, event in self._present():
            reader.put(kind, event)
        reader.put("timeline", [*self._timeline])
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)

    @property
    def readers(self) -> int:
        """How many browsers listen."""
        return len(self._readers)

    def follow(self, directory: Path) -> None:
        """Turn to the backend in another directory."""
        self.directory = directory
        for subscription in [*self._open]:
            subscription.close()

    def tell(self, kind: str, event: Any) -> None:
        """Send an event to every browser."""
        for reader in self._readers:
            reader.put(kind, event)

    def _present(self) -> list[tuple[str, Any]]:
        return [("backend", self._backend), ("devices", [*self._devices.values()])]

    def take(self, kind: str, event: Any, at: float) -> None:
        """Keep what a topic brought `at` seconds since 1970, and send it."""
        match kind:
            case "backend":
                if event != self._backend:
                    self._backend = event
                    self.tell(kind, event)
                    self._enter(kind, [event], at)
            case "devices":
                before, self._devices = self._devices, {state["device"]: state for state in event}
                self.tell(kind, event)
                gone = [{"device": name, "gone": True} for name in before if name not in self._devices]
                changed = [state for state in event if before.get(state["device"]) != state]
                self._enter("state", [*gone, *changed], at)
            case "state":
                for state in event:
                    if state["gone"]:
                        self._devices.pop(state["device"], None)
                    else:
                        self._devices[state["device"]] = state
                self.tell(kind, event)
                self._enter(kind, event, at)
            case "statistics":
                self.tell(kind, event)
            case _:
                self._enter(kind, event, at)

    def _enter(self, kind: str, events: list[Any], at: float) -> None:
        """Add events of a kind to the timeline."""
        entries = [{"time": at, "kind": kind, "event": event} for event in events]
        self._timeline += entries
        if entries:
            self.tell("timeline", entries)

    def _follow(self, kind: str, subscribe: Callable[[Client], Subscription[Any]]) -> None:
        while not self._stopping.is_set():
            try:
                with Client(self.directory) as client, subscribe(client) as subscription:
                    self._open.add(subscription)
                    if kind == "state":
                        self._pass_on("backend", msgspec.to_builtins(client.info()) | {"losses": _LOSSES})
                    self._read(kind, subscription)
            except (ControlError, OSError, ValueError):  # the backend ended, or `stop` closed the socket
                if kind == "state":
                    self._pass_on("backend", None)
            self._stopping.wait(RETRY_SECONDS)

    def _read(self, kind: str, subscription: Subscription[Any]) -> None:
        try:
            for number, events in enumerate(subscription.moments()):
                # a subscription to states begins with every device: those that the page has beside them are gone
                begins = kind == "state" and number == 0
                self._pass_on("devices" if begins else kind, msgspec.to_builtins(events))
        finally:
            self._open.discard(subscription)

    def _pass_on(self, kind: str, event: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: the process ends
            self._loop.call_soon_threadsafe(self.take, kind, event, time.time())
