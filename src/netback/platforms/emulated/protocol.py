# SPDX-License-Identifier: Apache-2.0
"""The messages between a domain and the emulated hypervisor; src/netback/include/netback/emulated_xen.h has them in C.

This module has layouts and numbers. docs/emulated-xen.md describes each request.
"""

import enum
import re
import struct
from dataclasses import dataclass
from typing import Self

from netback.abi.xen import DOMID_FIRST_RESERVED
from netback.errors import PlatformError

MAGIC = 0x4E455845
"""The bytes "EXEN"."""
VERSION = 1

STORE_SOCKET = "xenstored.sock"
HYPERVISOR_SOCKET = "hypervisor.sock"

PAGE_SIZE = 4096
MAX_PAGES = 1 << 22
"""Maximum pages of one handle's memory: 16 GiB. A backend maps a whole guest, so a joiner's memory takes up address
space of others."""
MAX_TOTAL_PAGES = 1 << 26
"""Maximum pages of the memory of all handles together: 256 GiB."""
MAX_GRANT_PAGES = 64
MAX_PORTS = 4096
"""Ports of a domain; port 0 is never valid."""

DOMID_ANY = 0xFFFFFFFF

NAME_BYTES = 40
"""Bytes of a hello's name, including its NUL."""
_NAME = re.compile(rb"[A-Za-z0-9._+-]{0,%d}" % (NAME_BYTES - 1))
MAX_FDS = 2
"""Maximum descriptors in one message."""

_HELLO = struct.Struct(f"<6I{NAME_BYTES}s")
_REQUEST = struct.Struct("<4I")
_REPLY = struct.Struct("<iiIIIIQ")

HELLO_SIZE = _HELLO.size
REQUEST_SIZE = _REQUEST.size
REPLY_SIZE = _REPLY.size


class HelloFlag(enum.IntFlag):
    """What a hello requests."""

    MAKE = 0
    """A new domain, which ends with its connection."""
    ATTACH = 1
    """A further handle of an existing domain."""


class Op(enum.IntEnum):
    """Requests, with their numbers on the wire."""

    ALLOC_UNBOUND = 1
    BIND_INTERDOMAIN = 2
    PEER = 3
    CLOSE = 4
    STATUS = 5
    MEMORY = 6
    MAP = 7
    UNMAP = 8


class PortState(enum.IntEnum):
    """The values of EVTCHNSTAT_* in event_channel.h that occur here."""

    CLOSED = 0
    UNBOUND = 1
    INTERDOMAIN = 2


MAP_READONLY = 1
"""The flag of MAP."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message, sent with the memfd."""

    magic: int = MAGIC
    version: int = VERSION
    flags: int = 0
    domid: int = DOMID_ANY
    grant_pages: int = 0
    name: bytes = b""
    reserved: int = 0

    def check(self) -> None:
        """PlatformError names the field that is out of bounds. Both ends check a hello before they use it."""
        if self.magic != MAGIC:
            raise PlatformError(f"a hello with magic {self.magic:#x}, not {MAGIC:#x}", "EPROTO")
        if self.version != VERSION:
            raise PlatformError(f"a hello of version {self.version}, not {VERSION}", "EPROTO")
        if self.flags not in (HelloFlag.MAKE, HelloFlag.ATTACH) or self.reserved:
            raise PlatformError(
                f"a hello with unknown flags {self.flags:#x} or reserved {self.reserved:#x}", "EINVAL"
            )
        if self.domid != DOMID_ANY and not 0 <= self.domid < DOMID_FIRST_RESERVED:
            raise PlatformError(f"domid {self.domid}: 0 to {DOMID_FIRST_RESERVED - 1}", "EINVAL")
        minimum = 0 if self.flags & HelloFlag.ATTACH else 1
        if not minimum <= self.grant_pages <= MAX_GRANT_PAGES:
            raise PlatformError(
                f"{self.grant_pages} pages of grants: {minimum} to {MAX_GRANT_PAGES}", "EINVAL"
            )
        if not _NAME.fullmatch(self.name):
            raise PlatformError(f"name {self.name!r}: at most {NAME_BYTES - 1} of [A-Za-z0-9._+-]", "EINVAL")

    def pack(self) -> bytes:
        """The message; the fields must pass `check`."""
        return _HELLO.pack(
            self.magic, self.version, self.flags, self.domid, self.grant_pages, self.reserved, self.name
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        magic, version, flags, domid, grant_pages, reserved, name = _HELLO.unpack(data)
        return cls(magic, version, flags, domid, grant_pages, name.split(b"\0", 1)[0], reserved)


@dataclass(frozen=True, slots=True)
class Request:
    """`number` is a port, a gref or a grant handle, depending on the operation."""

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
    """`result` is 0 or a negative errno; the meaning of the other fields depends on the request."""

    result: int = 0
    status: int = 0
    """GNTST_* of a MAP or UNMAP, PortState of a STATUS."""
    domid: int = 0
    number: int = 0
    """A port or a grant handle."""
    grant_pages: int = 0
    page: int = 0
    """A page of the accompanying memfd: the event page, or the granted frame."""
    handle: int = 0
    """The handle at the far side; equal numbers mean the same event page."""

    def pack(self) -> bytes:
        return _REPLY.pack(
            self.result, self.status, self.domid, self.number, self.grant_pages, self.page, self.handle
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*_REPLY.unpack(data))
