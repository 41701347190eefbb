# SPDX-License-Identifier: Apache-2.0
"""A domain's memory: a sealed memfd, its grant table and its event page, and mappings of them.

Knows where things lie (pages [0, grant_pages) the v1 grant table, then the event page, then the domain's
own) and how two processes may touch them at once. It does not know who may ask for what: that is the
hypervisor's.
"""

import fcntl
import mmap
import os
from dataclasses import dataclass
from typing import Self

from netback.abi.grant_table import ENTRY, TYPE_MASK, GrantFlag, GrantStatus
from netback.dataplane.shared_words import SharedWords
from netback.errors import PlatformError
from netback.platforms.emulated.protocol import MAX_PORTS, PAGE_SIZE

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_MASK_OFFSET = MAX_PORTS // 8
_GENERATION_OFFSET = 2 * _MASK_OFFSET
_PINNED = GrantFlag.READING | GrantFlag.WRITING

GRANTS_PER_PAGE = PAGE_SIZE // ENTRY.size


class GrantRefused(PlatformError):
    """The grant table says no; `status` is what Xen's hypercall would give."""

    def __init__(self, status: GrantStatus, what: str) -> None:
        super().__init__(f"{what}: GNTST_{status.name.lower()}", "EINVAL")
        self.status = status


def create_memfd(name: str, pages: int) -> int:
    """A new memory whose size can never change, which is what makes it safe for others to map."""
    fd = os.memfd_create(f"netback-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, pages * PAGE_SIZE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


def sealed_pages(fd: int) -> int:
    """The size of another process's memfd, in pages.

    PlatformError where mapping it could kill us by SIGBUS (rules 3).
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise PlatformError("the memory is not a memfd", "EINVAL") from error
    if seals & _SEALS != _SEALS:
        raise PlatformError("the memory is not sealed against a change of size", "EPERM")
    # Huge pages are another file system's: a hole punched there may find no page to fill it, which is a
    # SIGBUS too.
    if os.fstatvfs(fd).f_bsize != PAGE_SIZE:
        raise PlatformError("the memory is not of ordinary pages", "EINVAL")
    size = os.fstat(fd).st_size
    if size % PAGE_SIZE:
        raise PlatformError("the memory's size is not a multiple of a page", "EINVAL")
    return size // PAGE_SIZE


class Mapping:
    """Pages of a memfd, mapped to be read and written until `close`."""

    def __init__(self, fd: int, first: int, pages: int) -> None:
        self._map = mmap.mmap(fd, pages * PAGE_SIZE, offset=first * PAGE_SIZE)
        self.words = SharedWords(self._map)
        self.address = self.words.address

    def view(self, page: int) -> memoryview:
        """A page's bytes."""
        return memoryview(self._map)[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]

    def close(self) -> None:
        """Unmap, unless a view is still held: then the last view's end unmaps. May be called again."""
        self.words.release()
        try:
            self._map.close()
        except BufferError:
            return


@dataclass(frozen=True, slots=True)
class EventPage:
    """Pending and mask bits and the generation, at `offset` of mapped words."""

    words: SharedWords
    offset: int

    def set_pending(self, port: int) -> None:
        """Make a port pending; its owner is to be woken."""
        self.words.set64(*self._bit(port))

    def clear(self, port: int) -> None:
        """A port that begins anew: neither pending nor masked."""
        word, bit = self._bit(port)
        self.words.clear64(word, bit)
        self.words.clear64(word + _MASK_OFFSET, bit)

    def bump(self) -> None:
        """Tell the owner that the far side of one of its ports changed."""
        self.words.add32(self.offset + _GENERATION_OFFSET, 1)

    def _bit(self, port: int) -> tuple[int, int]:
        return self.offset + port // 64 * 8, 1 << port % 64


@dataclass(frozen=True, slots=True)
class GrantTable:
    """Version 1 entries at the start of mapped words.

    An entry changes by one atomic store, so nobody sees half of it.
    """

    words: SharedWords
    entries: int

    @classmethod
    def of(cls, words: SharedWords, grant_pages: int) -> Self:
        return cls(words, grant_pages * GRANTS_PER_PAGE)

    def set(self, gref: int, domid: int, frame: int, readonly: bool) -> None:
        """Let a domain use a frame."""
        flags = GrantFlag.PERMIT_ACCESS | (GrantFlag.READONLY if readonly else 0)
        self.words.store64(gref * ENTRY.size, int.from_bytes(ENTRY.pack(flags, domid, frame), "little"))

    def pinned(self, gref: int) -> bool:
        """Whether somebody has the grant mapped."""
        return bool(self.words.load64(gref * ENTRY.size) & _PINNED)

    def clear(self, gref: int) -> bool:
        """Revoke; False, and nothing done, while somebody has it mapped."""
        while not (entry := self.words.load64(gref * ENTRY.size)) & _PINNED:
            if self.words.exchange64(gref * ENTRY.size, entry, 0):
                return True
        return False

    def wipe(self) -> None:
        """Revoke all, mapped or not: the domain is gone."""
        for gref in range(self.entries):
            self.words.store64(gref * ENTRY.size, 0)

    def pin(self, gref: int, domid: int, readonly: bool) -> int:
        """Mark the grant as in use by `domid` and give its frame; GrantRefused as Xen's mapping is."""
        if gref >= self.entries:
            raise GrantRefused(GrantStatus.BAD_GNTREF, f"gref {gref}")
        pins = GrantFlag.READING if readonly else _PINNED
        while True:
            entry = self.words.load64(gref * ENTRY.size)
            frame = self._permitted(gref, entry, domid, readonly)
            if self.words.exchange64(gref * ENTRY.size, entry, entry | pins):
                return frame

    def unpin(self, gref: int, pins: GrantFlag) -> None:
        """Undo marks of `pin`."""
        self.words.clear64(gref * ENTRY.size, pins)

    @staticmethod
    def _permitted(gref: int, entry: int, domid: int, readonly: bool) -> int:
        flags, owner, frame = ENTRY.unpack(entry.to_bytes(ENTRY.size, "little"))
        if flags & TYPE_MASK != GrantFlag.PERMIT_ACCESS or owner != domid:
            raise GrantRefused(GrantStatus.GENERAL_ERROR, f"gref {gref} is not granted to domain {domid}")
        if flags & GrantFlag.READONLY and not readonly:
            raise GrantRefused(GrantStatus.GENERAL_ERROR, f"gref {gref} is read-only")
        return int(frame)
