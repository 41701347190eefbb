# SPDX-License-Identifier: Apache-2.0
"""A process's end of the emulated hypervisor: join, request, leave. Each call is short and blocks.

This module handles messages and descriptors; other modules use the ports and grants. Threads may share a handle.
"""

import contextlib
import errno
import os
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from netback.abi.grant_table import GrantStatus
from netback.directory import check_socket_path
from netback.errors import PlatformError
from netback.platforms.emulated.memory import GrantRefused, Mapping, create_memfd
from netback.platforms.emulated.protocol import (
    DOMID_ANY,
    HYPERVISOR_SOCKET,
    MAX_FDS,
    PAGE_SIZE,
    REPLY_SIZE,
    Hello,
    HelloFlag,
    Op,
    Reply,
    Request,
)

_TIMEOUT_SECONDS = 10.0


class Handle:
    """One connection to the hypervisor: a memory with its event page, an eventfd, and, until taken, a store connection.

    PlatformError: the hypervisor refuses the hello (docs/emulated-xen.md, Messages). ConfigError: the directory's path
    is too long for a socket.
    """

    def __init__(self, directory: Path, hello: Hello, pages: int) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        hello.check()
        with contextlib.ExitStack() as undo:
            memfd = create_memfd(hello.name.decode() or "handle", pages)
            with os.fdopen(memfd, "rb"):  # after joining, the mappings keep the memory
                self.memory = Mapping(memfd, 0, pages)
                undo.callback(self.memory.close)
                self._socket = undo.enter_context(_connect(directory))
                reply, fds = self._exchange(hello.pack(), f"join as {_who(hello)}", [memfd])
            self.domid, self.grant_pages = reply.domid, reply.grant_pages
            self.event_page = self.memory.address + reply.page * PAGE_SIZE
            self.eventfd = fds[0]
            undo.callback(os.close, self.eventfd)
            self._store = undo.enter_context(socket.socket(fileno=fds[1]))
            self._undo = undo.pop_all()

    @classmethod
    def attach(cls, directory: Path, domid: int) -> Self:
        """A further handle of an existing domain; its memory holds only its event page."""
        return cls(directory, Hello(flags=HelloFlag.ATTACH, domid=domid), 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave: ports close, mappings end, and the domain ends if this handle created it. May be called again."""
        self._undo.close()

    def take_store(self) -> socket.socket:
        """A store connection of this domain; the caller closes it. It outlives the handle, not the domain.

        The first call returns the connection from the hello's reply, later ones attach for another.
        """
        if self._store.fileno() < 0:
            with Handle.attach(self._directory, self.domid) as another:
                return another.take_store()
        return socket.socket(fileno=self._store.detach())

    def request(self, op: Op, domid: int = 0, number: int = 0, flags: int = 0) -> tuple[Reply, list[int]]:
        """Send a request; returns its reply and descriptors, which the caller closes.

        PlatformError: refused; GrantRefused: the grant table refuses; PlatformError EIO: the hypervisor is gone or does
        not answer within 10 s.
        """
        what = f"{op.name.lower()} domain {domid} number {number}"
        return self._exchange(Request(op, domid, number, flags).pack(), what, [])

    def _exchange(self, message: bytes, what: str, passed: list[int]) -> tuple[Reply, list[int]]:
        try:
            with self._lock:
                socket.send_fds(self._socket, [message], passed)
                data, fds, _flags, _address = socket.recv_fds(
                    self._socket, REPLY_SIZE, MAX_FDS, socket.MSG_CMSG_CLOEXEC
                )
        except OSError as error:
            self._socket.close()  # a late reply must not answer the next request
            raise PlatformError(f"emulated Xen: {what}: {error.strerror or error}", "EIO") from error
        if len(data) != REPLY_SIZE:
            raise PlatformError(f"emulated Xen: {what}: the hypervisor ended the connection", "EIO")
        reply = Reply.unpack(data)
        if reply.result:
            if reply.status:
                raise GrantRefused(GrantStatus(reply.status), f"emulated Xen: {what}")
            name = errno.errorcode.get(-reply.result, "EIO")
            raise PlatformError(f"emulated Xen: {what}: {os.strerror(-reply.result)}", name)
        return reply, fds


def _who(hello: Hello) -> str:
    """The domain that a hello requests, for error messages."""
    return "a new domain" if hello.domid == DOMID_ANY else f"domain {hello.domid}"


def _connect(directory: Path) -> socket.socket:
    path = check_socket_path(directory / HYPERVISOR_SOCKET)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(_TIMEOUT_SECONDS)
    try:
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        raise PlatformError(f"{path}: no emulated Xen here: {error.strerror}", "EIO") from error
    return sock
