# SPDX-License-Identifier: Apache-2.0
"""This process and the kernel: how many descriptors it may have, and which signals end it."""

import asyncio
import resource
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any


def allow_descriptors() -> None:
    """Raise the soft limit of open files to the hard one: a thousand domains or vifs take some five each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def ended_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call `stop` in the running loop; the former handlers stand again at the end of the context.

    Only the main thread gets signals: in any other, nothing changes. Not by the loop's own add_signal_handler, whose
    removal leaves a moment in which SIGINT raises KeyboardInterrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in former:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


async def until_stopped(stop: asyncio.Event, going: Coroutine[Any, Any, object]) -> None:
    """Until somebody says stop, or until what was to go on for ever ends: its error is raised."""
    stopped, ended = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(going)
    try:
        done, _ = await asyncio.wait({stopped, ended}, return_when=asyncio.FIRST_COMPLETED)
        if ended in done:
            ended.result()
    finally:
        for future in (stopped, ended):
            future.cancel()
        await asyncio.wait({stopped, ended})
