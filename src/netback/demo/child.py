# SPDX-License-Identifier: Apache-2.0
"""A process of the demo and its parent's end of it: lines of JSON on a socketpair.

`Child` starts `python -m netback.demo.child ROLE SOCKET PARENT ORDERS`, which enters its namespaces, makes the role's
object and calls its methods on request. The kernel kills the process when its parent ends.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

from netback.demo import namespaces
from netback.errors import NetbackError
from netback.process import die_with

ROLES = {
    "xen": "netback.demo.processes:xen",
    "backend": "netback.demo.processes:backend",
    "netfront": "netback.demo.processes:netfront",
    "kernel stack": "netback.demo.stacks:kernel_stack",
    "python stack": "netback.demo.stacks:python_stack",
}
"""What makes each role: an asynchronous context manager; the methods of the object that it yields are the calls."""
SOURCE = Path(__file__).resolve().parents[2]


class DemoError(NetbackError):
    """A step of the demo failed."""


# ---- the parent's end


class Child:
    """A process with a role. `place` are arguments of `enter`, `fds` the descriptors that it inherits."""

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
        path = [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
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
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"},
                start_new_session=True,  # Ctrl-C signals the parent alone, which ends its children
            )
        self._numbers = count()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._following = asyncio.ensure_future(self._follow(ours))

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ready(self) -> None:
        """Wait until the role's object is entered; DemoError has the reason if it fails."""
        await asyncio.wait({self._ready})
        self._ready.result()

    async def call(self, method: str, **arguments: object) -> Any:
        """Call a method of the role and return its result. DemoError: the method failed, or the process ended."""
        await self.ready()
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        number = next(self._numbers)
        self._answers[number] = answer
        self._writer.write(_line(id=number, call=method, **{"with": arguments}))
        return await answer

    def kill(self) -> None:
        """End the process and its children. May be called again."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
        self._following.cancel()

    async def _follow(self, channel: socket.socket) -> None:
        reader, self._writer = await asyncio.open_unix_connection(sock=channel)
        try:
            while message := await reader.readline():
                self._receive(json.loads(message))
        except ConnectionError:
            pass
        finally:
            self._writer.close()
            self._fail(DemoError(f"{self.role}: the process ended unexpectedly{self._last_line()}"))

    def _receive(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self._ready.set_result(None)
        elif "id" not in message:
            self._fail(DemoError(message["error"]))
        elif (answer := self._answers.pop(message["id"])) and not answer.done():
            if "error" in message:
                answer.set_exception(DemoError(message["error"]))
            else:
                answer.set_result(message["result"])

    def _fail(self, error: DemoError) -> None:
        """Fail every waiting call."""
        for future in (self._ready, *self._answers.values()):
            if not future.done():
                future.set_exception(error)
                future.exception()  # asyncio logs an exception that no caller retrieves
        self._answers.clear()

    def _last_line(self) -> str:
        with suppress(OSError):
            if text := self._log.read_text(errors="replace").strip():
                return f" ({text.splitlines()[-1]})"
        return ""


# ---- the process


def main() -> None:
    """Enter the namespaces, then answer calls until the parent closes its end."""
    role, fd, parent, text = sys.argv[1:]
    die_with(int(parent))()
    orders = json.loads(text)
    module, name = ROLES[role].split(":")
    with socket.socket(fileno=int(fd)) as channel:
        try:
            namespaces.enter(**orders["place"])
            asyncio.run(_serve(module, name, orders["with"], channel))
        except (NetbackError, OSError) as error:
            channel.sendall(_line(error=str(error)))


async def _serve(module: str, name: str, arguments: Mapping[str, Any], channel: socket.socket) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=channel.dup())
    role: AbstractAsyncContextManager[Any] = getattr(import_module(module), name)(**arguments)
    async with role as entered, asyncio.TaskGroup() as calls:
        writer.write(_line(ready=True))
        while message := await reader.readline():
            calls.create_task(_answer(entered, json.loads(message), writer))


async def _answer(role: Any, message: Mapping[str, Any], writer: asyncio.StreamWriter) -> None:
    """Make one call; an error of netback or the kernel is sent as the answer."""
    try:
        result = await getattr(role, message["call"])(**message["with"])
        writer.write(_line(id=message["id"], result=result))
    except (NetbackError, OSError, TimeoutError) as error:
        writer.write(_line(id=message["id"], error=str(error) or type(error).__name__))


def _line(**message: object) -> bytes:
    return json.dumps(message).encode() + b"\n"


if __name__ == "__main__":
    main()
