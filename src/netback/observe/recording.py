# SPDX-License-Identifier: Apache-2.0
"""A recording as a file: what a guest did to a vif, by polls of its queues and by its keys in the store.

The file: `MAGIC`, then blocks of a length, a CRC-32 and that many bytes. The first block is a `Header` in JSON, each
further one a poll as dataplane/flight.pxd has it: those of the first queue, then those of the next. A file that was cut
or edited is refused with the place of the damage; the bytes of a poll are checked again where they are read, since a
CRC is no protection from an author.
"""

import os
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

import netback
from netback.abi.netif import RX_SLOT, TX_SLOT
from netback.dataplane.counters import MEANINGS
from netback.dataplane.states import State
from netback.errors import ConfigError

MAGIC = b"netback recording 2\r\n\x1a\n"
"""With the version of the format. The line's end and the control character are damaged by transfers as text."""
_FAMILY = b"netback recording "
MAX_BYTES = 1 << 30
"""Bytes of a file, at most."""
ALL = 1 << 20
"""A `snaplen` that keeps every frame whole."""
_BLOCK = struct.Struct("<II")
"""Length and CRC-32."""
MAX_QUEUES = 256
_MAX_HEADER = 1 << 20
_MAX_POLL = 1 << 24
_HEAD = struct.Struct("<IBBBB7Q9IHH10BH4x")
"""poll_t of dataplane/back/recording.pxd, as is `_Head`."""
_ITEM = struct.Struct("<HHIII")
_COPY = struct.Struct("<IHHhH")
_FRAME = struct.Struct("<II10sH")
_COUNTER = struct.Struct("<II")
_KEY_BYTES = 40
_MULTICAST_BYTES = 8
_SLOT_BYTES = {"tx": TX_SLOT, "rx": RX_SLOT}
_KEPT = 1 << 4
"""In `count` of frames: their bytes follow."""
_MINUS = 1 << 31
"""From here on a number of frames is negative: the read failed."""


class _Head(NamedTuple):
    size: int
    ring: int
    state: int
    events: int
    poll_follows: int
    time: int
    period: int
    read_at: int
    waits_since: int
    waited: int
    drain: int
    stall: int
    rsp_prod: int
    segments_sent: int
    stalled_needed: int
    most_posted: int
    lone: int
    caps: int
    peer_caps: int
    frames_per_read: int
    hash_types: int
    rx_offset: int
    multicasts: int
    backlog: int
    sg: int
    multicast_control: int
    rx_unannounced: int
    rx_extras: int
    segmenting: int
    large: int
    limited: int
    hashed: int
    segments_gso: int
    segment: int


class Note(msgspec.Struct, frozen=True):
    """Something beside the rings, as the device saw it."""

    time: int
    """ns, CLOCK_MONOTONIC."""
    what: str


class QueueHeader(msgspec.Struct, frozen=True):
    """A queue's part of a recording."""

    polls: Annotated[int, msgspec.Meta(ge=0)]
    """Blocks that follow."""
    recorded: int
    """Polls of the connection: more than `polls` if the first ones are not there any more."""
    lost: int
    """Polls that were larger than the recorder, so that those before them were lost as well."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first block."""

    netback: str = netback.__version__
    device: str
    saved: float
    """Seconds since 1970."""
    clock: int
    """ns, CLOCK_MONOTONIC, at that moment."""
    reason: str | None = None
    """How the guest broke the protocol."""
    snaplen: int
    """Bytes that were kept of each frame."""
    states: tuple[str, ...] = tuple(state.name for state in State)
    counters: tuple[str, ...] = tuple(MEANINGS)
    notes: tuple[Note, ...] = ()
    queues: tuple[QueueHeader, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """What a poll read from outside, or made."""

    kind: str
    count: int
    a: int
    b: int
    c: int
    copies: tuple[tuple[int, int, int, int, int], ...] = ()
    """Of "copies": gref, offset, length, status (GNTST_*), and the bytes kept of each."""
    lengths: tuple[int, ...] = ()
    """Of "frames": bytes of each."""
    counters: tuple[tuple[int, int], ...] = ()
    """Of "end": a counter's number, and how much it rose."""


_KINDS = ("", "index", "slots", "claim", "copies", "sent", "frames", "responses", "end")
"""ITEM_* of dataplane/flight.pxd."""


def kind_name(kind: int) -> str:
    """An item's kind in words."""
    return _KINDS[kind] if 0 < kind < len(_KINDS) else f"{kind}" if kind else "nothing"


@dataclass(frozen=True, slots=True)
class Poll:
    """One poll of one ring, decoded."""

    data: bytes
    ring: str
    """"tx" or "rx"."""
    state: int
    """The direction's, before it."""
    events: int
    time: int
    rsp_prod: int
    backlog: int
    hash: tuple[bytes, int] | None
    """Key and types."""
    slots: bytes
    """The requests that it took, from rsp_prod on."""
    req_prod: int | None
    """As it was read last; None: it was not read."""
    rsp_event: int | None
    """Likewise: where the guest asked for an event."""
    items: tuple[Item, ...]

    @property
    def end(self) -> Item:
        """How it ended."""
        return self.items[-1]

    def find(self, kind: str) -> Iterator[Item]:
        """Its items of one kind."""
        return (item for item in self.items if item.kind == kind)


@dataclass(frozen=True, slots=True)
class Recording:
    """A file's contents."""

    header: Header
    queues: tuple[tuple[Poll, ...], ...]


def encode(header: Header, queues: Sequence[Sequence[bytes]]) -> bytes:
    """A file's bytes. `header.queues` is made from `queues`, the polls of each."""
    blocks = [msgspec.json.encode(header), *(poll for polls in queues for poll in polls)]
    return MAGIC + b"".join(_BLOCK.pack(len(block), zlib.crc32(block)) + block for block in blocks)


def read(path: Path) -> Recording:
    """Read a file. ConfigError: it cannot be read, or is damaged; the line has the place."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not block
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ConfigError(f"{path}: it is no regular file")
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    try:
        return decode(data)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def decode(data: bytes) -> Recording:
    """A file's contents. ValueError says what is wrong with it and where."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} bytes: it is no recording")
    if not data.startswith(MAGIC):
        raise ValueError(_foreign(data))
    at, block = _block(data, len(MAGIC), _MAX_HEADER, "the header")
    try:
        header = msgspec.json.decode(block, type=Header)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"the header at offset {len(MAGIC)} is damaged: {error}") from error
    _check(header)
    queues = []
    for number, queue in enumerate(header.queues):
        polls = []
        for count in range(queue.polls):
            what, begin = f"poll {count + 1} of {queue.polls} of queue {number}", at
            at, block = _block(data, at, _MAX_POLL, what)
            try:
                polls.append(decode_poll(block))
            except ValueError as error:
                raise ValueError(f"{what} at offset {begin} is damaged: {error}") from error
        queues.append(tuple(polls))
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes follow its end at offset {at}")
    return Recording(header, tuple(queues))


def _foreign(data: bytes) -> str:
    """What a file is that does not begin as a recording."""
    if MAGIC.startswith(data):
        return f"it is cut within its first line: the file ends at {len(data)}"
    if data.startswith(_FAMILY):
        return "it is a recording in another version of the format, or its first line is damaged"
    return "it is no recording of netback"


def _block(data: bytes, at: int, most: int, what: str) -> tuple[int, bytes]:
    """The block that begins here, and where the next one does."""
    if len(data) - at < _BLOCK.size:
        raise ValueError(f"it is cut: {what} would begin at offset {at}, the file ends at {len(data)}")
    length, crc = _BLOCK.unpack_from(data, at)
    end = at + _BLOCK.size + length
    if length > most:
        raise ValueError(f"{what} at offset {at} is damaged: it has {length} bytes")
    if end > len(data):
        raise ValueError(f"it is cut: {what} at offset {at} goes to {end}, the file ends at {len(data)}")
    block = data[at + _BLOCK.size : end]
    if zlib.crc32(block) != crc:
        raise ValueError(f"{what} at offset {at} is damaged: its checksum is wrong")
    return end, block


def _check(header: Header) -> None:
    """What a poll's numbers mean must be what they mean here."""
    if header.states != tuple(state.name for state in State):
        raise ValueError(f"netback {header.netback} recorded it, whose states are not those of this netback")
    if len(header.queues) > MAX_QUEUES:
        raise ValueError(f"the header at offset {len(MAGIC)} is damaged: it has {len(header.queues)} queues")


def decode_poll(data: bytes) -> Poll:
    """One poll. ValueError: it is damaged."""
    if len(data) < _HEAD.size:
        raise ValueError("it is shorter than its head")
    head = _Head(*_HEAD.unpack_from(data))
    if head.size != len(data) or head.ring not in (1, 2) or head.state >= len(State):
        raise ValueError("its head is wrong")
    ring, rest = ("tx", "rx")[head.ring - 1], _Rest(data, _HEAD.size)
    hash = (rest.take(_KEY_BYTES), head.hash_types) if head.hashed else None
    rest.take(_MULTICAST_BYTES * head.multicasts)
    for _ in range(head.backlog):
        rest.frame()
    items: list[Item] = []
    slots, req_prod, rsp_event = b"", None, None
    while not items or items[-1].kind != "end":
        item, taken = _item(rest, _SLOT_BYTES[ring])
        if item.kind == "slots":
            slots = taken
        if item.kind == "index" and items and items[-1].kind == "responses":
            rsp_event = item.a
        elif item.kind == "index":
            req_prod = item.a
        items.append(item)
    if rest.at != len(data):
        raise ValueError("bytes follow its last item")
    return Poll(
        data, ring, head.state, head.events, head.time, head.rsp_prod, head.backlog, hash, slots, req_prod, rsp_event,
        tuple(items),
    )  # fmt: skip


def _item(rest: "_Rest", slot: int) -> tuple[Item, bytes]:
    """The next item, and its slots if it has some."""
    kind, count, a, b, c = rest.unpack(_ITEM)
    if not 0 < kind < len(_KINDS):
        raise ValueError(f"there is no item of kind {kind}")
    name, taken = _KINDS[kind], b""
    copies, lengths, counters = [], [], []
    match name:
        case "slots" | "responses":
            taken = rest.take(count * slot)
        case "copies":
            for _ in range(count):
                copies.append(rest.unpack(_COPY))
                rest.take(copies[-1][-1])
        case "frames":
            with_bytes = count & _KEPT and a < _MINUS
            lengths = [rest.frame() for _ in range(a if with_bytes else 0)]
        case "end":
            counters = [rest.unpack(_COUNTER) for _ in range(count)]
    return Item(name, count, a, b, c, tuple(copies), tuple(lengths), tuple(counters)), taken


class _Rest:
    """The bytes of a poll from `at` on. ValueError: they end."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self.at = data, at

    def take(self, length: int) -> bytes:
        taken = self._data[self.at : self.at + length]
        if len(taken) < length:
            raise ValueError("its bytes end too early")
        self.at += length
        return taken

    def unpack(self, kind: struct.Struct) -> tuple[Any, ...]:
        return kind.unpack(self.take(kind.size))

    def frame(self) -> int:
        """The length of a frame that is there."""
        length, kept, _, _ = self.unpack(_FRAME)
        self.take(kept)
        return int(length)
