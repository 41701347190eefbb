# SPDX-License-Identifier: Apache-2.0
"""A domain's memory: a sealed memfd, its grant table and its event page, and mappings of them.

This module defines the layout (pages [0, grant_pages) are the v1 grant table, then the event page, then the domain's
own) and how two processes access it concurrently. The hypervisor decides which domain may ask for what.
"""

import errno
import fcntl
import mmap
import os
from dataclasses import dataclass
from typing import Self

from netback.abi.grant_table import ENTRY, TYPE_MASK, GrantFlag, GrantStatus
from netback.dataplane.shared_words import SharedWords
from netback.errors import PlatformError
from netback.platforms.emulated.protocol import MAX_PAGES, MAX_PORTS, PAGE_SIZE

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_MASK_OFFSET = MAX_PORTS // 8
_GENERATION_OFFSET = 2 * _MASK_OFFSET
_PINNED = GrantFlag.READING | GrantFlag.WRITING

GRANTS_PER_PAGE = PAGE_SIZE // ENTRY.size

_PIN_TRIES = 5
"""Attempts to pin an entry that its owner keeps changing; Xen also gives up then ("shared grant entry is unstable")."""


class GrantRefused(PlatformError):
    """The grant table does not permit it; `status` is the GNTST_* that Xen's hypercall gives."""

    def __init__(self, status: GrantStatus, what: str) -> None:
        super().__init__(f"{what}: GNTST_{status.name.lower()}", "EINVAL")
        self.status = status


def create_memfd(name: str, pages: int) -> int:
    """A new memory of `pages` pages, sealed against a change of size so that others can map it.

    PlatformError EFBIG: more than MAX_PAGES.
    """
    _check_pages(pages)
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

    PlatformError: it is not sealed, not a multiple of a page, of huge pages (EPERM, EINVAL), or larger than MAX_PAGES
    (EFBIG). docs/decisions.md, Mapped memory of other processes.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise PlatformError("the memory is not a memfd", "EINVAL") from error
    if seals & _SEALS != _SEALS:
        raise PlatformError("the memory is not sealed against a change of size", "EPERM")
    # Huge pages are in another file system, where filling a punched hole may fail, which also raises SIGBUS.
    if os.fstatvfs(fd).f_bsize != PAGE_SIZE:
        raise PlatformError("the memory is not of ordinary pages", "EINVAL")
    size = os.fstat(fd).st_size
    if size % PAGE_SIZE:
        raise PlatformError("the memory's size is not a multiple of a page", "EINVAL")
    _check_pages(size // PAGE_SIZE)
    return size // PAGE_SIZE


def _check_pages(pages: int) -> None:
    if pages > MAX_PAGES:
        raise PlatformError(f"a memory of {pages} pages, {MAX_PAGES} at most", "EFBIG")


class Mapping:
    """Pages of a memfd, mapped for reading and writing until `close`. PlatformError: the kernel refuses."""

    def __init__(self, fd: int, first: int, pages: int) -> None:
        try:
            self._map = mmap.mmap(fd, pages * PAGE_SIZE, offset=first * PAGE_SIZE)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "ENOMEM")
            raise PlatformError(f"cannot map {pages} pages of a memory: {error.strerror}", name) from error
        self.words = SharedWords(self._map)
        self.address = self.words.address

    def view(self, page: int) -> memoryview:
        """A page's bytes."""
        return memoryview(self._map)[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]

    def close(self) -> None:
        """Unmap, unless a view still exists: then the last view's end unmaps. May be called again."""
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
        """Make a port pending; the caller wakes its owner."""
        self.words.set64(*self._bit(port))

    def clear(self, port: int) -> None:
        """Reset a new port: neither pending nor masked."""
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

    An entry changes by one atomic store, so a reader never sees half of it.
    """

    words: SharedWords
    entries: int

    @classmethod
    def of(cls, words: SharedWords, grant_pages: int) -> Self:
        return cls(words, grant_pages * GRANTS_PER_PAGE)

    def set(self, gref: int, domid: int, frame: int, readonly: bool) -> None:
        """Grant a frame to a domain."""
        flags = GrantFlag.PERMIT_ACCESS | (GrantFlag.READONLY if readonly else 0)
        self.words.store64(gref * ENTRY.size, int.from_bytes(ENTRY.pack(flags, domid, frame), "little"))

    def pinned(self, gref: int) -> bool:
        """Whether the grant is mapped."""
        return bool(self.words.load64(gref * ENTRY.size) & _PINNED)

    def clear(self, gref: int) -> bool:
        """Revoke; returns False, without effect, while it is mapped."""
        while not (entry := self.words.load64(gref * ENTRY.size)) & _PINNED:
            if self.words.exchange64(gref * ENTRY.size, entry, 0):
                return True
        return False

    def wipe(self) -> None:
        """Revoke every grant, mapped or not: the domain is gone."""
        for gref in range(self.entries):
            self.words.store64(gref * ENTRY.size, 0)

    def pin(self, gref: int, domid: int, readonly: bool) -> int:
        """Mark the grant as in use by `domid`; returns its frame.

        GrantRefused as for Xen's mapping: BAD_GNTREF beyond the table, else GENERAL_ERROR, which also covers an entry
        that changes at each of a few attempts.
        """
        if gref >= self.entries:
            raise GrantRefused(GrantStatus.BAD_GNTREF, f"gref {gref}")
        pins = GrantFlag.READING if readonly else _PINNED
        for _ in range(_PIN_TRIES):
            entry = self.words.load64(gref * ENTRY.size)
            frame = self._permitted(gref, entry, domid, readonly)
            if self.words.exchange64(gref * ENTRY.size, entry, entry | pins):
                return frame
        raise GrantRefused(GrantStatus.GENERAL_ERROR, f"gref {gref} keeps changing")

    def unpin(self, gref: int, pins: GrantFlag) -> None:
        """Undo the marks of `pin`."""
        self.words.clear64(gref * ENTRY.size, pins)

    @staticmethod
    def _permitted(gref: int, entry: int, domid: int, readonly: bool) -> int:
        flags, owner, frame = ENTRY.unpack(entry.to_bytes(ENTRY.size, "little"))
        if flags & TYPE_MASK != GrantFlag.PERMIT_ACCESS or owner != domid:
            raise GrantRefused(GrantStatus.GENERAL_ERROR, f"gref {gref} is not granted to domain {domid}")
        if flags & GrantFlag.READONLY and not readonly:
            raise GrantRefused(GrantStatus.GENERAL_ERROR, f"gref {gref} is read-only")
        return int(frame)
