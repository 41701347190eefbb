# SPDX-License-Identifier: Apache-2.0
"""A store on a UNIX socket for a test's time."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from netback.directory import Directory
from netback.platforms.emulated.store_socket import attach_store, serve_store
from netback.xenstore.aio import Store
from netback.xenstore.server import Server


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[Server]:
    server = Server()
    with Directory.open(path.parent) as directory:
        listening = await serve_store(server, directory.listen(path.name))
    try:
        yield server
    finally:
        listening.close()
        server.close()
        await until(lambda: not server.connections)
        await listening.wait_closed()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until the condition holds, at most ten seconds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (the core has no loop, so it has no events either)
            await asyncio.sleep(0)


async def guest_store(server: Server, domid: int) -> Store:
    """A connection with a domain's own rights."""
    ours, theirs = socket.socketpair()
    await attach_store(server, ours, domid)
    return await Store.from_socket(theirs)
