# SPDX-License-Identifier: Apache-2.0
"""The backend's end of a control ring as a plain Python model, from netif.h. It imports nothing of netback.

Where netif.h leaves the status open, docs/decisions.md, Control ring, settles it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

PAGE = 4096
SUCCESS, NOT_SUPPORTED, INVALID_PARAMETER, BUFFER_OVERFLOW = range(4)
(
    GET_HASH_FLAGS,
    SET_HASH_FLAGS,
    SET_HASH_KEY,
    GET_HASH_MAPPING_SIZE,
    SET_HASH_MAPPING_SIZE,
    SET_HASH_MAPPING,
    SET_HASH_ALGORITHM,
    GET_GREF_MAPPING_SIZE,
    ADD_GREF_MAPPING,
    DEL_GREF_MAPPING,
) = range(1, 11)
READONLY = 1
STAGED = 512
ENTRY = struct.Struct("<IHH")
NONE, TOEPLITZ = 0, 1
ALL_TYPES = 15
KEY, MAPPING = 40, 128


@dataclass(slots=True)
class Control:
    """A vif with `queues`; `pages` are what its guest grants, by gref. `answer` gives (status, data)."""

    queues: int
    pages: dict[int, bytes]
    algorithm: int = NONE
    types: int = 0
    key: bytearray = field(default_factory=lambda: bytearray(KEY))
    mapping: list[int] = field(default_factory=list)
    staged: dict[int, tuple[int, bool]] = field(default_factory=dict)
    """Queue and whether it is read-only, by gref."""

    def answer(self, kind: int, first: int, second: int, third: int) -> tuple[int, int]:
        if kind == SET_HASH_ALGORITHM and first <= TOEPLITZ:
            self.algorithm = first
            return SUCCESS, 0
        if kind == GET_HASH_FLAGS:
            return (SUCCESS, ALL_TYPES) if self.algorithm else (NOT_SUPPORTED, 0)
        if kind == SET_HASH_FLAGS and self.algorithm and first <= ALL_TYPES:
            self.types = first
            return SUCCESS, 0
        if kind == SET_HASH_KEY:
            return self.set_key(first, second)
        if kind == GET_HASH_MAPPING_SIZE:
            return SUCCESS, MAPPING
        if kind == SET_HASH_MAPPING_SIZE and first <= MAPPING:
            self.mapping = [0] * first
            return SUCCESS, 0
        if kind == SET_HASH_MAPPING:
            return self.set_mapping(first, second, third)
        if GET_GREF_MAPPING_SIZE <= kind <= DEL_GREF_MAPPING and first < self.queues:
            return self.stage(kind, first, second, third)
        return (INVALID_PARAMETER if GET_HASH_FLAGS <= kind <= DEL_GREF_MAPPING else NOT_SUPPORTED), 0

    def stage(self, kind: int, queue: int, gref: int, size: int) -> tuple[int, int]:
        if kind == GET_GREF_MAPPING_SIZE:
            return SUCCESS, STAGED
        if size > STAGED or (size and gref not in self.pages):
            return INVALID_PARAMETER, 0
        entries = [ENTRY.unpack_from(self.pages[gref], 8 * i) for i in range(size)]
        if kind == DEL_GREF_MAPPING:
            return SUCCESS, sum(self.unstage(queue, gref, i, entry) for i, entry in enumerate(entries))
        grefs = [entry[0] for entry in entries]
        free = STAGED - sum(place == queue for place, _ in self.staged.values())
        known = len(set(grefs)) < size or any(ref in self.staged for ref in grefs)
        if known or size > free or any(flags not in (0, READONLY) for _, flags, _ in entries):
            return INVALID_PARAMETER, 0
        self.staged |= {ref: (queue, bool(flags)) for ref, flags, _ in entries}
        return SUCCESS, 0

    def unstage(self, queue: int, page: int, at: int, entry: tuple[int, int, int]) -> bool:
        """One entry of DEL_GREF_MAPPING: its status goes into the page."""
        good = self.staged.get(entry[0], (None,))[0] == queue
        if good:
            del self.staged[entry[0]]
        changed = bytearray(self.pages[page])
        ENTRY.pack_into(changed, 8 * at, entry[0], entry[1], SUCCESS if good else INVALID_PARAMETER)
        self.pages[page] = bytes(changed)
        return good

    def set_key(self, gref: int, size: int) -> tuple[int, int]:
        if size > KEY:
            return BUFFER_OVERFLOW, 0
        if size and gref not in self.pages:
            return INVALID_PARAMETER, 0
        self.key = bytearray(KEY)
        self.key[:size] = self.pages[gref][:size] if size else b""
        return SUCCESS, 0

    def set_mapping(self, gref: int, size: int, offset: int) -> tuple[int, int]:
        if size > MAPPING:
            return BUFFER_OVERFLOW, 0
        if offset > len(self.mapping) - size or (size and gref not in self.pages):
            return INVALID_PARAMETER, 0
        part = struct.unpack_from(f"<{size}I", self.pages[gref]) if size else ()
        if any(queue >= self.queues for queue in part):
            return INVALID_PARAMETER, 0
        self.mapping[offset : offset + size] = part
        return SUCCESS, 0
