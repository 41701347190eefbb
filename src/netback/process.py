# SPDX-License-Identifier: Apache-2.0
"""This process and the kernel: its descriptor limit, the signals that end it, the end of its parent and of its
descendants."""

import asyncio
import os
import resource
import signal
import threading
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 1, 36, 37
"""linux/prctl.h"""
_END_ROUNDS = 100
_END_TICK = 0.02
"""Seconds between two looks at processes that were sent SIGKILL."""


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
def adopting_orphans() -> Iterator[None]:
    """Make this process the parent of each descendant whose own parent ends (PR_SET_CHILD_SUBREAPER, prctl(2)), so that
    `end_descendants` finds it; the exit restores what was.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    former = ctypes.c_int()

    def call(option: int, argument: object) -> None:
        if libc.prctl(option, argument):
            raise OSError(ctypes.get_errno(), f"prctl: {os.strerror(ctypes.get_errno())}")

    call(PR_GET_CHILD_SUBREAPER, ctypes.byref(former))
    call(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1))
    try:
        yield
    finally:
        call(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(former.value))


class _Process(NamedTuple):
    pid: int
    parent: int
    group: int


def children() -> set[int]:
    """The process ids of this process's children."""
    return {process.pid for process in _processes() if process.parent == os.getpid()}


async def end_descendants(spared: Collection[int]) -> list[int]:
    """End by SIGKILL every descendant that is not of the children `spared`, and wait for them.

    SIGKILL goes to process groups: fork(2) fails in a process that has a signal pending, so a group cannot outrun it.
    Each group has to be that of descendants alone: start each child that is not spared in a session of its own.
    Returns those that are left after two seconds, as processes of other users may be.
    """
    for _ in range(_END_ROUNDS):
        left = _descendants(spared)
        if not left:
            return []
        for group in {process.group for process in left}:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        for process in left:
            _reap(process.pid)
        await asyncio.sleep(_END_TICK)
    return sorted(process.pid for process in _descendants(spared))


def _reap(pid: int) -> None:
    """Forget a process that has ended; another's child only once this process has adopted it."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _descendants(spared: Collection[int]) -> list[_Process]:
    by_parent: dict[int, list[_Process]] = {}
    for process in _processes():
        by_parent.setdefault(process.parent, []).append(process)
    found = [child for child in by_parent.get(os.getpid(), []) if child.pid not in spared]
    for process in found:  # grows while it is read
        found += by_parent.get(process.pid, [])
    return [process for process in found if process.group not in (0, os.getpgrp())]


def _processes() -> list[_Process]:
    """All processes that /proc shows; none if it is missing, or that of another PID namespace."""
    found: list[_Process] = []
    with suppress(OSError):
        if Path("/proc/self").readlink().name != str(os.getpid()):
            return []
        for directory in Path("/proc").iterdir():
            if not directory.name.isdecimal():
                continue
            with suppress(OSError):  # it has ended
                # proc_pid_stat(5): the second field, a name in parentheses, may hold any byte
                _, parent, group = (directory / "stat").read_bytes().rpartition(b")")[2].split()[:3]
                found.append(_Process(int(directory.name), int(parent), int(group)))
    return found


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
