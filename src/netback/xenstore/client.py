# SPDX-License-Identifier: Apache-2.0
"""A xenstore client without I/O: requests to bytes, bytes to answers and events."""

from dataclasses import dataclass
from typing import NamedTuple

from netback.abi.xs_wire import PAYLOAD_MAX, Errno, Op
from netback.errors import PlatformError
from netback.xenstore.errors import StoreProtocolError
from netback.xenstore.wire import Packet, Parser, WireError, joined, strings


class Answer(NamedTuple):
    """The reply to the request `req_id`; `errno` is the name in an ERROR reply, else empty."""

    req_id: int
    payload: bytes
    errno: str = ""


class Event(NamedTuple):
    """A watch fired. It may come before the answer to its WATCH (docs/decisions.md, Store client)."""

    path: str
    token: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A part of a directory's listing."""

    generation: bytes
    """Changes with the directory: parts with different generations do not belong together."""
    names: bytes
    """NUL-terminated names."""
    complete: bool
    """Whether this is the last part."""


def to_text(data: bytes) -> str:
    """A node's bytes as text. Values are usually text; any bytes survive `to_text` and `to_bytes`."""
    return data.decode("utf-8", "surrogateescape")


def to_bytes(text: str) -> bytes:
    """The bytes of a text, undoing `to_text`."""
    return text.encode("utf-8", "surrogateescape")


class Client:
    """Numbers requests and matches the replies.

    >>> client = Client()
    >>> number, message = client.request(Op.READ, joined(b"/name"))
    >>> client.receive(Packet(Op.READ, number, 0, b"value").encode())
    [Answer(req_id=1, payload=b'value', errno='')]
    """

    def __init__(self, payload_max: int = PAYLOAD_MAX) -> None:
        """`payload_max`: maximum bytes of a request's payload."""
        self._payload_max = payload_max
        self._parser = Parser()
        self._pending: dict[int, Op] = {}
        self._last = 0

    def request(self, op: Op, payload: bytes, tx_id: int = 0) -> tuple[int, bytes]:
        """The req_id that the answer will have, and the bytes to send. PlatformError E2BIG: beyond `payload_max`."""
        if len(payload) > self._payload_max:
            what = f"{op.name} of {len(payload)} bytes, {self._payload_max} are allowed"
            raise PlatformError(what, Errno.E2BIG)
        number = self._last
        while number == self._last or number == 0 or number in self._pending:
            number = (number + 1) & 0xFFFFFFFF
        self._last = number
        self._pending[number] = op
        return number, Packet(op, number, tx_id, payload).encode()

    def receive(self, data: bytes) -> list[Answer | Event]:
        """The answers and events that these bytes complete. StoreProtocolError: they violate the protocol."""
        self._parser.feed(data)
        found: list[Answer | Event] = []
        while packet := self._next():
            found.append(self._event(packet) if packet.type == Op.WATCH_EVENT else self._answer(packet))
        return found

    def _next(self) -> Packet | None:
        try:
            return self._parser.next_packet()
        except WireError as error:
            raise StoreProtocolError(str(error)) from error

    def _event(self, packet: Packet) -> Event:
        parts = strings(packet.payload)
        if len(parts) < 2:
            raise StoreProtocolError("a watch event without path and token")
        return Event(to_text(parts[0]), to_text(parts[1]))

    def _answer(self, packet: Packet) -> Answer:
        number = self._numbered(packet)
        op = self._pending.pop(number)
        if packet.type == Op.ERROR:
            return Answer(number, b"", to_text(packet.payload.rstrip(b"\0")) or Errno.EIO)
        if packet.type != op:
            raise StoreProtocolError(f"{op.name} was answered by a message of type {packet.type}")
        return Answer(number, packet.payload)

    def _numbered(self, packet: Packet) -> int:
        if packet.req_id in self._pending:
            return packet.req_id
        # Linux itself answers WATCH, UNWATCH and errors on /dev/xen/xenbus, in order and with req_id 0.
        for number, op in self._pending.items():
            if packet.req_id == 0 and packet.type in (op, Op.ERROR):
                return number
        raise StoreProtocolError(f"an answer to request {packet.req_id}, which was never sent")


def transaction_id(payload: bytes) -> int:
    """The id in a TRANSACTION_START reply. StoreProtocolError: not a number from 1 to 2**32 - 1."""
    text = payload.removesuffix(b"\0")
    if not text.isdigit() or len(text) > 10 or not 0 < int(text) < 1 << 32:
        raise StoreProtocolError(f"a transaction with the id {text[:20]!r}")
    return int(text)


def directory_part(payload: bytes) -> Entry:
    """The fields of a DIRECTORY_PART reply. StoreProtocolError: they are missing."""
    generation, nul, names = payload.partition(b"\0")
    if not nul:
        raise StoreProtocolError("a part of a directory without its generation")
    complete = names == b"\0" or names.endswith(b"\0\0")
    return Entry(generation, names[:-1] if complete else names, complete)


__all__ = [
    "Answer",
    "Client",
    "Entry",
    "Event",
    "directory_part",
    "joined",
    "strings",
    "to_bytes",
    "to_text",
    "transaction_id",
]
