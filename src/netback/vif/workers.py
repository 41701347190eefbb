# SPDX-License-Identifier: Apache-2.0
"""The worker threads of a backend, and how control code waits for them."""

import asyncio
import logging
import os
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from netback.dataplane.thread import WorkerThread
from netback.dataplane.worker import Worker
from netback.observe.trace import LogBudget
from netback.platforms.base import EventChannels, Platform
from netback.vif.control_ports import ControlPorts, StagingBudget

log = logging.getLogger("netback.worker")


async def finished(futures: Iterable[Future[Any]]) -> None:
    """Wait until all futures are done, then raise the first error among them.

    A task that is cancelled meanwhile still waits to the end and is cancelled then: a worker may use the caller's
    resources until then. The wait is bounded by the worker's current round and does not block the event loop.
    """
    waiting = {asyncio.wrap_future(future) for future in futures}
    cancelled: asyncio.CancelledError | None = None
    while any(not future.done() for future in waiting):
        try:
            await asyncio.wait(waiting)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    for future in waiting:
        future.result()


@dataclass(eq=False, slots=True)
class QueueWorker:
    """A worker's thread, the event channels that wake it, and the number of its present and coming links: queues, and
    what steers frames to queues.
    """

    thread: WorkerThread
    events: EventChannels
    number: int
    """Its place among the workers; its ring in every capture."""
    queues: int = 0

    def close(self) -> None:
        """End the thread, then the event channels; rings stay unchanged. May be called again."""
        self.thread.stop()
        self.events.close()


class Workers:
    """All workers of a backend: `count`, or one for each core that this process may use. `control_ports` are the event
    channels that the event loop serves beside them, `staging` the pages that guests may stage.
    """

    def __init__(self, platform: Platform, count: int | None = None) -> None:
        with ExitStack() as undo:
            self.workers = tuple(
                _start(platform, number, undo) for number in range(count or len(os.sched_getaffinity(0)))
            )
            self.control_ports = ControlPorts(platform)
            self.staging = StagingBudget()
            self._undo = undo.pop_all()

    @property
    def queues(self) -> list[int]:
        """How many links each worker serves."""
        return [worker.queues for worker in self.workers]

    def reserve(self, undo: ExitStack) -> QueueWorker:
        """Choose the worker with the fewest links; it counts one more until `undo` is closed."""
        worker = min(self.workers, key=lambda worker: worker.queues)
        worker.queues += 1

        def release() -> None:
            worker.queues -= 1

        undo.callback(release)
        return worker

    async def flush(self) -> None:
        """Have every record that was written so far reported. Returns once each thread has run."""
        await finished([worker.thread.flush() for worker in self.workers])

    def close(self) -> None:
        """End every thread and wait for it: for the end of the process. May be called again."""
        self._undo.close()


def _start(platform: Platform, number: int, undo: ExitStack) -> QueueWorker:
    name, budget = f"netback-worker-{number}", LogBudget()
    events = platform.open_events()
    undo.callback(events.close)
    thread = WorkerThread(
        Worker(events.native, platform.open_arena()),
        on_lost=lambda count: budget.warn(log, f"{name}: {count} records lost: traces are slow"),
        name=name,
    )
    worker = QueueWorker(thread, events, number)
    undo.callback(worker.close)
    return worker
