# SPDX-License-Identifier: Apache-2.0
"""Where another program is met, by a spec's text: `/run/a.sock`, `127.0.0.1:5000`, `[::1]:5000`, `fd:3`.

Addresses are numbers, so that no name server is asked by the process that serves guests.
"""

import ipaddress
import os
import re
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from netback.errors import ConfigError, PeerError

MAX_PATH = 107
"""linux/un.h: bytes of sun_path without its final zero byte."""
_HOST_PORT = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*)):([1-9][0-9]{0,4})", re.ASCII)
_FD = re.compile(r"fd:(0|[1-9][0-9]{0,5})", re.ASCII)


@dataclass(frozen=True, slots=True)
class UnixPath:
    """A UNIX socket by its path."""

    path: str
    family = socket.AF_UNIX

    @property
    def address(self) -> str:
        """As the functions of a socket take it."""
        return self.path


@dataclass(frozen=True, slots=True)
class HostPort:
    """A port of an IPv4 or IPv6 address."""

    host: str
    port: int

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET or AF_INET6."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    @property
    def link(self) -> int:
        """The index of the link that an IPv6 address names, 0 if it names none. OSError: there is no such link."""
        _, _, name = self.host.partition("%")
        return socket.if_nametoindex(name) if name else 0

    @property
    def address(self) -> tuple[str, int] | tuple[str, int, int, int]:
        """As the functions of a socket take it. OSError: there is no such link."""
        if self.family == socket.AF_INET:
            return self.host, self.port
        return self.host.partition("%")[0], self.port, 0, self.link

    @property
    def is_multicast(self) -> bool:
        """Whether it is a group."""
        return ipaddress.ip_address(self.host).is_multicast


@dataclass(frozen=True, slots=True)
class Inherited:
    """A descriptor that this process got from the one that started it."""

    fd: int


Endpoint = UnixPath | HostPort | Inherited


def path_fault(path: str) -> str | None:
    """Why a socket cannot have this path; None if it can."""
    if not path.startswith("/"):
        return f"the socket's path {path!a} does not begin with /"
    if len(os.fsencode(path)) > MAX_PATH:
        return f"the socket's path is longer than {MAX_PATH} bytes"
    if not path.isprintable():
        return f"the socket's path {path!a} has a character that is not printable"
    return None


def read_host_port(text: str) -> HostPort:
    """An address and its port. ValueError says what is wrong."""
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!a} is not ADDRESS:PORT or [ADDRESS]:PORT, with a port from 1 to 65535")
    six, four, port = match.groups()
    kind, host = ("IPv6", six) if six is not None else ("IPv4", four)
    try:
        (ipaddress.IPv6Address if six is not None else ipaddress.IPv4Address)(host)
    except ValueError as error:
        raise ValueError(f"{host!a} is not an {kind} address in numbers") from error
    if int(port) > 65535:
        raise ValueError(f"{port} is not a port: they end at 65535")
    return HostPort(host, int(port))


def read_endpoint(text: str) -> Endpoint:
    """A socket's path, an address with a port, or an inherited descriptor. ValueError says what is wrong."""
    if text.startswith("/"):
        if fault := path_fault(text):
            raise ValueError(fault)
        return UnixPath(text)
    if match := _FD.fullmatch(text):
        return Inherited(int(match[1]))
    if text.startswith("fd:"):
        raise ValueError(f"{text!a} is not fd:NUMBER")
    if ":" not in text:
        raise ValueError(f"{text!a} is neither a path that begins with /, nor ADDRESS:PORT, nor fd:NUMBER")
    return read_host_port(text)


def read_local(text: str) -> UnixPath | HostPort | str:
    """A path, an address with a port, or an IPv4 address alone. ValueError says what is wrong."""
    if text.startswith("/") or ":" in text:
        endpoint = read_endpoint(text)
        if isinstance(endpoint, Inherited):
            raise ValueError("a descriptor is no address")
        return endpoint
    return str(ipaddress.IPv4Address(text))


def inherit(endpoint: Inherited, *kinds: socket.SocketKind) -> socket.socket:
    """A duplicate of an inherited socket of one of these kinds. ConfigError: it is none.

    What this process opened itself is not inheritable (PEP 446), so no spec can name its own connections.
    """
    fd = endpoint.fd
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode) or not os.get_inheritable(fd):
            raise ConfigError(f"descriptor {fd} is no socket that netback was started with")
        found = socket.socket(fileno=os.dup(fd))
    except OSError as error:
        raise ConfigError(f"descriptor {fd}: {error.strerror}") from error
    if found.type not in kinds:
        found.close()
        raise ConfigError(f"descriptor {fd} is a socket of another kind: it takes {_names(kinds)}")
    return found


def _names(kinds: tuple[socket.SocketKind, ...]) -> str:
    return " or ".join(kind.name for kind in kinds)


def remove_stale(path: str, kind: socket.SocketKind) -> None:
    """Unlink a socket that no process has any more. PeerError: a process has it. OSError: it cannot be unlinked."""
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe, suppress(FileNotFoundError):
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
        except BlockingIOError:
            raise PeerError("another process listens there") from None
        else:
            raise PeerError("another process listens there")


def unlink(path: str) -> None:
    """Remove the path of a socket, if it is there."""
    with suppress(OSError):
        Path(path).unlink()


def fault_of(read: Callable[[str], object]) -> Callable[[str], str | None]:
    """What `read` finds wrong with a text, as text; None for nothing."""

    def fault(text: str) -> str | None:
        try:
            read(text)
        except ValueError as error:
            return str(error)
        return None

    return fault
