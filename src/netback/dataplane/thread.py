# SPDX-License-Identifier: Apache-2.0
"""A worker's thread: serves queues with the GIL released and comes back to Python only when asked, or to report.

Knows links and workers, nothing of vifs.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from netback.dataplane.link import Link
from netback.dataplane.notices import Notice
from netback.dataplane.worker import Worker

T = TypeVar("T")


class WorkerThread:
    """Runs one Worker; `on_notice(link, notice)` and `on_records(data, lost)` are called in its thread."""

    def __init__(
        self,
        worker: Worker,
        *,
        on_notice: Callable[[Link, Notice], None],
        on_records: Callable[[bytes, int], None],
        name: str = "netback-worker",
        cpu: int | None = None,
    ) -> None:
        self.worker = worker
        self._on_notice = on_notice
        self._on_records = on_records
        self._cpu = cpu
        self._calls: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[Worker], T]) -> Future[T]:
        """Have `call(worker)` run between two bursts: nothing else touches a served queue.

        Once the thread has ended it runs here and now (XSA-374: a dead worker is a normal state to take down).
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

    def stop(self) -> None:
        """End the thread; its queues stand still where they are. Any number of times."""
        self._stopping = True
        self.worker.wake()
        self._thread.join()
        self._make_calls()

    def _run(self) -> None:
        if self._cpu is not None:
            os.sched_setaffinity(0, {self._cpu})
        while not self._stopping:
            self._turn()

    def _turn(self) -> None:
        """Serve until something is up. A call of its own, so that a sleeping thread keeps no broken link, and with it
        a dead guest's memory, alive.
        """
        notices = self.worker.run()
        data, lost = self.worker.records()
        if data or lost:
            self._on_records(data, lost)
        for link, notice in notices:
            self._on_notice(link, notice)
        self._make_calls()

    def _make_calls(self) -> None:
        """After all is told: a call may give a queue's place to another one."""
        while self._calls:
            self._calls.popleft()()
