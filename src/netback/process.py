# SPDX-License-Identifier: Apache-2.0
"""This process and the kernel: its descriptor limit, the signals that end it, and the end of its parent."""

import asyncio
import os
import resource
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""


def allow_descriptors() -> None:
    """Raise the soft limit of open files to the hard limit: a thousand domains or vifs take about five each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def die_with(parent: int) -> Callable[[], None]:
    """A call that ties the process which makes it to its parent: SIGKILL when that ends (PR_SET_PDEATHSIG, prctl(2)).

    `parent` is the parent's process id. If it has ended before the call, the call ends the process. It allocates
    and imports nothing, so it may serve as the `preexec_fn` of a child.
    """
    import ctypes  # 20 ms that a restarting backend saves

    libc = ctypes.CDLL(None, use_errno=True)

    def die() -> None:
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL):
            raise OSError(ctypes.get_errno(), f"prctl: {os.strerror(ctypes.get_errno())}")
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return die


@contextmanager
def ended_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` in the running loop at the first SIGINT or SIGTERM and ignore further ones; the exit restores the
    handlers.

    Only the main thread gets signals: in any other thread this does nothing. The loop's add_signal_handler is not used:
    its removal leaves a moment in which SIGINT raises KeyboardInterrupt, and it makes Python write every signal of the
    process to a pipe and complain on stderr when many signals fill that pipe.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ignore(_number: int, _frame: object) -> None:
        """Not SIG_IGN: Python complains on stderr of a signal that comes while that is set."""

    def end(_number: int, _frame: object) -> None:
        for number in former:
            signal.signal(number, ignore)
        loop.call_soon_threadsafe(stop)

    for number in former:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def called_at(number: signal.Signals, call: Callable[[], None]) -> Iterator[None]:
    """Call `call` in the running loop at each such signal; the exit restores the handler. Only in the main thread."""
    loop = asyncio.get_running_loop()

    def handle(_number: int, _frame: object) -> None:
        loop.call_soon_threadsafe(call)

    former = signal.signal(number, handle)
    try:
        yield
    finally:
        signal.signal(number, former)


async def until_stopped(stop: asyncio.Event, going: Coroutine[Any, Any, object]) -> None:
    """Wait for `stop`; re-raise if `going`, which should not end, ends first. Cancel the other one."""
    stopped, ended = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(going)
    try:
        done, _ = await asyncio.wait({stopped, ended}, return_when=asyncio.FIRST_COMPLETED)
        if ended in done:
            ended.result()
    finally:
        for future in (stopped, ended):
            future.cancel()
        await asyncio.wait({stopped, ended})
