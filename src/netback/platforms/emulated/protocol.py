# SPDX-License-Identifier: Apache-2.0
"""The messages between a domain and the emulated hypervisor; include/netback/emulated_xen.h is the same in C.

Knows layouts and numbers, no sockets. docs/emulated-xen.md tells what each request does.
"""

import enum
import struct
from dataclasses import dataclass
from typing import Self

MAGIC = 0x4E455845
"""The bytes "EXEN"."""
VERSION = 1

STORE_SOCKET = "xenstored.sock"
HYPERVISOR_SOCKET = "hypervisor.sock"

PAGE_SIZE = 4096
MAX_GRANT_PAGES = 64
MAX_PORTS = 4096
"""Of a domain; port 0 is never valid."""

DOMID_ANY = 0xFFFFFFFF
DOMID_FIRST_RESERVED = 0x7FF0

NAME_BYTES = 40
FDS_MAX = 2
"""The most that one message carries."""

_HELLO = struct.Struct(f"<6I{NAME_BYTES}s")
_REQUEST = struct.Struct("<4I")
_REPLY = struct.Struct("<iiIIIIQ")

HELLO_SIZE = _HELLO.size
REQUEST_SIZE = _REQUEST.size
REPLY_SIZE = _REPLY.size


class HelloFlag(enum.IntFlag):
    """How to join."""

    MAKE = 0
    """A domain, which ends with its connection."""
    ATTACH = 1
    """To a domain that exists."""


class Op(enum.IntEnum):
    """Requests. The numbers are the wire's."""

    ALLOC_UNBOUND = 1
    BIND_INTERDOMAIN = 2
    PEER = 3
    CLOSE = 4
    STATUS = 5
    MEMORY = 6
    MAP = 7
    UNMAP = 8


class PortState(enum.IntEnum):
    """EVTCHNSTAT_*, as far as they can occur."""

    CLOSED = 0
    UNBOUND = 1
    INTERDOMAIN = 2


MAP_READONLY = 1
"""The flag of MAP."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message, with the memfd beside it."""

    magic: int = MAGIC
    version: int = VERSION
    flags: int = 0
    domid: int = DOMID_ANY
    grant_pages: int = 0
    name: bytes = b""
    reserved: int = 0

    def pack(self) -> bytes:
        return _HELLO.pack(
            self.magic, self.version, self.flags, self.domid, self.grant_pages, self.reserved, self.name
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        magic, version, flags, domid, grant_pages, reserved, name = _HELLO.unpack(data)
        return cls(magic, version, flags, domid, grant_pages, name.split(b"\0", 1)[0], reserved)


@dataclass(frozen=True, slots=True)
class Request:
    """`number` is a port, a gref or a grant handle, as the operation has it."""

    op: int
    domid: int = 0
    number: int = 0
    flags: int = 0

    def pack(self) -> bytes:
        return _REQUEST.pack(self.op, self.domid, self.number, self.flags)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*_REQUEST.unpack(data))


@dataclass(frozen=True, slots=True)
class Reply:
    """`result` is 0 or a negative errno; what the other fields say depends on the request."""

    result: int = 0
    status: int = 0
    """GNTST_* of a MAP or UNMAP, PortState of a STATUS."""
    domid: int = 0
    number: int = 0
    """A port or a grant handle."""
    grant_pages: int = 0
    page: int = 0
    """Of the memfd beside it: the event page, or the granted frame."""
    handle: int = 0
    """Which handle is at the far side: equal numbers are the same event page."""

    def pack(self) -> bytes:
        return _REPLY.pack(
            self.result, self.status, self.domid, self.number, self.grant_pages, self.page, self.handle
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*_REPLY.unpack(data))
