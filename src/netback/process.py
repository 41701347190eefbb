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
    """SIGINT and SIGTERM call `stop` in the running loop, so that the end is one in order; elsewhere than in the main
    thread, which alone gets signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


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
