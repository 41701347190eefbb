# SPDX-License-Identifier: Apache-2.0
"""A client's end of the control socket: lines, and the descriptors that come with them. Errors are ControlErrors."""

import os
import socket
import time
from pathlib import Path
from typing import TypeVar

import msgspec

from netback.control import rpc, schema
from netback.control.rpc import Code, RpcError
from netback.errors import ConfigError, NetbackError, printable

_CHUNK = 1 << 18
_MAX_DESCRIPTORS = 8
"""Descriptors that come with one reading, at most."""
_REFUSALS = (Code.REFUSED, Code.INVALID_PARAMS)

R = TypeVar("R", bound=schema.Result)
T = TypeVar("T")


class ControlError(NetbackError):
    """The backend refused, failed, or gave no valid answer in time. `code` is JSON-RPC's, 0 if there was no answer."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class NoBackend(ControlError):
    """No backend listens."""


class Refused(ControlError, ConfigError):
    """The backend answers that the request itself is wrong: there is no such device, or a value is none."""


class Received(msgspec.Struct, frozen=True):
    """The parameters of the notifications `event` and `ended`."""

    subscription: int
    lost: int = 0
    more: bool = False
    events: msgspec.Raw = msgspec.Raw(b"[]")
    reason: str = ""


class Connection:
    """A socket and the lines that arrive on it. Every error is a ControlError that names the socket."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path = path
        self.descriptors: list[int] = []
        """Those that came and were not taken out of the list; they are closed with the connection."""
        self._seconds = seconds
        self._buffer = bytearray()
        self._sock = socket.socket(socket.AF_UNIX)
        try:
            self._sock.settimeout(seconds)
            self._sock.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            self._sock.close()
            raise NoBackend(f"no backend listens at {path}: start netback run") from error
        except OSError as error:
            self._sock.close()
            raise self._error(error, seconds) from error

    def close(self) -> None:
        """May be called again."""
        self._sock.close()
        while self.descriptors:
            os.close(self.descriptors.pop())

    def fileno(self) -> int:
        """The socket's descriptor, for poll(2)."""
        return self._sock.fileno()

    def call(self, method: str, params: schema.Request, wanted: type[R], further: float = 0.0) -> R:
        """A method's result; the backend itself may wait for `further` seconds, an hour at most."""
        limit = time.monotonic() + self._seconds + min(max(0.0, further), 3600.0)
        try:
            line = rpc.encode_call(method, params, 1)
        except UnicodeEncodeError as error:  # a word of a command line that is no UTF-8
            raise Refused(f"{method}: {printable(error.object)} is no UTF-8", Code.INVALID_PARAMS) from error
        try:
            self._sock.settimeout(self._seconds)
            self._sock.sendall(line)
        except OSError as error:
            raise self._error(error, self._seconds) from error
        answer = self.read(limit)
        if answer.error is not None:
            text = printable(answer.error.message)
            raise (Refused if answer.error.code in _REFUSALS else ControlError)(text, answer.error.code)
        return self.decode(answer.result, wanted)

    def read(self, limit: float | None) -> rpc.Answer:
        """The next line, until the monotonic time `limit`, or without one."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched) + 1) == 0:
            searched = len(self._buffer)
            if searched > rpc.MAX_ANSWER:
                raise ControlError(f"{self.path}: the answer is too long")
            self._receive(limit)
        line = bytes(self._buffer[:end])
        del self._buffer[:end]
        try:
            return rpc.decode_answer(line)
        except RpcError as error:
            raise ControlError(f"{self.path}: {printable(str(error))}") from error

    def event(self, limit: float | None) -> Received:
        """The next events of this connection's subscription. ControlError: it ended, or the backend did."""
        line = self.read(limit)
        if line.error is not None:
            raise ControlError(printable(line.error.message), line.error.code)
        received = self.decode(line.params, Received)
        if line.method == "ended":
            raise ControlError(printable(received.reason))
        return received

    def decode(self, data: msgspec.Raw, wanted: type[T]) -> T:
        """A part of an answer as `wanted`."""
        try:
            return rpc.decode(data, wanted, Code.PARSE, "the answer is malformed: ")
        except RpcError as error:
            raise ControlError(f"{self.path}: {printable(str(error))}") from error

    def _receive(self, limit: float | None) -> None:
        try:
            if limit is None:
                self._sock.settimeout(None)
            else:
                self._sock.settimeout(max(limit - time.monotonic(), 0.001))
            data, descriptors, _, _ = socket.recv_fds(
                self._sock, _CHUNK, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
            self.descriptors += descriptors
        except OSError as error:
            raise self._error(error, self._seconds) from error
        if not data:
            raise ControlError(
                f"{self.path}: {'the answer ends in the middle' if self._buffer else 'the backend ended'}"
            )
        self._buffer += data

    def _error(self, error: OSError, seconds: float) -> ControlError:
        reason = (
            f"no answer within {seconds:g} s" if isinstance(error, TimeoutError) else error.strerror or error
        )
        return ControlError(f"{self.path}: {reason}")
