# SPDX-License-Identifier: Apache-2.0
"""Bytes to messages and back, in any chunking (xs_wire.h)."""

from typing import NamedTuple

from netback.abi.xs_wire import HEADER, PAYLOAD_MAX
from netback.errors import GuestError


class WireError(GuestError):
    """The far end violated the protocol. The stream stays out of step, so its connection must end."""


class Packet(NamedTuple):
    """One message. `type` is a plain number, since the far end may send one that is no Op."""

    type: int
    req_id: int
    tx_id: int
    payload: bytes

    def encode(self) -> bytes:
        """The message on the wire."""
        return HEADER.pack(self.type, self.req_id, self.tx_id, len(self.payload)) + self.payload


class Parser:
    """Turns a stream in chunks of any size into whole messages.

    >>> parser = Parser()
    >>> parser.feed(Packet(2, 7, 0, b"/a").encode() + b"the next one's first bytes")
    >>> parser.next_packet()
    Packet(type=2, req_id=7, tx_id=0, payload=b'/a')
    """

    __slots__ = ("_at", "_buffer")

    def __init__(self) -> None:
        self._buffer = b""
        self._at = 0

    def feed(self, data: bytes) -> None:
        """Append received bytes."""
        self._buffer = self._buffer[self._at :] + data
        self._at = 0

    def next_packet(self) -> Packet | None:
        """The next whole message, or None while bytes are missing. WireError: a payload exceeds PAYLOAD_MAX."""
        start = self._at + HEADER.size
        if start > len(self._buffer):
            return None
        type_, req_id, tx_id, length = HEADER.unpack_from(self._buffer, self._at)
        # xenstored also ends the connection (xenstore.txt): the next header cannot be found.
        if length > PAYLOAD_MAX:
            raise WireError(f"xenstore message of type {type_} claims {length} of {PAYLOAD_MAX} bytes")
        end = start + length
        if end > len(self._buffer):
            return None
        self._at = end
        return Packet(type_, req_id, tx_id, self._buffer[start:end])


def strings(payload: bytes) -> list[bytes]:
    """The NUL-terminated strings of a payload; bytes behind the last NUL are ignored, as in xenstored."""
    return payload.split(b"\0")[:-1]


def joined(*parts: bytes) -> bytes:
    """The parts as NUL-terminated strings."""
    return b"".join([part + b"\0" for part in parts])
