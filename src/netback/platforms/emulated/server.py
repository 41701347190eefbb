# SPDX-License-Identifier: Apache-2.0
"""Serves the emulated hypervisor on a SOCK_SEQPACKET socket: messages and descriptors in and out.

This module manages sockets and the handle behind each; the hypervisor serves the requests. A client's mistake ends only
its own connection.
"""

import array
import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterable

from netback.directory import Directory
from netback.errors import PlatformError
from netback.observe.trace import LogBudget
from netback.platforms.emulated.hypervisor import Handle, Hypervisor, refusal
from netback.platforms.emulated.protocol import (
    HELLO_SIZE,
    HYPERVISOR_SOCKET,
    MAX_FDS,
    REQUEST_SIZE,
    Hello,
    Reply,
    Request,
)

log = logging.getLogger("netback.emulated")

_RETRY_SECONDS = 0.1
_FD_SPACE = socket.CMSG_SPACE((MAX_FDS + 1) * 4)


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


def receive(sock: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """Receive one message of at most `size` bytes, b"" at the end, and its descriptors.

    `size` + 1 bytes are read, so that a longer message is noticed.
    """
    data, ancillary, _flags, _address = sock.recvmsg(size + 1, _FD_SPACE, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) // fds.itemsize * fds.itemsize])
    return data, list(fds)


class _Client:
    """One connection: first a hello, then requests."""

    def __init__(self, server: "HypervisorServer", sock: socket.socket) -> None:
        self.sock = sock
        self.handle: Handle | None = None
        self._server = server

    def readable(self) -> None:
        """Serve one message; asyncio calls again while there are more. Any error ends only this connection."""
        try:
            self._receive()
        except Exception as error:
            self._server.complain(f"ended a connection: unexpected: {error!r}", exc_info=True)
            self._server.drop(self)

    def _receive(self) -> None:
        expected = REQUEST_SIZE if self.handle else HELLO_SIZE
        try:
            data, fds = receive(self.sock, expected)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            close_all(fds)
            self._server.drop(self)
            return
        self._serve(data, fds, expected)

    def _serve(self, data: bytes, fds: list[int], expected: int) -> None:
        """Answer; a refused hello or a malformed message also ends the connection."""
        try:
            if len(data) != expected:
                raise PlatformError(f"a message of {len(data)} bytes, not {expected}", "EMSGSIZE")
            if self.handle is None:
                self._hello(Hello.unpack(data), fds)
            else:
                self._request(self.handle, Request.unpack(data), fds)
        except PlatformError as error:
            close_all(fds)
            self._refuse(error)

    def _hello(self, hello: Hello, fds: list[int]) -> None:
        if len(fds) != 1:
            raise PlatformError(f"a hello with {len(fds)} descriptors, not 1", "EBADF")
        handle, reply, store = self._server.join(self, hello, fds.pop())
        with store:
            self._send(reply, (handle.eventfd, store.fileno()))

    def _request(self, handle: Handle, request: Request, fds: list[int]) -> None:
        if fds:
            raise PlatformError("a request with descriptors", "EBADMSG")
        try:
            reply, passed = self._server.hypervisor.request(handle, request)
        except PlatformError as error:
            reply, passed = refusal(error), ()
        self._send(reply, passed)

    def _refuse(self, error: PlatformError) -> None:
        self._server.complain(f"ended a connection: {error}")
        self._send(refusal(error))
        self._server.drop(self)

    def _send(self, reply: Reply, fds: Iterable[int] = ()) -> None:
        """Send a reply; drop a client that is gone or does not read its replies."""
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self.sock.sendmsg([reply.pack()], passed)
        except OSError:
            self._server.drop(self)


class HypervisorServer:
    """The listening socket and its clients. `attach(domid)` gives a handle's store connection."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        attach: Callable[[int], socket.socket],
        directory: Directory,
    ) -> None:
        self.hypervisor = hypervisor
        self._budget = LogBudget()
        self._attach = attach
        self._clients: dict[Handle | None, _Client] = {}
        self._all: set[_Client] = set()
        self._loop = asyncio.get_running_loop()
        self._listening = directory.listen(HYPERVISOR_SOCKET, socket.SOCK_SEQPACKET)
        self._listen()

    def close(self) -> None:
        """End every connection, and every domain with them."""
        self._loop.remove_reader(self._listening)
        self._listening.close()
        for client in tuple(self._all):
            self.drop(client)

    def join(self, client: _Client, hello: Hello, memfd: int) -> tuple[Handle, Reply, socket.socket]:
        """Join a client; returns its handle, the reply and the store connection to send with it.

        Takes over the memfd, even if this raises PlatformError.
        """
        try:
            handle, reply = self.hypervisor.join(hello, memfd)
        except (PlatformError, OSError) as error:
            os.close(memfd)
            raise error if isinstance(error, PlatformError) else _exhausted(error) from error
        self._clients[handle] = client
        client.handle = handle
        try:
            return handle, reply, self._attach(handle.domain.domid)
        except OSError as error:
            raise _exhausted(error) from error

    def complain(self, text: str, *, exc_info: bool = False) -> None:
        """Log a line within the budget shared by all clients."""
        self._budget.warn(log, text, exc_info=exc_info)

    def drop(self, client: _Client) -> None:
        """End a connection and its handle, and the domain with all handles if it owns that. May be called again."""
        if client not in self._all:
            return
        self._all.discard(client)
        self._loop.remove_reader(client.sock)
        client.sock.close()
        if client.handle is not None:
            del self._clients[client.handle]
            for other in self.hypervisor.leave(client.handle):
                self.drop(self._clients[other])

    def _listen(self) -> None:
        if self._listening.fileno() >= 0:
            self._loop.add_reader(self._listening, self._acceptable)

    def _acceptable(self) -> None:
        try:
            sock, _ = self._listening.accept()
        except BlockingIOError:
            return
        except OSError as error:  # descriptors are used up, and the socket stays readable: retry later
            self.complain(f"cannot accept: {error}")
            self._loop.remove_reader(self._listening)
            self._loop.call_later(_RETRY_SECONDS, self._listen)
            return
        sock.setblocking(False)
        client = _Client(self, sock)
        self._all.add(client)
        self._loop.add_reader(sock, client.readable)


def _exhausted(error: OSError) -> PlatformError:
    return PlatformError(f"cannot admit a domain: {error}", "EMFILE")
