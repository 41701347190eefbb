# SPDX-License-Identifier: Apache-2.0
"""The processes of a demo, as their parent has them: started, asked, killed; none is left behind.

Knows processes and how they are asked (child.py is the other end), not what they do.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from netback.demo.child import line
from netback.errors import NetbackError

PACKAGES = Path(__file__).resolve().parents[2]
"""Where a child finds what we are."""


class DemoError(NetbackError):
    """Something of the demo cannot be or did not happen."""


class Child:
    """A process that plays a role. Starting is one uninterruptible step, and so is its end."""

    def __init__(
        self,
        role: str,
        arguments: Mapping[str, object],
        *,
        log: Path,
        place: Mapping[str, object] | None = None,
        fds: Sequence[int] = (),
    ) -> None:
        self.role = role
        self._log = log
        ours, theirs = socket.socketpair()
        orders = json.dumps({"place": place or {}, "with": arguments})
        with theirs, log.open("ab") as sink:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "netback.demo.child",
                    role,
                    str(theirs.fileno()),
                    str(os.getpid()),
                    orders,
                ],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                pass_fds=(theirs.fileno(), *fds),
                env={**os.environ, "PYTHONPATH": _path(), "PYTHONSAFEPATH": "1"},
                start_new_session=True,  # a Ctrl-C is for us: we end them
            )
        self._numbers = count()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._following = asyncio.ensure_future(self._follow(ours))

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ready(self) -> None:
        """Until it plays its role; DemoError says why it cannot."""
        await asyncio.shield(self._ready)

    async def call(self, method: str, **arguments: object) -> Any:
        """Have it do something: what it says; DemoError where it says that it cannot, or is gone."""
        await self.ready()
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        number = next(self._numbers)
        self._answers[number] = answer
        self._writer.write(line(id=number, call=method, **{"with": arguments}))
        return await answer

    def kill(self) -> None:
        """End it and what it started: any number of times."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
        self._following.cancel()

    async def _follow(self, channel: socket.socket) -> None:
        reader, self._writer = await asyncio.open_unix_connection(sock=channel)
        try:
            while said := await reader.readline():
                self._hear(json.loads(said))
        except ConnectionError:
            pass
        finally:
            self._writer.close()
            self._fail(DemoError(f"{self.role}: the process ended unexpectedly{self._last_words()}"))

    def _hear(self, said: dict[str, Any]) -> None:
        if "ready" in said:
            self._ready.set_result(None)
        elif "id" not in said:
            self._fail(DemoError(said["error"]))
        else:
            _settle(self._answers.pop(said["id"]), said)

    def _fail(self, error: DemoError) -> None:
        """Whoever waits, waits in vain."""
        for future in (self._ready, *self._answers.values()):
            if not future.done():
                future.set_exception(error)
                future.exception()  # nobody need wait for it
        self._answers.clear()

    def _last_words(self) -> str:
        with suppress(OSError):
            if words := self._log.read_text(errors="replace").strip():
                return f" ({words.splitlines()[-1]})"
        return ""


def _path() -> str:
    return os.pathsep.join(filter(None, [str(PACKAGES), os.environ.get("PYTHONPATH")]))


def _settle(answer: asyncio.Future[Any], said: Mapping[str, Any]) -> None:
    """Give an answer to who asked, if he still waits."""
    if answer.done():
        return
    if "error" in said:
        answer.set_exception(DemoError(said["error"]))
    else:
        answer.set_result(said["result"])
