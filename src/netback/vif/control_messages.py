# SPDX-License-Identifier: Apache-2.0
"""The messages of a control ring: what a guest may set, and the one answer to each request (netif.h, Control messages).

Pure functions from a state and a request to an answer and the next state. A request is a guest's bytes: whatever it
says, it gets one status and changes nothing unless that is SUCCESS. What it names in a page is copied once and checked
in the copy (XSA-155); sums of its numbers cannot wrap (XSA-270).
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from netback.abi.netif_control import (
    CTRL_REQUEST,
    CTRL_RESPONSE,
    GREF_ENTRY,
    GREF_READONLY,
    MAPPING_ENTRY,
    MAX_GREFS,
    CtrlStatus,
    CtrlType,
    HashType,
)
from netback.abi.netif_control import HashAlgorithm as Algorithm

MAX_KEY = 40
"""Octets of a Toeplitz key: enough for the longest input, two IPv6 addresses and two ports."""
MAX_MAPPING = 128
"""Entries of the mapping from hash to queue, as in Linux's backend."""

MAX_STAGED = MAX_GREFS
"""Pages of a queue that stay mapped: as many as both rings have buffers."""

Read = Callable[[int, int], bytes | None]
"""(gref, bytes): a copy of the beginning of a granted page, or None if the guest did not grant it."""
Write = Callable[[int, bytes], bool]
"""(gref, data): write the beginning of a granted page; False if the guest did not grant it so."""

_NO_TYPES = HashType(0)
_ALL_TYPES = HashType.IPV4 | HashType.IPV4_TCP | HashType.IPV6 | HashType.IPV6_TCP
_STATE = struct.Struct(f"<BBBB{MAX_KEY}s{MAX_MAPPING}HI")
_STAGED = struct.Struct("<IHH")
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Request:
    """A control request. `type` may be any number."""

    id: int
    type: int
    data: tuple[int, int, int] = (0, 0, 0)

    @classmethod
    def decode(cls, slot: bytes) -> Self:
        """From the 16 bytes of a slot."""
        ident, kind, *data = CTRL_REQUEST.unpack(slot)
        return cls(ident, kind, (data[0], data[1], data[2]))


@dataclass(frozen=True, slots=True)
class Answer:
    """A response's status and data."""

    status: CtrlStatus
    data: int = 0

    def encode(self, request: Request) -> bytes:
        """The 16 bytes of a slot; id and type are the request's."""
        return CTRL_RESPONSE.pack(request.id, request.type, self.status, self.data)


class StagedPage(NamedTuple):
    """A page that stays mapped for a queue; `readonly` as the guest said: the backend never writes to it."""

    queue: int
    gref: int
    readonly: bool


@dataclass(frozen=True, slots=True)
class ControlState:
    """What the guest set: it never sends it again, so it outlives the process."""

    algorithm: Algorithm = Algorithm.NONE
    types: HashType = _NO_TYPES
    """The frames that are hashed, if there is an algorithm."""
    key: bytes = bytes(MAX_KEY)
    mapping: tuple[int, ...] = ()
    """The queue of each hash modulo its length; empty: the hash modulo the number of queues."""
    staged: tuple[StagedPage, ...] = ()
    """Each gref at most once, at most MAX_STAGED of a queue."""

    @property
    def active(self) -> bool:
        """Whether any frame is hashed."""
        return self.algorithm is not Algorithm.NONE and bool(self.types)

    def encode(self, queues: int) -> bytes:
        """The state as `state_bytes(queues)` bytes."""
        mapping = self.mapping + (0,) * (MAX_MAPPING - len(self.mapping))
        head = _STATE.pack(
            _VERSION, self.algorithm, self.types, len(self.mapping), self.key, *mapping, len(self.staged)
        )
        pages = b"".join(_STAGED.pack(page.gref, page.queue, page.readonly) for page in self.staged)
        return (head + pages).ljust(state_bytes(queues), b"\0")

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """From the bytes of an earlier process; without any, or from those of another version, the initial state."""
        if len(data) < _STATE.size or data[0] != _VERSION:
            return cls()
        _, algorithm, types, size, key, *mapping, pages = _STATE.unpack_from(data)
        entries = _STAGED.iter_unpack(data[_STATE.size : _STATE.size + pages * _STAGED.size])
        staged = tuple(StagedPage(queue, gref, bool(readonly)) for gref, queue, readonly in entries)
        return cls(Algorithm(algorithm), HashType(types), key, tuple(mapping[:size]), staged)


def state_bytes(queues: int) -> int:
    """Bytes of the state of a vif with so many queues."""
    return _STATE.size + queues * MAX_STAGED * _STAGED.size


@dataclass(frozen=True, slots=True)
class Scope:
    """What a message is checked against: the number of queues, and the guest's pages."""

    queues: int
    read: Read
    write: Write


Outcome = tuple[Answer, ControlState]
_Handler = Callable[[ControlState, tuple[int, int, int], Scope], Outcome]

_INVALID = Answer(CtrlStatus.INVALID_PARAMETER)
_OVERFLOW = Answer(CtrlStatus.BUFFER_OVERFLOW)
_NOT_SUPPORTED = Answer(CtrlStatus.NOT_SUPPORTED)
_SUCCESS = Answer(CtrlStatus.SUCCESS)


def handle(state: ControlState, request: Request, scope: Scope) -> Outcome:
    """The answer to a request, and the state after it. A type that netif.h does not define is NOT_SUPPORTED."""
    handler = _HANDLERS.get(request.type)
    return handler(state, request.data, scope) if handler else (_NOT_SUPPORTED, state)


def _set_algorithm(state: ControlState, data: tuple[int, int, int], scope: Scope) -> Outcome:
    if data[0] not in (Algorithm.NONE, Algorithm.TOEPLITZ):
        return _INVALID, state
    return _SUCCESS, replace(state, algorithm=Algorithm(data[0]))


def _get_flags(state: ControlState, data: tuple[int, int, int], scope: Scope) -> Outcome:
    """The types depend on the algorithm, so one must be selected (netif.h)."""
    if state.algorithm is Algorithm.NONE:
        return _NOT_SUPPORTED, state
    return Answer(CtrlStatus.SUCCESS, _ALL_TYPES), state


def _set_flags(state: ControlState, data: tuple[int, int, int], scope: Scope) -> Outcome:
    if state.algorithm is Algorithm.NONE or data[0] & ~int(_ALL_TYPES):
        return _INVALID, state
    return _SUCCESS, replace(state, types=HashType(data[0]))


def _set_key(state: ControlState, data: tuple[int, int, int], scope: Scope) -> Outcome:
    """A key of no octets clears it, and its page is not read."""
    gref, size, _ = data
    if size > MAX_KEY:
        return _OVERFLOW, state
    key = scope.read(gref, size) if size else b""
    if key is None:
        return _INVALID, state
    return _SUCCESS, replace(state, key=key.ljust(MAX_KEY, b"\0"))


def _get_mapping_size(state: ControlState, data: tuple[int, int, int], scope: Scope) -> Outcome:
    return Answer(CtrlStatus.SUCCESS, MAX_MAPPING), state


def _set_mapping_size(state: ControlState, data: tuple[int, int, int], scope: Scope) -> Outcome:
    """The new mapping is all zeros (netif.h)."""
    if data[0] > MAX_MAPPING:
        return _INVALID, state
    return _SUCCESS, replace(state, mapping=(0,) * data[0])


def _set_mapping(state: ControlState, data: tuple[int, int, int], scope: Scope) -> Outcome:
    """Replace part of the mapping, or nothing if any entry names no queue."""
    gref, size, offset = data
    if size > MAX_MAPPING:
        return _OVERFLOW, state
    if offset + size > len(state.mapping):
        return _INVALID, state
    page = scope.read(gref, size * MAPPING_ENTRY.size) if size else b""
    if page is None:
        return _INVALID, state
    part = tuple(entry for (entry,) in MAPPING_ENTRY.iter_unpack(page))
    if any(entry >= scope.queues for entry in part):
        return _INVALID, state
    return _SUCCESS, replace(state, mapping=state.mapping[:offset] + part + state.mapping[offset + size :])


def _get_gref_size(state: ControlState, data: tuple[int, int, int], scope: Scope) -> Outcome:
    if data[0] >= scope.queues:
        return _INVALID, state
    return Answer(CtrlStatus.SUCCESS, MAX_STAGED), state


def _read_list(data: tuple[int, int, int], scope: Scope) -> list[tuple[int, int]] | None:
    """The (gref, flags) of a list's entries; None if the queue, the size or the page is wrong."""
    queue, gref, size = data
    if queue >= scope.queues or size > MAX_GREFS:
        return None
    page = scope.read(gref, size * GREF_ENTRY.size) if size else b""
    return None if page is None else [(ref, flags) for ref, flags, _ in GREF_ENTRY.iter_unpack(page)]


def _add_grefs(state: ControlState, data: tuple[int, int, int], scope: Scope) -> Outcome:
    """Stage all entries or none: a gref is staged once, for one queue."""
    entries = _read_list(data, scope)
    if entries is None or any(flags & ~GREF_READONLY for _, flags in entries):
        return _INVALID, state
    added = tuple(StagedPage(data[0], gref, bool(flags)) for gref, flags in entries)
    new, known = {page.gref for page in added}, {page.gref for page in state.staged}
    free = MAX_STAGED - sum(page.queue == data[0] for page in state.staged)
    if len(new) < len(added) or new & known or len(added) > free:
        return _INVALID, state
    return _SUCCESS, replace(state, staged=state.staged + added)


def _del_grefs(state: ControlState, data: tuple[int, int, int], scope: Scope) -> Outcome:
    """Each entry gets a status: it was staged for this queue and is no more, or INVALID_PARAMETER."""
    entries = _read_list(data, scope)
    if entries is None:
        return _INVALID, state
    known = {page.gref for page in state.staged if page.queue == data[0]}
    removed: set[int] = set()
    answered = []
    for gref, flags in entries:
        good = gref in known and gref not in removed
        removed |= {gref} if good else set()
        answered.append(
            GREF_ENTRY.pack(gref, flags, CtrlStatus.SUCCESS if good else CtrlStatus.INVALID_PARAMETER)
        )
    if answered and not scope.write(data[1], b"".join(answered)):
        return _INVALID, state
    staged = tuple(page for page in state.staged if page.queue != data[0] or page.gref not in removed)
    return Answer(CtrlStatus.SUCCESS, len(removed)), replace(state, staged=staged)


_HANDLERS: Mapping[int, _Handler] = {
    CtrlType.SET_HASH_ALGORITHM: _set_algorithm,
    CtrlType.GET_HASH_FLAGS: _get_flags,
    CtrlType.SET_HASH_FLAGS: _set_flags,
    CtrlType.SET_HASH_KEY: _set_key,
    CtrlType.GET_HASH_MAPPING_SIZE: _get_mapping_size,
    CtrlType.SET_HASH_MAPPING_SIZE: _set_mapping_size,
    CtrlType.SET_HASH_MAPPING: _set_mapping,
    CtrlType.GET_GREF_MAPPING_SIZE: _get_gref_size,
    CtrlType.ADD_GREF_MAPPING: _add_grefs,
    CtrlType.DEL_GREF_MAPPING: _del_grefs,
}
