# SPDX-License-Identifier: Apache-2.0
"""Runs hotplug scripts as children of the event loop: which files may be started, and what a run may cost.

This module knows programs, their output and their time; which script runs when is `xenbus.hotplug`'s.
"""

import asyncio
import errno
import os
import signal
import stat
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from netback.errors import NetbackError, printable
from netback.process import die_with

DIRECTORIES = (
    "/etc/xen/scripts",
    "/usr/libexec/xenopsd",
    "/opt/xensource/libexec",
    "/etc/xensource/scripts",
)
"""Where Xen's own scripts and those of xapi are."""
SECONDS = 40.0
"""How long a script may take: libxl's limit (LIBXL_HOTPLUG_TIMEOUT)."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_YOUNG = 16
"""Scripts at once of which none has run for YOUNG_SECONDS. A script that hangs stops counting then, so it delays the
others once, for that time; how many hang at once is bounded by the time limit."""
YOUNG_SECONDS = 2.0
MAX_OUTPUT = 65536
"""Bytes that a script may print; one that prints more is killed."""
MAX_LINES = 50
"""Lines of its output that are logged."""
MAX_LINE = 200
"""Characters of such a line."""
_END_SECONDS = 1.0
"""How long to wait for a killed script; one that hangs in the kernel is left to it."""
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_DEFAULTED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that netback handles or ignores."""


class ScriptError(NetbackError):
    """A script may not be started, or it failed; the text is what follows its name in a message."""


class ExitError(ScriptError):
    """It ended with an exit code other than 0, or by a signal."""


@dataclass(frozen=True, slots=True)
class HotplugConfig:
    """How netback runs hotplug scripts."""

    seconds: float = SECONDS
    """How long each may take, and `hotplug-status` after it."""
    directories: tuple[str, ...] = DIRECTORIES
    """Scripts must be in one of these directories, or below one."""


def check_script(path: str, directories: Iterable[str]) -> None:
    """ScriptError: `path` is not an absolute path of an executable file in or below one of the directories, or a user
    other than root and this one may have changed the file or a directory on the way to it.

    A last part that is a symbolic link is followed, since such a link is in a directory that only root writes.
    """
    file = Path(path)
    if not file.is_absolute() or ".." in file.parts or "\0" in path:
        raise ScriptError("is no absolute path")
    known = tuple(directories)
    parent = Path(os.path.realpath(file.parent))
    tops = (Path(os.path.realpath(directory)) for directory in known)
    top = next((top for top in tops if parent.is_relative_to(top)), None)
    if top is None:
        raise ScriptError(f"is not below {' or '.join(known) or 'any directory'}: see hotplug_directories")
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise ScriptError("is no regular file")
        for place in (file, parent, *(above for above in parent.parents if above.is_relative_to(top))):
            status = place.stat()
            if status.st_mode & _OTHERS_WRITE or status.st_uid not in (0, os.geteuid()):
                raise ScriptError(f"is not run: other users may change {place}")
    except OSError as error:
        raise ScriptError(f"cannot be found: {_why(error)}") from error
    if not os.access(file, os.X_OK):
        raise ScriptError("is not executable: chmod +x it")


class Scripts:
    """Runs scripts, so that one that hangs, prints without end or leaves a daemon costs the others little."""

    def __init__(self) -> None:
        self._young = asyncio.Semaphore(MAX_YOUNG)

    async def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        seconds: float,
        say: Callable[[str], object],
    ) -> None:
        """Run a program to its end. `say` gets its output, stdout and stderr, line by line, printable and bounded.

        The child has /dev/null as its input, its own session, an empty signal mask, and none of this process's
        descriptors. When this task is cancelled, or this process ends, the script is killed. ScriptError: it cannot be
        started, did not end within `seconds`, or printed too much; ExitError: it failed, with its last line as the
        reason.
        """
        async with self._slot():
            try:
                child = _Child(command, {"PATH": PATH, **environment})
            except OSError as error:
                raise ScriptError(f"cannot be started: {_why(error)}") from error
            except ValueError as error:  # a NUL in a value, which may come from the store
                raise ScriptError(f"cannot be started: {error}") from error
            try:
                code = await child.end(seconds)
            finally:
                await child.close()
                for line in child.lines():
                    say(line)
        if code:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
            raise ExitError(f"{how}{child.last_words()}")

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Take part in the bound until the end, or for YOUNG_SECONDS."""
        await self._young.acquire()
        held = True

        def give_back() -> None:
            nonlocal held
            if held:
                held = False
                self._young.release()

        timer = asyncio.get_running_loop().call_later(YOUNG_SECONDS, give_back)
        try:
            yield
        finally:
            timer.cancel()
            give_back()


class _Child:
    """A child process, its pidfd and its output.

    asyncio's own subprocesses need a thread for each child before Python 3.12, and wait until the last holder of the
    output, perhaps a daemon that the script left, has closed it.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._loop = asyncio.get_running_loop()
        self._output = bytearray()
        self._flooded = False
        self._ended = asyncio.Event()
        self._pipe, end = os.pipe2(os.O_CLOEXEC)
        try:
            os.set_blocking(self._pipe, False)
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=end,
                stderr=end,
                start_new_session=True,
                umask=0o022,
                preexec_fn=_child_setup(),
            )
            self._pidfd = os.pidfd_open(self._process.pid)
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(end)
        self._loop.add_reader(self._pidfd, self._ended.set)
        self._loop.add_reader(self._pipe, self._read)

    async def end(self, seconds: float) -> int:
        """The exit code, or the negative number of the signal. ScriptError: too long, or too much output."""
        try:
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        except TimeoutError:
            raise ScriptError(f"did not end within {seconds:g} s and was killed{self.last_words()}") from None
        if self._flooded:
            raise ScriptError(f"printed more than {MAX_OUTPUT} bytes and was killed")
        return self._process.wait()

    async def close(self) -> None:
        """Kill the script, with what belongs to its session, if it has not ended; close everything."""
        self._loop.remove_reader(self._pidfd)
        self._loop.remove_reader(self._pipe)
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            dead = asyncio.Event()
            self._loop.add_reader(self._pidfd, dead.set)
            try:
                with suppress(TimeoutError):
                    await asyncio.wait_for(dead.wait(), _END_SECONDS)
                    self._process.wait()
            finally:
                self._loop.remove_reader(self._pidfd)
        self._read()  # what it printed last
        os.close(self._pidfd)
        os.close(self._pipe)

    def lines(self) -> list[str]:
        """Its output, printable and cut."""
        lines = self._lines()
        shown = [
            line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 3]}..." for line in lines[:MAX_LINES]
        ]
        return shown + ([f"({len(lines) - MAX_LINES} more lines)"] if len(lines) > MAX_LINES else [])

    def last_words(self) -> str:
        """Its last line after a colon; empty if it printed nothing."""
        return f": {lines[-1][:MAX_LINE]}" if (lines := self._lines()) else ""

    def _lines(self) -> list[str]:
        text = self._output.decode(errors="surrogateescape")
        return [printable(line.expandtabs().strip()) for line in text.split("\n") if line.strip()]

    def _read(self) -> None:
        """Take what it printed. A daemon that the script left may hold the pipe: so its end is not waited for."""
        try:
            data = os.read(self._pipe, MAX_OUTPUT + 1 - len(self._output))
        except BlockingIOError:
            return
        self._output += data
        if len(self._output) > MAX_OUTPUT:
            del self._output[MAX_OUTPUT:]
            self._flooded = True
            self._ended.set()
        if not data or self._flooded:
            self._loop.remove_reader(self._pipe)


def _child_setup() -> Callable[[], None]:
    """What the child does between fork and exec: its end with this process, no blocked and no ignored signal."""
    die = die_with(os.getpid())

    def set_up() -> None:
        for number in _DEFAULTED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        die()

    return set_up


def _why(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno == errno.ENOEXEC:
        reason = "it begins with no #! line"
    return f"{reason} ({errno.errorcode.get(error.errno or 0, '?')})"
