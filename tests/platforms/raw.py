# SPDX-License-Identifier: Apache-2.0
"""A client of the emulated hypervisor that sends whatever a test wants, well-formed or not."""

import fcntl
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from netback.platforms.emulated.memory import create_memfd
from netback.platforms.emulated.protocol import (
    HYPERVISOR_SOCKET,
    MAX_FDS,
    REPLY_SIZE,
    Hello,
    Op,
    Reply,
    Request,
)


class Raw:
    """A connection that sends bytes and descriptors and reads replies."""

    def __init__(self, directory: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(5)
        self._socket.connect(str(directory / HYPERVISOR_SOCKET))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, message: bytes, fds: Iterable[int] = ()) -> None:
        """Send; the far end may have hung up meanwhile."""
        try:
            socket.send_fds(self._socket, [message], list(fds))
        except (BrokenPipeError, ConnectionResetError):
            return

    def reply(self) -> Reply | None:
        """The next reply, its descriptors closed; None at the connection's end."""
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, REPLY_SIZE, MAX_FDS)
        except ConnectionResetError:
            return None
        for fd in fds:
            os.close(fd)
        return Reply.unpack(data) if data else None

    def hello(self, hello: Hello, pages: int = 2, sealed: bool = True) -> Reply | None:
        """Join with a memory of so many pages."""
        memfd = create_memfd("raw", pages) if sealed else unsealed_memfd(pages)
        try:
            self.send(hello.pack(), [memfd])
        finally:
            os.close(memfd)
        return self.reply()

    def ask(self, op: int, domid: int = 0, number: int = 0, flags: int = 0) -> Reply | None:
        """One request."""
        self.send(Request(op, domid, number, flags).pack())
        return self.reply()


def unsealed_memfd(pages: int, seals: int = 0, flags: int = os.MFD_ALLOW_SEALING) -> int:
    """A memory with only these seals."""
    fd = os.memfd_create("raw", os.MFD_CLOEXEC | flags)
    os.ftruncate(fd, pages * 4096)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def joined(directory: Path, **fields: int | bytes) -> tuple[Raw, Reply]:
    """A new domain."""
    raw = Raw(directory)
    reply = raw.hello(Hello(grant_pages=1, **fields))  # type: ignore[arg-type]
    assert reply is not None
    return raw, reply


__all__ = ["Op", "Raw", "joined", "unsealed_memfd"]
