# SPDX-License-Identifier: Apache-2.0
"""The recorder of one vif, and the files that recordings of faults are saved in.

A recorder keeps a bounded number of the last polls of each queue, in memory of a fixed size, and the last changes of
the guest's keys and states. So a guest can neither make it grow nor fill a disk: files are few, small and not frequent.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, get_args

from netback.dataplane import clock
from netback.dataplane.flight import Flight
from netback.directory import Directory
from netback.errors import ConfigError, printable
from netback.observe.choice import RecordMode
from netback.observe.recording import ALL, Header, Note, QueueHeader, encode
from netback.output import write_all

MODES: Final[tuple[RecordMode, ...]] = get_args(RecordMode)
HEADERS = 128
"""Bytes of a frame that `on` keeps."""
MEMORY: Mapping[RecordMode, tuple[int, int]] = {"on": (1 << 18, HEADERS), "payload": (1 << 21, ALL)}
"""Bytes of each queue's recorder, and those that it keeps of a frame. A poll with all bytes takes more than 1 MiB."""
_NOTES = 256
_NOTE_LENGTH = 256


def parse_mode(text: str) -> RecordMode:
    """ConfigError: it is none."""
    mode = next((mode for mode in MODES if mode == text), None)
    if mode is None:
        raise ConfigError(f"record: {text[:40]!r} is none of {', '.join(MODES)}")
    return mode


class Recorder:
    """Records one vif; off at first. For the event loop's thread; each `Flight` is for its queue's worker."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.mode: RecordMode = "off"
        self._flights: dict[int, Flight] = {}
        self._notes: deque[Note] = deque(maxlen=_NOTES)
        self._known: dict[str, str | None] = {}
        self._fault_saved = False

    def change(self, mode: RecordMode) -> None:
        """Begin again, or end and release all memory. The caller has the queues watched then (`Vif.watch`)."""
        if mode != self.mode:
            self.mode = mode
            self.begin()
            self._notes.clear()
            self._known.clear()

    def begin(self) -> None:
        """Forget the polls: the guest has new rings."""
        self._flights.clear()
        self._fault_saved = False

    def claim_fault(self) -> bool:
        """Whether a fault of the guest is to be saved: the first one since `begin`, while it is on."""
        claimed = self.mode != "off" and not self._fault_saved
        self._fault_saved |= claimed
        return claimed

    def flight(self, queue: int) -> Flight | None:
        """What records a queue from now on; None while it is off."""
        if self.mode == "off":
            return None
        if queue not in self._flights:
            self._flights[queue] = Flight(*MEMORY[self.mode])
        return self._flights[queue]

    @property
    def flights(self) -> Sequence[Flight]:
        """Those of the connection's queues, in their order."""
        return [self._flights[number] for number in sorted(self._flights)]

    def note(self, template: str, *values: object) -> None:
        """Note what the guest did beside its rings."""
        if self.mode != "off":
            text = printable(template.format(*values))
            self._notes.append(Note(clock.now(), text[:_NOTE_LENGTH]))

    def note_keys(self, keys: Mapping[str, str | None]) -> None:
        """Note the keys of the guest that changed; None: absent."""
        if self.mode == "off":
            return
        for key, value in keys.items():
            if self._known.get(key) != value:
                self._known[key] = value
                self.note("the guest's {} is {}", key, "absent" if value is None else repr(value))

    def encode(self, polls: Sequence[Sequence[bytes]], reason: str | None = None) -> bytes:
        """A file's bytes, with the polls of each of `flights`. `reason`: how the guest broke the protocol."""
        header = Header(
            device=self._device,
            saved=time.time(),
            clock=clock.now(),
            reason=reason,
            snaplen=HEADERS if self.mode == "on" else ALL,
            notes=tuple(self._notes),
            queues=tuple(
                QueueHeader(len(own), flight.recorded, flight.lost)
                for own, flight in zip(polls, self.flights, strict=True)
            ),
        )
        return encode(header, polls)


MAX_OF_DEVICE = 4
"""Files of one device: the newest ones."""
MAX_FILES = 64
MAX_BYTES = 64 << 20
"""Bytes of all files."""
PAUSE = 10.0
"""Seconds between two files of one device."""
SUFFIX = ".recording"


class Recordings:
    """The directory of saved faults. Any thread may save."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._saved_at: dict[str, float] = {}
        self._lock = threading.Lock()
        self._newest = {_device_of(name): name for _, name, _ in self._files()}

    def save(self, device: str, data: bytes) -> str | None:
        """Save a recording with mode 0600, in place of the oldest ones; returns the file's path. None: the device's
        last one is too recent. OSError, ConfigError: it cannot be written.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._saved_at.get(device, -PAUSE) < PAUSE:
                return None
            self._saved_at = {name: at for name, at in self._saved_at.items() if now - at < PAUSE}
            self._saved_at[device] = now
            files = self._files()
            self._prune(files, device, len(data))
            name = f"{device}-{max((number for number, _, _ in files), default=0) + 1}{SUFFIX}"
            fd = self._directory.open_file(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                write_all(fd, data)
            except OSError:
                self._directory.unlink(name)
                raise
            finally:
                os.close(fd)
            self._newest[device] = name
            return str(self._directory.path / name)

    def newest(self, device: str) -> str | None:
        """The path of the device's last file, also of one from an earlier process; None if there is none any more."""
        name = self._newest.get(device)
        if name is None:
            return None
        try:
            os.stat(name, dir_fd=self._directory.fd, follow_symlinks=False)
        except OSError:
            return None
        return str(self._directory.path / name)

    def _files(self) -> list[tuple[int, str, int]]:
        """Number, name and size of each, the oldest first."""
        found = []
        for name in self._directory.names():
            number = name.removesuffix(SUFFIX).rpartition("-")[2]
            if name.endswith(SUFFIX) and number.isdecimal():
                with suppress(FileNotFoundError):
                    size = os.stat(name, dir_fd=self._directory.fd, follow_symlinks=False).st_size
                    found.append((int(number), name, size))
        return sorted(found)

    def _prune(self, files: list[tuple[int, str, int]], device: str, further: int) -> None:
        """Make room for one more."""
        own = [file for file in files if _device_of(file[1]) == device]
        gone = {name for _, name, _ in own[: max(0, len(own) + 1 - MAX_OF_DEVICE)]}
        left = [file for file in files if file[1] not in gone]
        while left and (len(left) >= MAX_FILES or sum(size for _, _, size in left) + further > MAX_BYTES):
            gone.add(left.pop(0)[1])
        for name in gone:
            self._directory.unlink(name)
            if self._newest.get(_device_of(name)) == name:
                del self._newest[_device_of(name)]


def _device_of(name: str) -> str:
    """The device that a file is of."""
    return name.rpartition("-")[0]


def write_new(path: Path, data: bytes) -> None:
    """Make a file with mode 0600. OSError: it exists, or cannot be written, and nothing is left of it then."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, data)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
