# SPDX-License-Identifier: Apache-2.0
"""A xenstore client without I/O: requests to bytes, bytes to answers and events. It knows no descriptors."""

from dataclasses import dataclass
from typing import NamedTuple

from netback.abi.xs_wire import PAYLOAD_MAX, Errno, Op
from netback.errors import PlatformError
from netback.xenstore.wire import Packet, Parser, WireError, joined, strings


class Answer(NamedTuple):
    """The reply to the request of that number; `errno` is empty unless it was refused."""

    req_id: int
    payload: bytes
    errno: str = ""


class Event(NamedTuple):
    """A watch fired. It may come before the answer to the request that set the watch."""

    path: str
    token: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A part of a directory's listing; `complete` when there is no more behind it."""

    generation: bytes
    names: bytes
    complete: bool


# Values are bytes that are usually text; whatever they hold must survive being read and written back.
def to_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class Client:
    """Numbers requests and matches what comes back.

    >>> client = Client()
    >>> number, message = client.request(Op.READ, joined(b"/name"))
    >>> client.receive(Packet(Op.READ, number, 0, b"value").encode())
    [Answer(req_id=1, payload=b'value', errno='')]
    """

    def __init__(self, payload_max: int = PAYLOAD_MAX) -> None:
        self._payload_max = payload_max
        self._parser = Parser()
        self._pending: dict[int, Op] = {}
        self._last = 0

    def request(self, op: Op, payload: bytes, tx_id: int = 0) -> tuple[int, bytes]:
        """The number that the answer will carry, and the bytes to send."""
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
        """What these bytes complete. WireError: the far end is not a xenstore, or is out of step."""
        self._parser.feed(data)
        found: list[Answer | Event] = []
        while packet := self._parser.next_packet():
            found.append(self._event(packet) if packet.type == Op.WATCH_EVENT else self._answer(packet))
        return found

    def _event(self, packet: Packet) -> Event:
        parts = strings(packet.payload)
        if len(parts) < 2:
            raise WireError("a watch event without path and token")
        return Event(to_text(parts[0]), to_text(parts[1]))

    def _answer(self, packet: Packet) -> Answer:
        number = self._numbered(packet)
        op = self._pending.pop(number)
        if packet.type == Op.ERROR:
            return Answer(number, b"", to_text(packet.payload.rstrip(b"\0")) or Errno.EIO)
        if packet.type != op:
            raise WireError(f"{op.name} was answered by a message of type {packet.type}")
        return Answer(number, packet.payload)

    def _numbered(self, packet: Packet) -> int:
        if packet.req_id in self._pending:
            return packet.req_id
        # What Linux answers by itself on /dev/xen/xenbus (WATCH, UNWATCH, errors) has req_id 0, in order.
        for number, op in self._pending.items():
            if packet.req_id == 0 and packet.type in (op, Op.ERROR):
                return number
        raise WireError(f"an answer to request {packet.req_id}, which was never sent")


def directory_part(payload: bytes) -> Entry:
    """The fields of a DIRECTORY_PART reply."""
    generation, nul, names = payload.partition(b"\0")
    if not nul:
        raise WireError("a part of a directory without its generation")
    complete = names == b"\0" or names.endswith(b"\0\0")
    return Entry(generation, names[:-1] if complete else names, complete)


__all__ = ["Answer", "Client", "Entry", "Event", "directory_part", "joined", "strings", "to_bytes", "to_text"]
