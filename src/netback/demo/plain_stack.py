# SPDX-License-Identifier: Apache-2.0
"""A TCP/IP stack in plain Python on a socket of frames: what a demo has where no namespace may be made.

It is asked for the same things as the kernel's (stack.py). Knows frames' way in and out and what a caller wants;
protocols are in tcpip.py.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from netback.demo.payload import Payload, Tally
from netback.demo.tcpip import Connection, Host
from netback.errors import NetbackError

FRAME_MOST = 1 << 17
BURST = 64
TICK = 0.05
PATIENCE = 20.0
PING_SECONDS = 1.0


class PlainStack:
    """One address on one link."""

    def __init__(self, fd: int, address: str, mac: str) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self._socket.setsockopt(socket.SOL_SOCKET, option, 1 << 22)
        self._host = Host(address, mac, self._send)
        self._waiting: deque[bytes] = deque()
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        self._loop.add_reader(self._socket, self._readable)
        self._ticking = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ticking.cancel()
        self._socket.close()

    # ---- what a stack is asked for

    async def ping(self, address: str, times: int, gap: float) -> list[float | None]:
        """Round trips in microseconds; None for one that did not come back."""
        trips: list[float | None] = []
        for _ in range(times):
            trips.append(await self._trip(address))
            await asyncio.sleep(gap)
        return trips

    async def _trip(self, address: str) -> float | None:
        begin = self._loop.time()
        back = asyncio.Event()
        self._host.echo(address, back.set)
        try:
            await asyncio.wait_for(back.wait(), PING_SECONDS)
        except TimeoutError:
            return None
        return (self._loop.time() - begin) * 1e6

    async def listen(self, checked: bool) -> int:
        """A port at which one sender may come."""
        port, self._incoming = self._host.listen()
        self._tally = tally = Tally(checked)
        self._incoming.on_data = lambda data: tally.add(memoryview(data))
        return port

    async def receive(self) -> dict[str, Any]:
        """Wait for all of what the sender sends."""
        tally, connection = self._tally, self._incoming
        await self._until(connection, lambda: connection.received_all, PATIENCE)
        return tally.report()

    async def send(
        self, address: str, port: int, seconds: float, most: int, checked: bool, patience: float
    ) -> dict[str, Any]:
        """Send for some time, or so many bytes."""
        connection = self._host.connect(address, port)
        await self._until(connection, lambda: connection.established, patience)
        payload = Payload(seconds, most, checked)
        connection.on_room = payload.next
        connection.pump()
        await self._until(connection, lambda: connection.sent_all, seconds + PATIENCE)
        return payload.report()

    async def segmentation(self, on: bool) -> None:
        """Whether frames leave that a later link cuts."""
        self._host.segmentation = on

    async def checksum_errors(self) -> int:
        """TCP segments that were thrown away since their checksum was wrong."""
        return self._host.checksum_errors

    async def serve_iperf(self) -> bool:
        """It runs on kernels only."""
        return False

    async def _until(self, connection: Connection, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until something that happened to a connection makes a condition true."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    connection.news.clear()
                    await connection.news.wait()
        except TimeoutError as error:
            raise NetbackError("timed out") from error

    # ---- frames

    def _readable(self) -> None:
        for _ in range(BURST):
            try:
                frame = self._socket.recv(FRAME_MOST)
            except BlockingIOError:
                break
            if not frame:
                self._loop.remove_reader(self._socket)
                break
            self._host.receive(frame)
        self._host.flush()

    def _send(self, frame: bytes) -> None:
        """In order, as soon as there is room."""
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
        except OSError:  # the far end is gone: nobody hears
            self._waiting.clear()
        if not self._waiting:
            self._loop.remove_writer(self._socket)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            self._host.tick(self._loop.time())
