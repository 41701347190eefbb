# SPDX-License-Identifier: Apache-2.0
"""Another program at the far end of a stream: honest by `send` and `recv`, and any bytes by `connection`.

It listens where it is told, or connects. Imports only constants from netback.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Self

from .far import PATIENCE, PLAIN

LENGTH = struct.Struct(">I")
Address = str | tuple[str, int]


def wire(*messages: bytes) -> bytes:
    """Frames, each with its virtio_net_hdr, as they go over a stream: length and frame."""
    return b"".join(LENGTH.pack(len(m) - len(PLAIN)) + m[len(PLAIN) :] for m in messages)


class Program:
    """`address`: a path, or a host and a port. `connection` is the present one."""

    def __init__(self, address: Path | tuple[str, int], *, client: bool = False) -> None:
        self.address: Address = str(address) if isinstance(address, Path) else address
        self.family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
        if isinstance(address, tuple) and ":" in address[0]:
            self.family = socket.AF_INET6
        self._connection: socket.socket | None = None
        self._listener: socket.socket | None = None
        if not client:
            self._listener = self._new()
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(self.address)
            self._listener.listen()
            if self.family != socket.AF_UNIX:
                self.address = self._listener.getsockname()[:2]

    def _new(self) -> socket.socket:
        sock = socket.socket(self.family, socket.SOCK_STREAM)
        sock.settimeout(PATIENCE / 1000)
        return sock

    @property
    def connection(self) -> socket.socket:
        """The present connection, made or accepted at the first use."""
        if self._connection is None:
            if self._listener is not None:
                self._connection, _ = self._listener.accept()
                self._connection.settimeout(PATIENCE / 1000)
            else:
                self._connection = self._new()
                self._connection.connect(self.address)
        return self._connection

    def send(self, message: bytes) -> None:
        """Send a frame; its virtio_net_hdr stays here."""
        self.connection.sendall(wire(message))

    def recv(self) -> bytes:
        """The next frame, after an empty virtio_net_hdr. EOFError: the connection has ended."""
        return PLAIN + self._read(*LENGTH.unpack(self._read(LENGTH.size)))

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.connection.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def drop(self) -> None:
        """End the connection; the next use makes another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """End: nobody listens any more."""
        self.drop()
        if self._listener is not None:
            self._listener.close()
            if isinstance(self.address, str):
                with suppress(FileNotFoundError):
                    Path(self.address).unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
