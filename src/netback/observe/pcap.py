# SPDX-License-Identifier: Apache-2.0
"""A capture that the backend itself keeps in a file, for the filter `pcap` of a device.

A thread takes the frames out of the capture's memory and writes them. Whatever the disk does, the workers go on: frames
that find no room are lost and counted. The file is bounded; older ones have a number appended.
"""

import errno
import fcntl
import logging
import mmap
import os
import re
import select
import stat
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from netback.dataplane.capture_reader import CaptureReader
from netback.errors import ConfigError, printable
from netback.observe.captures import Capture
from netback.observe.choice import MAX_FRAME
from netback.observe.pcapng import BYTE_ORDER_MAGIC, HEAD, TAIL, Block, Section
from netback.observe.trace import LogBudget

log = logging.getLogger("netback.pcap")

MIN_SIZE = 2 << 20
"""Bytes of a file, at least: what is read from the memory at once must fit."""
MAX_SIZE = 1 << 40
MAX_FILES = 100
RING_BYTES = 4 << 20
"""Bytes of the capture's rings together."""
RETRY_SECONDS = 5.0
"""Seconds until a file that could not be written is tried again."""
END_SECONDS = 3.0
"""Seconds that the end of a capture may take: a disk that does not answer is left to its thread."""
_REST_MS = 5
"""Milliseconds between two looks while frames flow."""
_SIZE = re.compile(r"([0-9]{1,13})([kMG]?)")
_UNITS = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_BEGIN = struct.Struct("<III")
"""A section's type, length and byte order."""


@dataclass(frozen=True, slots=True)
class PcapSpec:
    """Where a device's frames are kept, and how many."""

    path: Path
    snaplen: int = MAX_FRAME
    """Bytes of each frame."""
    size: int = 64 << 20
    """Bytes of a file, at most; the next one begins then."""
    files: int = 2
    """Files in all: FILE, FILE.1 from before it, and so on."""

    def __str__(self) -> str:
        return f"{self.path},snaplen={self.snaplen},size={self.size},files={self.files}"


def parse_pcap(text: str) -> PcapSpec:
    """`FILE[,snaplen=BYTES][,size=BYTES][,files=NUMBER]`, BYTES as in 64M. ConfigError names what is wrong."""
    name, *words = text.split(",")
    if not name.startswith("/") or "\0" in name or name.endswith("/"):
        raise ConfigError(f"pcap {printable(name)!r}: give a file by its absolute path")
    found: dict[str, int] = {}
    bounds = {"snaplen": (0, MAX_FRAME), "size": (MIN_SIZE, MAX_SIZE), "files": (1, MAX_FILES)}
    for word in words:
        key, _, value = word.partition("=")
        number = _SIZE.fullmatch(value)
        if key not in bounds or key in found:
            raise ConfigError(f"pcap: {printable(word)!r} is none of snaplen=, size= and files=, each once")
        least, most = bounds[key]
        amount = int(number[1]) * _UNITS[number[2]] if number else -1
        if not least <= amount <= most:
            raise ConfigError(f"pcap: {key} is {least} to {most}, not {printable(value)!r}")
        found[key] = amount
    return PcapSpec(Path(name), **found)


@dataclass(frozen=True, slots=True)
class PcapState:
    """How a kept capture does."""

    file: str
    """Its path, or what the device names instead."""
    frames: int
    """Frames that were written since it began."""
    lost: int
    """Frames that were not."""
    error: str
    """Why nothing is written at present; empty while all is well."""


class PcapFile:
    """Keeps the frames of one capture, from its creation to `stop`, in a thread of its own."""

    def __init__(self, name: str, spec: PcapSpec, capture: Capture) -> None:
        """`name` is the device's, for the log."""
        self._name, self.spec = name, spec
        self._capture = capture
        self._reader = CaptureReader(capture.memory.fd)
        self._section = Section(self._reader, capture.choice.direction, spec.snaplen)
        self._file: _File | None = None
        self._error = ""
        self._unwritten = 0
        self._budget = LogBudget()
        self._stopping = threading.Event()
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name=f"netback-pcap-{name}", daemon=True)
        self._thread.start()

    @property
    def state(self) -> PcapState:
        """How it does now."""
        lost = sum(self._section.lost.values())
        written = self._section.frames - self._unwritten
        return PcapState(str(self.spec.path), written, lost + self._unwritten, self._error)

    def stop(self) -> None:
        """Write what there is, then end. Returns at once; `join` waits."""
        self._stopping.set()
        with suppress(OSError):
            os.write(self._waker, b"\0")

    def join(self) -> None:
        """Wait for the end, END_SECONDS at most."""
        self._thread.join(END_SECONDS)

    # ---- the thread

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._rest(self._step())
            while self._step() and not self._error:
                pass
            if self._file is not None:
                self._keep(lambda file: file.end(self._section))
        except Exception:  # a bug here must not pass unseen
            self._budget.warn(log, f"{self._name}: pcap {self.spec.path}: unexpected", exc_info=True)
            self._error = "unexpected: see the log"
        finally:
            if self._file is not None:
                self._file.close()
            os.close(self._wake)
            os.close(self._waker)

    def _step(self) -> bool:
        """Take what is there to the file; False: there was nothing, or it cannot be written."""
        if self._file is None:
            try:
                self._file = _File(self.spec)
                self._file.write(self._section.begin())
            except OSError as error:
                self._fail(error)
                return False
            self._error = ""
        before = self._section.frames
        blocks = self._section.read()
        if not blocks:
            return False
        frames = self._section.frames - before
        if not self._keep(lambda file: file.add(blocks, self._section)):
            self._unwritten += frames
            return False
        return True

    def _keep(self, write: Callable[["_File"], None]) -> bool:
        assert self._file is not None
        try:
            write(self._file)
        except OSError as error:
            self._fail(error)
            return False
        return True

    def _fail(self, error: OSError) -> None:
        """Give the file up until later. Its error is told once, until it was writable again."""
        reason = error.strerror or str(error)
        reason += f" ({errno.errorcode[error.errno]})" if error.errno else ""
        if reason != self._error:
            self._error = reason
            self._budget.warn(
                log, f"{self._name}: pcap {printable(str(self.spec.path))}: {reason}; its frames are lost"
            )
        if self._file is not None:
            self._file.close()
            self._file = None

    def _rest(self, busy: bool) -> None:
        """Wait for frames or for `stop`, or until the file is tried again."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        wait: float | None = _REST_MS if busy else None
        if self._error:
            wait = 1000 * RETRY_SECONDS
        elif not busy:
            if not self._reader.sleep():
                return
            poll.register(self._capture.memory.pipe, select.POLLIN)
        poll.poll(wait)
        with suppress(BlockingIOError):
            os.read(self._capture.memory.pipe, 4096)


class _File:
    """The current file, and those before it. Its descriptor is locked: two captures in one file would mix."""

    def __init__(self, spec: PcapSpec) -> None:
        """Go on after the last whole block of an existing file. OSError: it cannot be, or is no capture."""
        self._spec = spec
        self._fd = _open(spec.path)
        try:
            self._size = _repair(self._fd)
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        os.close(self._fd)

    def add(self, blocks: bytes, section: Section) -> None:
        """Write blocks of a section, to the next file if they do not fit into this one."""
        if self._size + len(blocks) > self._spec.size:
            self.end(section)
            self._next()
            self.write(section.begin())
        self.write(blocks)

    def end(self, section: Section) -> None:
        """End a section."""
        self.write(section.end())

    def write(self, blocks: bytes) -> None:
        """Write all of it or nothing."""
        view = memoryview(blocks)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise
        self._size += len(blocks)

    def _next(self) -> None:
        path, last = self._spec.path, self._spec.files - 1
        names = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, last + 1))]
        names[-1].unlink(missing_ok=True)
        for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
            with suppress(FileNotFoundError):
                newer.rename(older)
        fresh = _open(path)
        os.close(self._fd)
        self._fd, self._size = fresh, _repair(fresh)


def check_file(path: Path) -> None:
    """OSError: captures cannot be kept in this file."""
    os.close(_open(path, lock=False))


def _open(path: Path, *, lock: bool = True) -> int:
    """The file, made with mode 0600 if it is missing: a regular file of this user's, under one name."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        if found.st_uid != os.geteuid() or found.st_nlink != 1:
            raise OSError(errno.EPERM, "the file is another user's, or has another name, too")
        if found.st_size and not _is_capture(fd):
            raise OSError(errno.EEXIST, "the file exists and is no pcapng capture")
        if lock:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OSError(errno.EBUSY, "another capture writes to it; choose another file") from error
        os.fchmod(fd, 0o600)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_capture(fd: int) -> bool:
    begin = os.pread(fd, _BEGIN.size, 0)
    if len(begin) < _BEGIN.size:
        return False
    kind, _, order = _BEGIN.unpack(begin)
    return bool((kind, order) == (Block.SECTION_HEADER, BYTE_ORDER_MAGIC))


def _repair(fd: int) -> int:
    """Cut what a killed process left of a block; returns the size."""
    size = os.fstat(fd).st_size
    if not size:
        return 0
    at = 0
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as data:
        while at + HEAD.size <= size:
            _, length = HEAD.unpack_from(data, at)
            if length < HEAD.size + TAIL.size or length % 4 or at + length > size:
                break
            if TAIL.unpack_from(data, at + length - TAIL.size) != (length,):
                break
            at += length
    if at < size:
        os.ftruncate(fd, at)
    return at
