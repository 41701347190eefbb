# SPDX-License-Identifier: Apache-2.0
"""Signals that end a demo: whenever one comes, what was begun is undone first. Knows signals, not what is undone."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A signal came; `code` is what the shell expects then."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


class Interruption:
    """Catches the signals from now on: between two lines of code it only takes a note, or cancels what runs."""

    def __init__(self) -> None:
        self._number = 0
        self._cancel: Callable[[], object] = lambda: None
        for number in SIGNALS:
            signal.signal(number, self._hear)

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        if self._number:
            raise Interrupted(self._number)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled by a signal; then Interrupted."""
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

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        first, self._number = not self._number, self._number or number
        if first:
            self._cancel()
