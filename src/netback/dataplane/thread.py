# SPDX-License-Identifier: Apache-2.0
"""A worker's thread: serves links with the GIL released; it takes the GIL only when requested, or to report.

This module handles links, their listeners and one Worker.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from netback.dataplane.link import Link
from netback.dataplane.notices import Notice
from netback.dataplane.records import Record, parse_records
from netback.dataplane.worker import Worker

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Listener:
    """Receives the reports of one link. Both functions are called in the worker's thread, and must not raise."""

    notice: Callable[[Notice], object]
    record: Callable[[Record], object] = lambda _record: None


class WorkerThread:
    """A thread that runs one Worker until `stop`.

    Only this thread accesses a link that is served: control code submits calls, which run between two bursts in the
    order in which they were submitted. Each returns a Future; a coroutine awaits it by asyncio.wrap_future.
    """

    def __init__(
        self,
        worker: Worker,
        *,
        on_lost: Callable[[int], object] = lambda _count: None,
        name: str = "netback-worker",
        cpu: int | None = None,
    ) -> None:
        """`on_lost(count)` is called in the thread when records were lost because their buffer was full; `cpu` pins the
        thread.
        """
        self.worker = worker
        self._on_lost = on_lost
        self._cpu = cpu
        self._listeners: dict[int, Listener] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[Worker], T]) -> Future[T]:
        """Run `call(worker)` in the thread. An exception that it raises becomes the Future's.

        After the thread's end the call runs at once in the caller's thread: taking down the queues of a dead worker
        must not wait for it (XSA-374).
        """
        future: Future[T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call(self.worker))
                except BaseException as error:
                    future.set_exception(error)

        self._calls.append(run)
        self.worker.wake()
        if self._stopping:
            self.stop()
        return future

    def add(self, link: Link, listener: Listener, *, receives: bool = True) -> Future[None]:
        """Serve a link: its rings are drained and armed, the far side is notified once. PlatformError: no room.

        `receives`: it takes frames from its peer; otherwise it only sends, since another link takes them.
        """

        def call(worker: Worker) -> None:
            worker.add(link)
            if not receives:
                worker.refuse_rx(link)
            self._listeners[link.index] = listener

        return self.submit(call)

    def remove(self, link: Link) -> Future[None]:
        """Stop serving a link, after reporting its last records. A link that is not served is a normal state."""

        def call(worker: Worker) -> None:
            self._report(*worker.records())
            worker.remove(link)
            self._listeners.pop(link.index, None)

        return self.submit(call)

    def flush(self) -> Future[None]:
        """Report the records written so far."""
        return self.submit(lambda worker: self._report(*worker.records()))

    def stop(self) -> None:
        """End the thread and wait for it; its links stay unchanged. May be called again."""
        self._stopping = True
        self.worker.wake()
        self._thread.join()
        self._make_calls()

    def _run(self) -> None:
        if self._cpu is not None:
            os.sched_setaffinity(0, {self._cpu})
        while not self._stopping:
            self._serve()

    def _serve(self) -> None:
        """Serve until there is a report or a call. This is a separate function because a sleeping thread must keep no
        reference to a broken link, which would keep a dead guest's memory mapped.
        """
        notices = self.worker.run()
        self._report(*self.worker.records())
        for link, notice in notices:
            if (listener := self._listeners.get(link.index)) is not None:
                listener.notice(notice)
        self._make_calls()

    def _report(self, data: bytes, lost: int) -> None:
        if lost:
            self._on_lost(lost)
        for record in parse_records(data):
            if (listener := self._listeners.get(record.link)) is not None:
                listener.record(record)

    def _make_calls(self) -> None:
        """Reports come first: a call may assign a link's index to another link."""
        while self._calls:
            self._calls.popleft()()
