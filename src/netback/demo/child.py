# SPDX-License-Identifier: Apache-2.0
"""A process of the demo, from its start to its end: it takes its place, plays its role and answers calls.

A call is a line of JSON on an inherited socket, and so is its answer. Knows how a role is asked, not what roles do.
Its end is its parent's end too: the kernel sees to that.
"""

import asyncio
import json
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from typing import Any

from netback.demo import namespaces
from netback.errors import NetbackError

ROLES = {
    "xen": ("netback.demo.roles", "Xen"),
    "backend": ("netback.demo.roles", "Backend"),
    "netfront": ("netback.demo.roles", "Netfront"),
    "stack": ("netback.demo.stack", "KernelStack"),
    "plain stack": ("netback.demo.plain_stack", "PlainStack"),
}
"""Each role: the module and the class, which is an async context manager and whose methods are what can be called."""

Role = AbstractAsyncContextManager[Any]


def main() -> None:
    """`python -m netback.demo.child ROLE SOCKET PARENT {"place": ..., "with": ...}`."""
    role, connection, parent, told = sys.argv[1:]
    namespaces.die_with(int(parent))
    orders = json.loads(told)
    module, name = ROLES[role]
    with socket.socket(fileno=int(connection)) as channel:
        try:
            take_place(**orders["place"])
            asyncio.run(play(lambda: getattr(import_module(module), name)(**orders["with"]), channel))
        except (NetbackError, OSError) as error:
            channel.sendall(line(error=str(error)))


def take_place(new: bool = False, of: int = 0, user: bool = False) -> None:
    """Into namespaces of our own, or into those of the process `of`, or stay."""
    if new:
        namespaces.enter_new(user)
        namespaces.quiet_ipv6()
    elif of:
        namespaces.join(of, user)


def line(**message: object) -> bytes:
    """A message as it is sent."""
    return json.dumps(message).encode() + b"\n"


async def play(make: Callable[[], Role], channel: socket.socket) -> None:
    """Say that we are ready, then answer until nobody is there to ask."""
    reader, writer = await asyncio.open_unix_connection(sock=channel.dup())
    async with make() as role, asyncio.TaskGroup() as calls:
        writer.write(line(ready=True))
        while asked := await reader.readline():
            calls.create_task(answer(role, json.loads(asked), writer))


async def answer(role: Any, asked: Mapping[str, Any], writer: asyncio.StreamWriter) -> None:
    """One call. What a role says on purpose, or the kernel, is an answer as well."""
    try:
        result = await getattr(role, asked["call"])(**asked["with"])
        writer.write(line(id=asked["id"], result=result))
    except (NetbackError, OSError, TimeoutError) as error:
        writer.write(line(id=asked["id"], error=str(error) or type(error).__name__))


if __name__ == "__main__":
    main()
