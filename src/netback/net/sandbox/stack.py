# SPDX-License-Identifier: Apache-2.0
"""One host of tcpip.py on a socket of frames: its timers, its buffers, and coroutines that wait for replies."""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from netback.errors import PeerError
from netback.net.sandbox.tcp import Connection
from netback.net.sandbox.tcpip import Host

MAX_FRAME = 1 << 17
BUFFER = 1 << 22
BURST, GENTLE_BURST = 64, 16
TICK_SECONDS = 0.05
PING_SECONDS = 1.0
MAX_WAITING = 1 << 22
"""Bytes of frames that wait for room in the socket; further ones are lost, as on a wire."""


class Stack:
    """A host with these addresses, on a SOCK_SEQPACKET socket whose messages are frames led by their virtio_net_hdr.

    `fd` is that socket's descriptor, which this object owns. Use it as an asynchronous context manager; every method
    belongs to the loop that entered it. `gentle`: after each burst it rests as long as it worked.
    """

    def __init__(self, fd: int, addresses: str | tuple[str, ...], mac: str, *, gentle: bool = False) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self._socket.setsockopt(socket.SOL_SOCKET, option, BUFFER)
        self.host = Host(addresses, mac, self._send)
        self._gentle = gentle
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._ticking: asyncio.TimerHandle | None = None
        self._resting: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._receive)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for timer in (self._ticking, self._resting):
            if timer is not None:
                timer.cancel()
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
        self._tick()
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
        begin = self._loop.time()
        for _ in range(GENTLE_BURST if self._gentle else BURST):
            try:
                frame = self._socket.recv(MAX_FRAME)
            except BlockingIOError:
                break
            if not frame:  # the other end is closed
                self._loop.remove_reader(self._socket)
                return
            self.host.receive(frame)
        self.host.flush()
        self._tick()
        if self._gentle:
            self._loop.remove_reader(self._socket)
            self._resting = self._loop.call_later(self._loop.time() - begin, self._resume)

    def _resume(self) -> None:
        self._loop.add_reader(self._socket, self._receive)

    def _send(self, frame: bytes) -> None:
        """Queue a frame after those that still wait for room."""
        if self._waiting_bytes >= MAX_WAITING:
            return
        self._waiting.append(frame)
        self._waiting_bytes += len(frame)
        if len(self._waiting) == 1:
            self._drain()

    def _drain(self) -> None:
        try:
            while self._waiting:
                self._socket.send(self._waiting[0])
                self._waiting_bytes -= len(self._waiting.popleft())
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._drain)
        except OSError:  # the other end is closed: drop every frame
            self._waiting.clear()
            self._waiting_bytes = 0
        if not self._waiting:
            self._loop.remove_writer(self._socket)

    def _tick(self) -> None:
        """Let the host send again what was lost, at intervals while it has connections."""
        if self._ticking is None and self.host.busy:
            self._ticking = self._loop.call_later(TICK_SECONDS, self._ticked)

    def _ticked(self) -> None:
        self._ticking = None
        self.host.tick(self._loop.time())
        self._tick()
