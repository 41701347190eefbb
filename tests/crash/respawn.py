# SPDX-License-Identifier: Apache-2.0
"""One backend after the other in the same directory, each killed by SIGKILL: the test's end of launcher.py."""

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 40.0
"""A test that waits longer for an event fails: a bound for hangs, far beyond what a busy machine takes."""
STILL_HELD = "another process holds it"
"""Part of a message about a tap that the killed backend still holds; the new one tries again, so it is no fault."""


async def until(true: Callable[[], bool]) -> None:
    """Wait for a condition in a shared page or another process, which sends no event."""
    async with asyncio.timeout(SECONDS):
        while not true():  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.002)


class Respawner:
    """Starts backends, one at a time. `kills` counts the killed ones; `on_kill` is called before each kill."""

    def __init__(self, orders: socket.socket, log: Path, fds: Sequence[int], net: str | None) -> None:
        self.kills = 0
        self.on_kill: list[Callable[[], None]] = []
        self._orders = orders
        self._log = log
        self._fds = list(fds)
        self._net = net
        self._pidfd = -1

    def start(self, *, workers: int | None = None, after: int = 0) -> None:
        """Start a backend from the directory and the configuration alone; `after`: see arm_kill."""
        assert self._pidfd < 0
        order = {"fds": self._fds, "net": self._net, "workers": workers, "after": after}
        self._orders.send(json.dumps(order).encode())
        _, (self._pidfd,), _, _ = socket.recv_fds(self._orders, 16, 1)
        if after:
            self._killed()

    async def kill(self) -> None:
        """Send SIGKILL and wait for the end of the process."""
        assert not self.dead, f"the backend ended by itself:\n{self._log.read_text()}"
        self._killed()
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        await self.end()

    async def end(self) -> None:
        """Wait for the end of a backend that has a kill point."""
        loop, dead = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._pidfd, dead.set)
        try:
            await asyncio.wait_for(dead.wait(), SECONDS)
        except TimeoutError:
            raise AssertionError("the backend does not reach its kill point: no frames move") from None
        finally:
            loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1

    def replace(self) -> None:
        """Send SIGKILL and start another at once: the old one may still hold its lock, ports and tap."""
        assert not self.dead, f"the backend ended by itself:\n{self._log.read_text()}"
        self._killed()
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        os.close(self._pidfd)
        self._pidfd = -1
        self.start()

    @property
    def dead(self) -> bool:
        """Whether the last started backend has ended."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def _killed(self) -> None:
        self.kills += 1
        for call in self.on_kill:
            call()

    def check(self) -> None:
        """No backend logged a warning, an error or a traceback."""
        lines = [line for line in self._log.read_text().splitlines() if STILL_HELD not in line]
        for word in ("Traceback", "WARNING", "ERROR"):
            assert not any(word in line for line in lines), lines

    def close(self) -> None:
        """Kill the last backend."""
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.close(self._pidfd)


@contextmanager
def launcher(directory: Path, fds: Sequence[int] = (), net: str | None = None) -> Iterator[Respawner]:
    """Backends for domain 0 of the emulated Xen in `directory`, in this thread's network namespace."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    log = directory / "backends.log"
    with ours, log.open("ab") as sink:
        with theirs:
            command = [sys.executable, "-m", "tests.crash.launcher", str(theirs.fileno()), str(directory)]
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                pass_fds=(theirs.fileno(), *fds),
            )
        backends = Respawner(ours, log, fds, net)
        try:
            yield backends
        finally:
            backends.close()
            ours.close()
            process.wait()
    backends.check()
