# SPDX-License-Identifier: Apache-2.0
"""A running capture as its client has it: frames come by memory that the backend's workers fill (docs/capture.md)."""

import os
import select
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from netback.control.connection import Connection, ControlError
from netback.dataplane.capture_reader import CaptureReader
from netback.errors import NetbackError
from netback.observe.choice import Direction
from netback.observe.pcapng import ALL, Section

_REST = 0.005
"""Seconds between two looks at the memory while frames flow: the workers need not wake this process."""
_CHUNK = 1 << 20
_LAST = 64
"""Readings of about a megabyte for what is in the memory at the end: more than it holds."""
_CLOSED = 0
"""Only what poll(2) always tells: nothing reads a pipe any more."""
_PAGES = 4096
"""Bytes that a pipe takes at once when poll(2) calls it writable, and many of those that wake."""
_RECORD = struct.Struct("<IIQIIIIHHHHHhHBB4sBBH")
"""frame_record_t of dataplane/capture.pxd."""
_HASHED = 1 << 4
"""1 << XEN_NETIF_EXTRA_TYPE_HASH."""


class Stopped(NetbackError):
    """The capture was asked to stop while its output took nothing: the last block may be cut."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame and how it crossed its ring."""

    device: str
    direction: Literal["tx", "rx"]
    """tx: the guest sent it."""
    queue: int
    time_ns: int
    """Nanoseconds since 1970; the frames of one burst share it."""
    data: bytes
    """Its first bytes, `snaplen` at most; none if its slots were answered ERROR."""
    length: int
    """Bytes of the whole frame."""
    index: int
    """The free-running index of its first slot."""
    slots: int
    """How many it took, those of extra infos included."""
    flags: int
    """NETTXF_* or NETRXF_* of the first slot."""
    gref: int
    offset: int
    """In the first slot's page."""
    status: int
    """NETIF_RSP_*: 0 for OKAY."""
    gso_type: int
    """XEN_NETIF_GSO_TYPE_*."""
    gso_size: int
    hash: bytes | None
    """The four bytes of its hash, if it came with one."""
    lost: int
    """Frames of its queue and direction that were lost right before it."""


class Capture:
    """Frames from now on, until it is closed. One reader at a time: iterate, or `write`.

    A ControlError of either: the backend ended, or ended the capture. Every frame from before comes first.
    """

    def __init__(self, connection: Connection, direction: Direction, snaplen: int) -> None:
        """The connection, with the descriptors of the topic's event, belongs to the capture. ControlError: they are not
        what a backend gives.
        """
        self._connection = connection
        self._ended: str | None = None
        try:
            memory, self._pipe = connection.descriptors
            self._reader = CaptureReader(memory)
        except (ValueError, OSError) as error:
            self.close()
            raise ControlError(f"{connection.path}: no capture: {error}") from error
        self._section = Section(self._reader, direction, snaplen)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the capture; may be called again."""
        self._connection.close()

    @property
    def frames(self) -> int:
        """Frames that were taken so far."""
        return self._section.frames

    @property
    def lost(self) -> dict[str, int]:
        """Frames that were lost so far, since this process or its output was too slow, by device and direction, as in
        "vif3.0 tx".
        """
        return self._section.lost

    def __iter__(self) -> Iterator[Frame]:
        while True:
            records = self._checked(self._reader.records)
            names = self._reader.devices()
            yield from _parse(records, names)
            if not records and self._ended is not None:
                raise ControlError(self._ended)
            self._rest(bool(records), None, {})

    def write(
        self, out: int, *, count: int | None = None, seconds: float | None = None, stop: int | None = None
    ) -> None:
        """Write a pcapng section to a descriptor until `count` frames were written, `seconds` passed, the descriptor
        `stop` has something to read, or nothing reads the pipe `out` any more. It then has each interface's counts.

        OSError: `out` cannot be written. Stopped: `stop` came while `out` took nothing. After a ControlError the
        section is whole, too.
        """
        limit = None if seconds is None else time.monotonic() + seconds
        stops = [] if stop is None else [stop]
        output = _Output(out, stops)
        try:
            output.write(self._section.begin())
            while self._go_on(output, count, limit):
                pass
            for _ in range(_LAST):  # what came before the end
                if not (blocks := self._take(count)):
                    break
                output.write(blocks)
            output.write(self._section.end())
        except BrokenPipeError:
            return
        finally:
            output.close()
        if self._ended is not None:
            raise ControlError(self._ended)

    def _go_on(self, output: "_Output", count: int | None, limit: float | None) -> bool:
        """One step of `write`; False: it has come to its end."""
        blocks = self._take(count)
        output.write(blocks)
        if (count is not None and self._section.frames >= count) or (not blocks and self._ended is not None):
            return False
        if limit is not None and time.monotonic() >= limit:
            return False
        return self._rest(
            bool(blocks), limit, {output.fd: _CLOSED, **dict.fromkeys(output.stops, select.POLLIN)}
        )

    def _take(self, count: int | None) -> bytes:
        left = ALL if count is None else count - self._section.frames
        return self._checked(lambda: self._section.read(left)) if left > 0 else b""

    def _checked(self, read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except ValueError as error:
            raise ControlError(f"{self._connection.path}: {error}") from error

    def _rest(self, busy: bool, limit: float | None, ends: dict[int, int]) -> bool:
        """Wait for frames, or a moment if there were some just now; False: one of the descriptors `ends` has one of its
        events of poll(2).
        """
        if self._ended is not None:
            return True  # take what is left
        asleep = not busy and self._reader.sleep()
        if not busy and not asleep:
            return True
        poll = select.poll()
        for fd, events in ends.items():
            poll.register(fd, events)
        poll.register(self._connection, select.POLLIN)
        if asleep:
            poll.register(self._pipe, select.POLLIN)
        wait = None if limit is None else max(0.0, limit - time.monotonic())
        wait = wait if asleep else min(_REST, _REST if wait is None else wait)
        ready = {fd for fd, _ in poll.poll(None if wait is None else 1000 * wait)}
        if self._pipe in ready:
            with suppress(BlockingIOError):
                os.read(self._pipe, _PAGES)
        if self._connection.fileno() in ready:
            self._hear()
        return not ready & ends.keys()

    def _hear(self) -> None:
        """The backend says that the capture ends, or ended itself."""
        try:
            self._connection.event(None)
        except ControlError as error:
            self._ended = str(error)


class _Output:
    """A descriptor that is written without waiting for its reader longer than until one of `stops` is readable. A pipe
    is opened a second time, so that not waiting is no property of the descriptor that others share.
    """

    def __init__(self, fd: int, stops: list[int]) -> None:
        self.fd, self.stops = fd, stops
        self._own = -1
        self._most = _CHUNK
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            try:
                self._own = self.fd = os.open(
                    f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
                )
            except OSError:
                self._most = _PAGES  # which does not wait after poll(2)
        self._waits = not stat.S_ISREG(os.fstat(fd).st_mode)

    def close(self) -> None:
        if self._own >= 0:
            os.close(self._own)

    def write(self, data: bytes) -> None:
        """Write all of it. BrokenPipeError, another OSError, or Stopped."""
        view = memoryview(data)
        while view:
            if self._waits:
                self._wait()
            with suppress(BlockingIOError):
                view = view[os.write(self.fd, view[: self._most]) :]

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        for stop in self.stops:
            poll.register(stop, select.POLLIN)
        if self.fd not in {fd for fd, _ in poll.poll()}:
            raise Stopped("the output took nothing, so its last block is cut")


def _parse(records: bytes, names: list[str]) -> Iterator[Frame]:
    at = 0
    while at < len(records):
        (size, captured, when, length, gref, index, lost, device, queue, flags, offset, slots, status, gso_size,
         gso_type, direction, hashed, _, extras, _) = _RECORD.unpack_from(records, at)  # fmt: skip
        begin = at + _RECORD.size
        yield Frame(
            names[device],
            "tx" if direction == 1 else "rx",
            queue,
            when,
            records[begin : begin + captured],
            length,
            index,
            slots,
            flags,
            gref,
            offset,
            status,
            gso_type,
            gso_size,
            hashed if extras & _HASHED else None,
            lost,
        )
        at += size
