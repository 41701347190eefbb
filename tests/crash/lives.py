# SPDX-License-Identifier: Apache-2.0
"""One backend after the other on the same directory, each killed by SIGKILL: the test's side of launcher.py."""

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
"""How long a test waits for what must happen; the machine may sleep for seconds."""
SLOW_BURIAL = "another process holds it"
"""Said of a tap, which is then tried again: no fault on a machine that sleeps while a backend dies."""


async def until(true: Callable[[], bool]) -> None:
    """Wait for what is in a shared page or another process, where nobody tells of it."""
    async with asyncio.timeout(SECONDS):
        while not true():  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.002)


class Lives:
    """At most one backend lives. `kills` counts those that did, and `on_kill` is told before each."""

    def __init__(self, orders: socket.socket, log: Path, fds: Sequence[int], net: str | None) -> None:
        self.kills = 0
        self.on_kill: list[Callable[[], None]] = []
        self._orders = orders
        self._log = log
        self._fds = list(fds)
        self._net = net
        self._pidfd = -1

    def start(self, *, workers: int | None = None, after: int = 0) -> None:
        """A new one, from nothing but the directory and the configuration; `after`: see arm_kill."""
        assert self._pidfd < 0
        order = {"fds": self._fds, "net": self._net, "workers": workers, "after": after}
        self._orders.send(json.dumps(order).encode())
        _, (self._pidfd,), _, _ = socket.recv_fds(self._orders, 16, 1)
        if after:
            self._killed()

    async def kill(self) -> None:
        """SIGKILL, and wait for the end: what comes next starts right after it."""
        assert not self.dead, f"the backend ended by itself:\n{self._log.read_text()}"
        self._killed()
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        await self.end()

    async def end(self) -> None:
        """Wait for a death that was ordered."""
        loop, dead = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._pidfd, dead.set)
        try:
            await asyncio.wait_for(dead.wait(), SECONDS)
        except TimeoutError:
            raise AssertionError("it lives: nothing moves that would bring it to its kill point") from None
        finally:
            loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1

    def replace(self) -> None:
        """SIGKILL, and a new one at once: the old one may still be dying, and hold what the new one needs."""
        assert not self.dead, f"the backend ended by itself:\n{self._log.read_text()}"
        self._killed()
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        os.close(self._pidfd)
        self._pidfd = -1
        self.start()

    @property
    def dead(self) -> bool:
        """Whether the one that was started last has ended."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def _killed(self) -> None:
        self.kills += 1
        for tell in self.on_kill:
            tell()

    def check(self) -> None:
        """None of them had anything to complain about: no vif failed, nothing was unexpected."""
        said = [line for line in self._log.read_text().splitlines() if SLOW_BURIAL not in line]
        for word in ("Traceback", "WARNING", "ERROR"):
            assert not any(word in line for line in said), said

    def close(self) -> None:
        """The last one dies as well."""
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.close(self._pidfd)


@contextmanager
def launcher(directory: Path, fds: Sequence[int] = (), net: str | None = None) -> Iterator[Lives]:
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
        lives = Lives(ours, log, fds, net)
        try:
            yield lives
        finally:
            lives.close()
            ours.close()
            process.wait()
    lives.check()
