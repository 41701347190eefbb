# SPDX-License-Identifier: Apache-2.0
"""Workers as vifs use them: each a thread with its own handle of event channels, and queues spread over them.

Knows queues and whom to tell about them, nothing of what a vif is.
"""

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from netback.dataplane.arena import Arena
from netback.dataplane.link import Link
from netback.dataplane.notices import Notice
from netback.dataplane.records import Record, parse_records
from netback.dataplane.thread import WorkerThread
from netback.dataplane.worker import Worker
from netback.platforms.base import EventChannels, Platform

log = logging.getLogger("netback.worker")


@dataclass(frozen=True, slots=True)
class Listener:
    """Whom a queue reports to; both are called in the worker's thread."""

    broken: Callable[[], object]
    record: Callable[[Record], None]


class QueueWorker:
    """One worker and its handle of event channels. Its methods return when its thread has done what they say."""

    def __init__(self, events: EventChannels, arena: Arena, name: str) -> None:
        self.events = events
        self.queues = 0
        self._listeners: dict[int, Listener] = {}
        self._thread = WorkerThread(
            Worker(events.native, arena), on_notice=self._notice, on_records=self._records, name=name
        )

    def reserve(self, undo: ExitStack) -> None:
        """Count a queue as ours from when it is being made."""
        self.queues += 1
        undo.callback(self._release)

    def add(self, queue: Link, listener: Listener) -> None:
        """Serve a queue: its rings are drained, armed, and the frontend is notified once."""

        def call(worker: Worker) -> None:
            worker.add(queue)
            self._listeners[queue.index] = listener

        self._thread.submit(call).result()

    def remove(self, queue: Link) -> None:
        """Serve it no more, once what it wrote down is told."""

        def call(worker: Worker) -> None:
            self._records(*worker.records())
            worker.remove(queue)
            self._listeners.pop(queue.index, None)

        self._thread.submit(call).result()

    def refuse_rx(self, queue: Link) -> None:
        """Take no more frames for this guest."""

        def call(worker: Worker) -> None:
            queue.freeze()
            worker.refresh(queue)

        self._thread.submit(call).result()

    def watch(self, queue: Link, *, traced: bool, captured: bool) -> None:
        """Have the queue write down each slot, or each frame, from now on."""
        self._thread.submit(lambda _worker: queue.watch(traced=traced, captured=captured)).result()

    def flush(self) -> None:
        """Tell what was written down until now."""
        self._thread.submit(lambda worker: self._records(*worker.records())).result()

    def close(self) -> None:
        """End the thread, then the event channels: rings stay as they are."""
        self._thread.stop()
        self.events.close()

    def _release(self) -> None:
        self.queues -= 1

    def _notice(self, queue: Link, notice: Notice) -> None:
        listener = self._listeners.get(queue.index)
        if listener is not None and notice is Notice.BROKEN:
            listener.broken()

    def _records(self, data: bytes, lost: int) -> None:
        if lost:
            log.warning("%d trace records lost: the reader is slower than the rings", lost)
        for record in parse_records(data):
            if (listener := self._listeners.get(record.link)) is not None:
                listener.record(record)


class Workers:
    """All workers of a backend: one for each core unless told otherwise."""

    def __init__(self, platform: Platform, count: int | None = None) -> None:
        with ExitStack() as undo:
            self._workers = [
                self._start(platform, number, undo) for number in range(count or len(os.sched_getaffinity(0)))
            ]
            self._undo = undo.pop_all()

    @property
    def queues(self) -> list[int]:
        """How many queues each worker serves."""
        return [worker.queues for worker in self._workers]

    def least_busy(self) -> QueueWorker:
        """Where the next queue goes."""
        return min(self._workers, key=lambda worker: worker.queues)

    def flush(self) -> None:
        """Tell what every queue wrote down until now."""
        for worker in self._workers:
            worker.flush()

    def close(self) -> None:
        """End every thread. Any number of times."""
        self._undo.close()

    @staticmethod
    def _start(platform: Platform, number: int, undo: ExitStack) -> QueueWorker:
        events = platform.open_events()
        undo.callback(events.close)
        worker = QueueWorker(events, platform.open_arena(), f"netback-worker-{number}")
        undo.callback(worker.close)
        return worker
