# SPDX-License-Identifier: Apache-2.0
"""The wire of an Open vSwitch database: JSON-RPC 1.0 over a stream socket (RFC 7047), and the notation of its values.

The server is another program, which may be slow, vanish or lie: what comes from it is bounded, and each answer has a
time limit.
"""

import re
import select
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from netback.errors import PeerError, printable
from netback.net.connected import await_event

MAX_MESSAGE = 16 << 20
"""Bytes of one message, either way: the columns of tens of thousands of ports."""
MAX_DEPTH = 64
"""Objects within objects."""
ANSWER_SECONDS = 5.0
"""For each answer."""
PROBE_SECONDS = 5.0
"""After which a silent server is asked whether it is there."""
READ = 1 << 16
"""Bytes."""

_TOKEN = re.compile(rb'\\.|[{}"]', re.DOTALL)
"""What begins or ends an object or a string; in a string, a backslash and the byte after it are neither."""


class Message(msgspec.Struct):
    """A request, a notification or a response: what it lacks is None."""

    id: Any = None
    method: str | None = None
    params: list[Any] = msgspec.field(default_factory=list)
    result: Any = None
    error: Any = None


_DECODER = msgspec.json.Decoder(Message)


class Splitter:
    """Cuts a stream into its messages: objects that follow each other without a separator."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._seen = self._depth = 0
        self._in_string = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that these bytes complete. PeerError: the stream has something else, or too much of it."""
        self._data += data
        begin = 0
        for match in _TOKEN.finditer(self._data, self._seen):
            token = match.group()
            if token == b'"':
                self._in_string = not self._in_string
            elif not self._in_string and token in b"{}":
                self._depth += 1 if token == b"{" else -1
                if not 0 <= self._depth <= MAX_DEPTH:
                    raise PeerError("it sends what is no JSON-RPC")
                if self._depth == 0:
                    yield bytes(self._data[begin : match.end()])
                    begin = match.end()
            self._seen = match.end()
        if not self._data.endswith(b"\\"):  # else the next byte belongs to it
            self._seen = len(self._data)
        if self._depth == 0 and self._data[begin:].strip():
            raise PeerError("it sends what is no JSON-RPC")
        del self._data[:begin]
        self._seen -= begin
        if len(self._data) > MAX_MESSAGE:
            raise PeerError(f"it sends a message of more than {MAX_MESSAGE} bytes")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is not answered yet."""

    method: str
    deadline: float


class Session:
    """Requests and what comes over one connection. `alarm` is a descriptor that interrupts waiting once it is readable.

    PeerError: the server does not answer or read, or sends what is no JSON-RPC.
    """

    def __init__(self, connection: socket.socket, alarm: int) -> None:
        self._connection, self._alarm = connection, alarm
        self._splitter = Splitter()
        self._unsent = bytearray()
        self._asked: dict[int, Asked] = {}
        self._number = 0
        self._heard = time.monotonic()

    def ask(self, method: str, params: Sequence[object] = ()) -> int:
        """Send a request in the next `exchange`; returns its id."""
        self._number += 1
        self._asked[self._number] = Asked(method, time.monotonic() + ANSWER_SECONDS)
        self._queue({"method": method, "params": list(params), "id": self._number})
        return self._number

    def exchange(self, seconds: float | None = None) -> list[Message]:
        """Send what is queued, wait for the server for at most so many seconds, and return what came: the answers to
        `ask`, each once, and what has a method.
        """
        now = time.monotonic()
        oldest = next(iter(self._asked.values()), None)
        due = oldest.deadline if oldest else self._heard + PROBE_SECONDS
        if now >= due:
            if oldest:
                raise PeerError(f"it does not answer {oldest.method!a}")
            self.ask("echo")
            due = now + ANSWER_SECONDS
        event = select.POLLIN | (select.POLLOUT if self._unsent else 0)
        left = due - now if seconds is None else min(seconds, due - now)
        if not await_event(self._connection.fileno(), event, self._alarm, left):
            return []
        self._flush()
        return list(self._take(self._read()))

    def _queue(self, message: object) -> None:
        self._unsent += msgspec.json.encode(message)
        if len(self._unsent) > MAX_MESSAGE:
            raise PeerError("it reads nothing")

    def _flush(self) -> None:
        if self._unsent:
            try:
                del self._unsent[: self._connection.send(self._unsent)]
            except BlockingIOError:
                return

    def _read(self) -> bytes:
        try:
            data = self._connection.recv(READ)
        except BlockingIOError:
            return b""
        if not data:
            raise PeerError("it closed the connection")
        self._heard = time.monotonic()
        return data

    def _take(self, data: bytes) -> Iterator[Message]:
        for text in self._splitter.feed(data):
            try:
                message = _DECODER.decode(text)
            except (msgspec.MsgspecError, RecursionError) as error:
                raise PeerError("it sends what is no JSON-RPC") from error
            if message.method == "echo" and message.id is not None:
                self._queue({"id": message.id, "result": message.params, "error": None})
            elif message.method is not None:
                yield message
            elif isinstance(message.id, int):
                asked = self._asked.pop(message.id, None)
                if asked is not None and asked.method != "echo":
                    yield message


# ---- RFC 7047, 5.1: the notation of values


def atoms(value: object) -> list[Any]:
    """The members of a set; an atom is a set of one. ValueError: it is neither."""
    match value:
        case ["set", list(members)]:
            return members
        case ["map", _]:
            raise ValueError("a map, where a set belongs")
        case _:
            return [value]


def texts(value: object) -> list[str]:
    """The members of a set of strings. ValueError: it is none."""
    found = atoms(value)
    if not all(isinstance(each, str) for each in found):
        raise ValueError("no set of strings")
    return found


def numbers(value: object) -> list[int]:
    """The members of a set of numbers. ValueError: it is none."""
    found = atoms(value)
    if not all(isinstance(each, int) for each in found):
        raise ValueError("no set of numbers")
    return found


def pairs(value: object) -> dict[str, str]:
    """A map of strings. ValueError: it is none."""
    match value:
        case ["map", list(found)]:
            return {str(key): str(text) for key, text in found}
    raise ValueError("no map")


def references(value: object) -> frozenset[str]:
    """The rows that a set of references names. ValueError: it is none."""
    match value:
        case ["uuid", str(row)]:
            return frozenset({row})
    found = [references(each) for each in atoms(value) if each is not value]
    if not found and value != ["set", []]:
        raise ValueError("no reference")
    return frozenset().union(*found)


def as_set(members: Sequence[object]) -> list[object]:
    """The notation of a set."""
    return ["set", list(members)]


def as_map(found: dict[str, str]) -> list[object]:
    """The notation of a map of strings."""
    return ["map", [[key, value] for key, value in found.items()]]


def refusal(message: Message) -> str | None:
    """Why a request was refused, printable; None if it was not. Of a transaction, the first operation that failed."""
    fault = message.error
    if fault is None and isinstance(message.result, list):
        fault = next((each for each in message.result if isinstance(each, dict) and each.get("error")), None)
    if fault is None:
        return None
    if isinstance(fault, dict):
        fault = ": ".join(str(fault[key]) for key in ("error", "details") if fault.get(key))
    return printable(str(fault))[:200]
