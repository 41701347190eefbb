# SPDX-License-Identifier: Apache-2.0
"""JSON-RPC 2.0, a message a line: bytes to requests, results to bytes. No I/O, no knowledge of any method.

An id is kept as the JSON that the client wrote, so nothing depends on its value, be it a huge number or used twice.
"""

from collections.abc import Iterable
from enum import IntEnum
from typing import TypeVar

import msgspec

from netback.errors import NetbackError

MAX_LINE = 64 << 10
"""Maximum bytes of a client's line, newline included."""
MAX_ANSWER = 64 << 20
"""Maximum bytes of a server's line, newline included: a thousand devices take about a megabyte."""
MAX_BATCH = 32
"""Maximum requests of a batch."""
MAX_BATCH_ANSWER = 4 << 20
"""Bytes of a batch's answers after which the rest of its requests are refused, so a batch of the longest answers takes
no more memory than some single ones."""
MAX_ID = 256
"""Maximum bytes of an id."""

SOCKET = "control.sock"
"""The socket's name in the backend's runtime directory."""

_NULL = msgspec.Raw(b"null")
_ID_STARTS = b'"-0123456789n'
_DECODE_ERRORS = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, OverflowError)

T = TypeVar("T")


class Code(IntEnum):
    """The codes of errors: JSON-RPC 2.0's own, then netback's."""

    PARSE = -32700
    INVALID_REQUEST = -32600
    NO_METHOD = -32601
    INVALID_PARAMS = -32602
    INTERNAL = -32603
    FAILED = -32000
    """What was asked for failed, and may succeed later."""
    REFUSED = -32001
    """What was asked for cannot be: there is no such device, or a value is none."""
    BUSY = -32002
    """There are too many clients or subscriptions. The server ends the connection if it says so without a request."""


class RpcError(NetbackError):
    """An error of the protocol, or the error that the server answered."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Call(msgspec.Struct, frozen=True):
    """One request. An `id` of no bytes: it is a notification, which is carried out and not answered."""

    method: str
    jsonrpc: str = ""
    params: msgspec.Raw = msgspec.Raw(b"{}")
    id: msgspec.Raw = msgspec.Raw(b"")


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The error of an answer."""

    code: int
    message: str


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of the server as a client reads it: an answer, or a notification, which has a method."""

    result: msgspec.Raw = msgspec.Raw(b"")
    error: Failure | None = None
    method: str = ""
    params: msgspec.Raw = msgspec.Raw(b"")


class _Success(msgspec.Struct, frozen=True):
    result: object
    id: msgspec.Raw
    jsonrpc: str = "2.0"


class _Refusal(msgspec.Struct, frozen=True):
    error: Failure
    id: msgspec.Raw
    jsonrpc: str = "2.0"


class _Notification(msgspec.Struct, frozen=True):
    method: str
    params: object
    jsonrpc: str = "2.0"


class _Outgoing(msgspec.Struct, frozen=True):
    method: str
    params: object
    id: int
    jsonrpc: str = "2.0"


def decode_line(line: bytes) -> msgspec.Raw | list[msgspec.Raw]:
    """A line as one message, or as those of a batch. RpcError: it is no JSON in UTF-8, or a batch of a wrong length."""
    try:
        line.decode()
        if not line.lstrip().startswith(b"["):
            return msgspec.json.decode(line, type=msgspec.Raw)
        batch = msgspec.json.decode(line, type=list[msgspec.Raw])
    except _DECODE_ERRORS as error:
        raise RpcError(Code.PARSE, f"the line is no JSON: {_reason(error)}") from error
    if not 0 < len(batch) <= MAX_BATCH:
        raise RpcError(Code.INVALID_REQUEST, f"a batch has 1 to {MAX_BATCH} requests, not {len(batch)}")
    return batch


def decode_call(message: msgspec.Raw) -> Call:
    """A message as a request. RpcError: it is none."""
    try:
        call = msgspec.json.decode(message, type=Call)
    except _DECODE_ERRORS as error:
        raise RpcError(Code.INVALID_REQUEST, f"not a request: {_reason(error)}") from error
    if call.jsonrpc != "2.0":
        raise RpcError(Code.INVALID_REQUEST, 'not a request: jsonrpc is not "2.0"')
    ident = bytes(call.id)
    if len(ident) > MAX_ID or (ident and ident[0] not in _ID_STARTS):
        raise RpcError(
            Code.INVALID_REQUEST,
            f"not a request: an id is a string, a number or null of at most {MAX_ID} bytes",
        )
    return call


def decode_params(call: Call, wanted: type[T]) -> T:
    """A request's parameters, which are given by name. RpcError names the one that is wrong."""
    return decode(call.params, wanted, Code.INVALID_PARAMS, f"{call.method}: ")


def decode(data: bytes | msgspec.Raw, wanted: type[T], code: Code, about: str) -> T:
    """JSON as `wanted`. RpcError: it is none."""
    try:
        return msgspec.json.decode(data, type=wanted)
    except _DECODE_ERRORS as error:
        raise RpcError(code, about + _reason(error)) from error


def encode_call(method: str, params: object, ident: int) -> bytes:
    """A request as a line."""
    return msgspec.json.encode(_Outgoing(method, params, ident)) + b"\n"


def encode_result(result: object, ident: msgspec.Raw) -> bytes:
    """An answer as a line."""
    return msgspec.json.encode(_Success(result, ident)) + b"\n"


def encode_error(code: int, message: str, ident: msgspec.Raw = _NULL) -> bytes:
    """A refusal as a line. Without an id it is about no request that the server could read."""
    return msgspec.json.encode(_Refusal(Failure(code=code, message=message), ident)) + b"\n"


def encode_notification(method: str, params: object) -> bytes:
    """A notification as a line."""
    return msgspec.json.encode(_Notification(method, params)) + b"\n"


def join_batch(lines: Iterable[bytes]) -> bytes:
    """The answers of a batch as one line; nothing if there is none."""
    text = b",".join(line[:-1] for line in lines)
    return b"[" + text + b"]\n" if text else b""


def decode_answer(line: bytes) -> Answer:
    """A server's line. RpcError: it is truncated or none."""
    if not line.endswith(b"\n"):
        raise RpcError(Code.PARSE, "the answer ends in the middle")
    return decode(line, Answer, Code.PARSE, "the answer is malformed: ")


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
