# SPDX-License-Identifier: Apache-2.0
"""Carries bytes between sockets and the store's server core."""

import asyncio
import logging
import socket
from typing import cast

from netback.observe.trace import LogBudget
from netback.xenstore.connection import Connection
from netback.xenstore.server import Server

log = logging.getLogger("netback.emulated")

_READ_BYTES = 16384
"""Bytes handled for one client before the others are served: a few hundred requests."""
_BACKLOG = 1024
_budget = LogBudget()


class _Carrier(asyncio.BufferedProtocol):
    """One client's socket. The core uses asyncio's flow control: a client that does not read is not served."""

    _transport: asyncio.Transport
    _connection: Connection

    def __init__(self, server: Server, domid: int) -> None:
        self._server = server
        self._domid = domid
        self._buffer = bytearray(_READ_BYTES)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connection = self._server.connect(self._domid, self._transport.write, self._transport.abort)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self._connection.receive(bytes(self._buffer[:nbytes]))
        except Exception as error:  # affects only this client
            _budget.warn(log, f"ended a store connection: unexpected: {error!r}", exc_info=True)
            self._transport.abort()

    def pause_writing(self) -> None:
        self._connection.pause()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._connection.resume()
        if not self._connection.paused:
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.close()


async def serve_store(server: Server, listening: socket.socket) -> asyncio.Server:
    """Serve the store on a listening socket with domain 0's privilege; takes the socket over."""
    return await asyncio.get_running_loop().create_unix_server(
        lambda: _Carrier(server, 0), sock=listening, backlog=_BACKLOG
    )


async def attach_store(server: Server, sock: socket.socket, domid: int) -> None:
    """Serve a connected stream socket as the store connection of a domain; takes the socket over."""
    await asyncio.get_running_loop().connect_accepted_socket(lambda: _Carrier(server, domid), sock)
