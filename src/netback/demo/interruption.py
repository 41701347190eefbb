# SPDX-License-Identifier: Apache-2.0
"""Signals that end a demo: whenever a signal comes, the work in progress is undone first."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A signal came; `code` is the exit code that a shell expects."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


class Interruption:
    """Handles SIGNALS from now on: the first one cancels the work in `run`, or is kept for `check`.

    An ignored SIGHUP stays ignored: nohup(1) starts programs so.
    """

    def __init__(self) -> None:
        self._number = 0
        self._cancel: Callable[[], object] = lambda: None
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self._number:
            raise Interrupted(self._number)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of `work`; Interrupted if a signal cancelled it."""
        try:
            return asyncio.run(self._cancellable(work))
        except asyncio.CancelledError:
            self.check()
            raise
        finally:
            self._cancel = lambda: None

    async def _cancellable(self, work: Coroutine[Any, Any, T]) -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        if self._number:
            work.close()
            raise asyncio.CancelledError
        return await work

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        first, self._number = not self._number, self._number or number
        if first:
            self._cancel()
