# SPDX-License-Identifier: Apache-2.0
"""A directory that only this user can change, and netback's files in it: locks, sockets, small files.

Names are looked up from the directory's descriptor and no symbolic link is followed (openat(2), O_NOFOLLOW), so
renaming or replacing the directory later has no effect. docs/decisions.md, Runtime directory.
"""

import errno
import fcntl
import os
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from netback.errors import ConfigError

MAX_SOCKET_PATH = 107
"""Bytes of sun_path without its NUL (unix(7))."""

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS_CONNECT = stat.S_IWGRP | stat.S_IWOTH
"""connect(2) needs the right to write to the socket."""
_BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class Access:
    """Who may connect to a socket: the mode of its file, and its group."""

    mode: int = 0o600
    group: int | None = None
    """A group's number; None: the group that the process has."""

    @property
    def shared(self) -> bool:
        """Whether any other user may connect."""
        return bool(self.mode & _OTHERS_CONNECT)


OWNER_ONLY = Access()


class Directory:
    """A private directory, held open until `close`. Names are plain file names in it.

    with Directory.open(Path("/run/netback")) as directory:
        lock = directory.try_lock("lock")
        sock = directory.listen("control.sock", socket.SOCK_STREAM)
    """

    def __init__(self, path: Path, fd: int, made: bool) -> None:
        self.path = path
        self.fd = fd
        self._made = made

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open `path`, or create it and its missing parents, with mode 0700 from the start.

        ConfigError: it is a symbolic link or not a directory, another user owns it, or its group or others may write to
        it.
        """
        path = path.absolute()
        made = _make(path)
        return cls(path, _open_private(path), made)

    def subdirectory(self, name: str) -> "Directory":
        """Open a directory in this one, creating it if missing; it is never removed. Errors are those of `open`."""
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self.fd)
        return Directory(self.path / name, _open_private(self.path / name, name, self.fd), made=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor, and remove the directory if `open` made it and it is empty. May be called again."""
        if self.fd < 0:
            return
        if self._made and _leads_to(self.path, self.fd):
            with suppress(OSError):  # others may have put files into it
                self.path.rmdir()
        os.close(self.fd)
        self.fd = -1

    def names(self) -> list[str]:
        """The names of everything in the directory."""
        return os.listdir(self.fd)  # noqa: PTH208 (a Path knows no descriptors)

    def open_file(self, name: str, flags: int) -> int:
        """Open a regular file; `flags` may create it, with mode 0600. ConfigError: it cannot be opened."""
        try:
            fd = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600, dir_fd=self.fd)
        except OSError as error:
            raise ConfigError(f"{self.path / name}: {_why(error)}") from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ConfigError(f"{self.path / name}: not a regular file; remove it")
        return fd

    def unlink(self, name: str) -> None:
        """Remove a file, socket or link, never a link's target. A missing name is not an error."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)

    def try_lock(self, name: str) -> int | None:
        """Take an exclusive lock on the file `name`: its descriptor, or None while another process holds the lock.

        A holder that ends may remove the file between our open and our lock: then both are repeated.
        """
        while True:
            fd = self.open_file(name, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return None
            if self._names(name, fd):
                return fd
            os.close(fd)

    def listen(
        self,
        name: str,
        kind: int = socket.SOCK_STREAM,
        backlog: int = _BACKLOG,
        access: Access = OWNER_ONLY,
    ) -> socket.socket:
        """A listening UNIX socket of type `kind`, non-blocking, to which only this user can connect, or whom `access`
        admits; those may then pass through the directory, but not list it.

        An existing `name` is removed first, so take the lock before. ConfigError: the path is too long for a socket,
        the socket cannot be bound, or its group not be set.
        """
        path = self.socket_path(name)
        self.unlink(name)
        sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
        try:
            # Linux gives the file the mode of the socket's own inode, less the umask (unix_bind).
            os.fchmod(sock.fileno(), 0o600)
            sock.bind(str(path))
            if not stat.S_ISSOCK(os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode):
                raise ConfigError(f"{path}: the directory was replaced while netback started; try again")
            self._admit(name, access)
            sock.listen(backlog)
        except OSError as error:
            sock.close()
            raise ConfigError(f"{path}: cannot listen: {_why(error)}") from error
        except BaseException:
            sock.close()
            raise
        return sock

    def _admit(self, name: str, access: Access) -> None:
        """Give a new socket its group, then its mode. No other user can have replaced it: the directory is private.

        A group that the process has already is not set, since chown(2) needs rights that a service may not have.
        """
        if access == OWNER_ONLY:
            return
        if access.group not in (None, os.stat(name, dir_fd=self.fd).st_gid):
            os.chown(name, -1, access.group, dir_fd=self.fd)
        os.chmod(name, access.mode, dir_fd=self.fd)
        if access.shared:
            status = os.fstat(self.fd)
            if access.group not in (None, status.st_gid):
                os.chown(self.fd, -1, access.group)
            through = stat.S_IXGRP | (stat.S_IXOTH if access.mode & stat.S_IWOTH else 0)
            os.fchmod(self.fd, stat.S_IMODE(status.st_mode) | through)

    def socket_path(self, name: str) -> Path:
        """The path by which a client connects. ConfigError: it is longer than `MAX_SOCKET_PATH` bytes."""
        return check_socket_path(self.path / name)

    def _names(self, name: str, fd: int) -> bool:
        """Whether `name` still refers to the open file."""
        try:
            there = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(fd))


def check_trusted(path: Path) -> None:
    """ConfigError: a client should not trust what answers in the directory. It is a symbolic link, or a user other than
    root and this one owns it or may write to it. A missing directory is no error.
    """
    try:
        status = path.lstat()
    except OSError:
        return
    if not stat.S_ISDIR(status.st_mode):
        raise _no_directory(path, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigError(
            f"{path}: belongs to user {status.st_uid}, neither root nor you; choose another --dir"
        )
    _check_unshared(path, status)


def check_socket_path(path: Path) -> Path:
    """The path itself, for a UNIX socket. ConfigError: it is longer than sun_path allows (unix(7))."""
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH:
        raise ConfigError(
            f"{path}: {length} bytes, and a UNIX socket's path has at most {MAX_SOCKET_PATH}; choose a shorter --dir"
        )
    return path


def _make(path: Path) -> bool:
    """Create the directory if it is missing; returns whether this call created it."""
    try:
        for above in [above for above in reversed(path.parents) if not above.exists()]:
            above.mkdir(0o755, exist_ok=True)
        path.mkdir(0o700)
    except FileExistsError:
        return False
    except OSError as error:
        raise ConfigError(f"{path}: cannot make the directory: {_why(error)}") from error
    return True


def _open_private(path: Path, name: str | Path = "", within: int | None = None) -> int:
    """A descriptor of the directory `path`, looked up as `name` in `within` if that is given."""
    try:
        fd = os.open(name or path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)
    except OSError as error:
        raise _no_directory(path, error) from error
    try:
        _check_private(path, os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_private(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise ConfigError(
            f"{path}: belongs to user {status.st_uid}, not to user {os.geteuid()} that runs netback; "
            f"choose another --dir"
        )
    _check_unshared(path, status)


def _check_unshared(path: Path, status: os.stat_result) -> None:
    if status.st_mode & _OTHERS_WRITE:
        raise ConfigError(
            f"{path}: other users may write to it (mode {stat.S_IMODE(status.st_mode):04o}); "
            f"chmod go-w it, or choose another --dir"
        )


def _no_directory(path: Path, error: OSError) -> ConfigError:
    if path.is_symlink():  # Linux returns ENOTDIR if O_DIRECTORY and O_NOFOLLOW meet a link
        return ConfigError(
            f"{path}: a symbolic link, and netback follows none there; name the directory itself"
        )
    return ConfigError(f"{path}: {_why(error)}")


def _leads_to(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(fd))
    except OSError:
        return False


def _why(error: OSError) -> str:
    name = errno.errorcode.get(error.errno or 0, "")
    if error.errno == errno.ELOOP:
        return "a symbolic link, and netback follows none there (ELOOP)"
    return f"{error.strerror or error}{f' ({name})' if name else ''}"
