# SPDX-License-Identifier: Apache-2.0
"""One host of tcpip.py on a socket of frames: its timers, its buffers, and coroutines that wait for replies."""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from netback.errors import PeerError
from netback.net.sandbox.tcpip import Connection, Host

MAX_FRAME = 1 << 17
BUFFER = 1 << 22
BURST = 64
TICK_SECONDS = 0.05
PING_SECONDS = 1.0


class Stack:
    """A host with one IPv4 address, on a SOCK_SEQPACKET socket whose messages are frames led by their virtio_net_hdr.

    `fd` is that socket's descriptor, which this object owns. Use it as an asynchronous context manager; every method
    belongs to the loop that entered it.
    """

    def __init__(self, fd: int, address: str, mac: str) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self._socket.setsockopt(socket.SOL_SOCKET, option, BUFFER)
        self.host = Host(address, mac, self._send)
        self._waiting: deque[bytes] = deque()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._receive)
        self._ticking = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ticking.cancel()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()

    async def ping(self, address: str) -> float | None:
        """Send one echo request; return the round trip in microseconds, None without a reply within PING_SECONDS."""
        begin, replied = self._loop.time(), asyncio.Event()
        self.host.echo(address, replied.set)
        try:
            await asyncio.wait_for(replied.wait(), PING_SECONDS)
        except TimeoutError:
            return None
        return (self._loop.time() - begin) * 1e6

    async def connect(self, address: str, port: int, seconds: float) -> Connection:
        """Open a connection; PeerError without an answer within so many seconds."""
        connection = self.host.connect(address, port)
        await self.wait(connection, lambda: connection.established, seconds)
        return connection

    async def wait(self, connection: Connection, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until an event of the connection makes `condition` true; PeerError after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    connection.changed.clear()
                    await connection.changed.wait()
        except TimeoutError as error:
            raise PeerError("timed out") from error

    # ---- frames

    def _receive(self) -> None:
        for _ in range(BURST):
            try:
                frame = self._socket.recv(MAX_FRAME)
            except BlockingIOError:
                break
            if not frame:  # the other end is closed
                self._loop.remove_reader(self._socket)
                break
            self.host.receive(frame)
        self.host.flush()

    def _send(self, frame: bytes) -> None:
        """Queue a frame after those that still wait for room."""
        self._waiting.append(frame)
        if len(self._waiting) == 1:
            self._drain()

    def _drain(self) -> None:
        try:
            while self._waiting:
                self._socket.send(self._waiting[0])
                self._waiting.popleft()
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._drain)
        except OSError:  # the other end is closed: drop every frame
            self._waiting.clear()
        if not self._waiting:
            self._loop.remove_writer(self._socket)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.host.tick(self._loop.time())
