# SPDX-License-Identifier: Apache-2.0
"""The control socket as a test sees it: a server with methods of the test's own, and a client that writes any bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from netback.control import Client
from netback.control.feed import Topics
from netback.control.rpc import SOCKET
from netback.control.schema import (
    VERSION,
    DeviceName,
    DeviceRequest,
    FindRequest,
    Info,
    Rings,
    SetRequest,
    Settings,
)
from netback.control.server import Calls, serve_control
from netback.directory import OWNER_ONLY, Access, Directory
from netback.errors import ConfigError, PlatformError
from tests.vif.guest import SECONDS

T = TypeVar("T")


async def info(_: object) -> Info:
    return Info(protocol=VERSION, netback="9", domid=0, platform="emulated", pid=1, devices=0)


async def find(request: FindRequest) -> DeviceName:
    return DeviceName(device=f"vif{request.guest}.{request.index}")


async def refuse(_: object) -> object:
    raise ConfigError("no, since it\nis \udcff")


async def fail(_: object) -> object:
    raise PlatformError("the store\nis gone", "EIO")


async def wrong(_: object) -> object:
    return 1 // 0


async def settle(request: SetRequest) -> Settings:
    return Settings(device=request.device, tx_rate="none", rx_rate="none", carrier=True, link=True, mtu=None)


async def no_rings(request: DeviceRequest) -> Rings:
    return Rings(device=request.device, rings=[])


CALLS: Calls = {
    "info": info,
    "find": find,
    "list": fail,
    "set": settle,
    "rings": no_rings,
    "show": fail,
    "explain": fail,
    "attach": wrong,
    "detach": refuse,
}
NO_TOPICS: Topics = {}


@asynccontextmanager
async def serving(
    path: Path,
    calls: Calls = CALLS,
    topics: Topics = NO_TOPICS,
    access: Access = OWNER_ONLY,
) -> AsyncIterator[Path]:
    with Directory.open(path) as directory:
        async with serve_control(directory, calls, topics, access):
            yield path


class Talk:
    """A connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def call(self, method: str, ident: object = 1, **params: object) -> None:
        request = {"jsonrpc": "2.0", "id": ident, "method": method, "params": params}
        self.send(json.dumps(request).encode() + b"\n")

    async def line(self) -> bytes:
        """The next line; empty at the end of the connection."""
        async with asyncio.timeout(SECONDS):
            try:
                return await self.reader.readline()
            except ConnectionResetError:
                return b""

    async def read(self) -> Any:
        line = await self.line()
        assert line.endswith(b"\n"), "the connection ended"
        return json.loads(line)

    async def ask(self, method: str, **params: object) -> Any:
        """A method's result; events that come before it are left out."""
        self.call(method, **params)
        while "id" not in (answer := await self.read()):
            assert answer["method"] == "event"
        return answer["result"]

    async def subscribe(self, topic: str, **params: object) -> Any:
        """The first event."""
        assert await self.ask("subscribe", topic=topic, **params) == {"subscription": 1}
        return (await self.read())["params"]


@asynccontextmanager
async def talking(path: Path, limit: int = 1 << 24) -> AsyncIterator[Talk]:
    talk = Talk(*await asyncio.open_unix_connection(str(path / SOCKET), limit=limit))
    try:
        yield talk
    finally:
        talk.writer.transport.abort()


async def works(path: Path) -> None:
    """Another client is served."""
    async with talking(path) as talk:
        assert (await talk.ask("info"))["protocol"] == VERSION


async def client(path: Path, do: Callable[[Client], T], **options: float) -> T:
    """What the public client does; the server is in this loop, so it runs in a thread."""

    def run() -> T:
        with Client(path, **options) as made:
            return do(made)

    return await asyncio.to_thread(run)
