# SPDX-License-Identifier: Apache-2.0
"""Files for the results of long work: each is opened before the work, so that a path that cannot be written costs no
result, and filled at its end. Without a result, nothing is made or changed.
"""

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from netback.errors import ConfigError

Write = Callable[[bytes], None]
"""Fills the file, once. ConfigError: it cannot be written."""


@contextmanager
def private_output(path: Path, option: str) -> Iterator[Write]:
    """A file for its owner alone (mode 0600), in place of an older one, which stays as it is until the new one is
    complete. No link is followed. ConfigError names `option` and the path: the file cannot be made, or what is there
    is no regular file.
    """
    with _explained(path, option):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise ConfigError(
                f"{option} {path}: is no regular file, and is not replaced; choose another name"
            )
        fd, name = tempfile.mkstemp(prefix=".netback-", dir=path.parent)
    beside = Path(name)

    def write(data: bytes) -> None:
        with _explained(path, option):
            write_all(fd, data)
            beside.replace(path)

    try:
        yield write
    finally:
        os.close(fd)
        beside.unlink(missing_ok=True)


@contextmanager
def public_output(path: Path, option: str) -> Iterator[Write]:
    """A file as a shell's redirection opens it: with the mode of the umask; links, pipes and /dev/stdout will do."""
    with _explained(path, option):
        fd, made = _open(path)

    def write(data: bytes) -> None:
        nonlocal made
        made = False
        with _explained(path, option):
            if stat.S_ISREG(os.fstat(fd).st_mode):
                os.ftruncate(fd, 0)
            write_all(fd, data)

    try:
        yield write
    finally:
        os.close(fd)
        if made:
            path.unlink(missing_ok=True)


def _open(path: Path) -> tuple[int, bool]:
    """A descriptor, and whether the file is new."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_EXCL, 0o666), True
    except FileExistsError:
        return os.open(path, flags, 0o666), False


def write_all(fd: int, data: bytes) -> None:
    """Write all of it. OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


@contextmanager
def _explained(path: Path, option: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be written: {error.strerror}") from error
