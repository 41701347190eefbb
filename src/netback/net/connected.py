# SPDX-License-Identifier: Apache-2.0
"""A network behind a connection to another program, which may come, end and come back at any time.

A thread of each network connects, or listens, again and again: a program that answers slowly, or never, delays nobody.
The first attempt to connect must succeed; a network that listens opens at once and is down until a program has
connected. What a connection carries is the subclass's.
"""

import os
import select
import socket
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from netback.errors import ConfigError, GoneError, PeerError
from netback.net.base import Linkless
from netback.net.endpoints import Endpoint, HostPort, Inherited, UnixPath, inherit, remove_stale, unlink

CONNECT_SECONDS = 2.0
"""For a TCP connection."""
PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds between attempts, from the first after a connection that lasted STEADY_SECONDS."""
STEADY_SECONDS = 5.0
LOST_MILLISECONDS = 30_000
"""After which a TCP connection whose other end acknowledges or reads nothing is lost (tcp(7), TCP_USER_TIMEOUT): its
host may have gone, and Linux would try for a quarter of an hour."""
KEEPALIVE = (
    (socket.TCP_KEEPIDLE, 10),
    (socket.TCP_KEEPINTVL, 5),
    (socket.TCP_KEEPCNT, 4),
    (socket.TCP_USER_TIMEOUT, LOST_MILLISECONDS),
    (socket.TCP_NODELAY, 1),
)
"""Options of a TCP connection."""

Meet = Callable[[int], socket.socket]
"""Returns the next connection; the argument is a descriptor that interrupts it once it is readable."""


class Interrupted(Exception):
    """The owner closed the network, or wants another connection."""


def await_event(fd: int, event: int, alarm: int, seconds: float | None) -> bool:
    """Wait until `fd` (-1: none) has an event of poll(2); False if it has none in time. `alarm` interrupts it."""
    poll = select.poll()
    poll.register(alarm, select.POLLIN)
    if fd >= 0:
        poll.register(fd, event)
    ready = dict(poll.poll(None if seconds is None else seconds * 1000))
    if alarm in ready:
        os.eventfd_read(alarm)
        raise Interrupted
    return bool(ready)


@contextmanager
def shut_down(connection: socket.socket) -> Iterator[socket.socket]:
    """Shut the connection down and close it at the end: a peer has a duplicate, which would keep it open."""
    with connection:
        try:
            yield connection
        finally:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def new_socket(family: socket.AddressFamily) -> socket.socket:
    """A stream socket that never blocks."""
    return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def tune(connection: socket.socket) -> socket.socket:
    """Set the options of a TCP connection; does nothing for a UNIX socket."""
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return connection


# ---- how a connection is made


def connecting(endpoint: UnixPath | HostPort) -> Meet:
    """Connect to a program that listens."""

    def meet(alarm: int) -> socket.socket:
        with ExitStack() as undo:
            connection = undo.enter_context(new_socket(endpoint.family))
            try:
                connection.connect(endpoint.address)
            except BlockingIOError as error:
                if endpoint.family == socket.AF_UNIX:
                    raise PeerError("cannot connect: too many others wait to be accepted") from error
                if not await_event(connection.fileno(), select.POLLOUT, alarm, CONNECT_SECONDS):
                    raise PeerError("cannot connect: no answer") from error
                if fault := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise PeerError(f"cannot connect: {os.strerror(fault)}") from error
            except OSError as error:
                raise PeerError(f"cannot connect: {error.strerror}") from error
            undo.pop_all()
            return tune(connection)

    return meet


def accepting(listener: socket.socket) -> Meet:
    """Wait for a program to connect to this socket, which listens."""

    def meet(alarm: int) -> socket.socket:
        while True:
            await_event(listener.fileno(), select.POLLIN, alarm, None)
            with suppress(BlockingIOError, ConnectionAbortedError):
                connection, _ = listener.accept()
                connection.setblocking(False)
                return tune(connection)

    return meet


def given(connection: socket.socket) -> Meet:
    """This connection, once. GoneError: it was met before."""
    left = [connection]

    def meet(alarm: int) -> socket.socket:
        if not left:
            raise GoneError("its other end is closed")
        return tune(left.pop())

    return meet


def _listen(endpoint: UnixPath | HostPort, undo: ExitStack) -> socket.socket:
    """A socket that listens there. A path that nobody listens on is left by an earlier process, and is replaced."""
    listener = undo.enter_context(new_socket(endpoint.family))
    try:
        if isinstance(endpoint, UnixPath):
            remove_stale(endpoint.path, socket.SOCK_STREAM)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(endpoint.address)
        if isinstance(endpoint, UnixPath):
            undo.callback(unlink, endpoint.path)
        listener.listen(1)
    except OSError as error:
        raise PeerError(f"cannot listen: {error.strerror}") from error
    return listener


def _is_listening(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


class Connected:
    """One connection at a time to another program, which a thread makes again after an end, until `close`.

    A subclass sets up what it needs, then calls `_start`. ConfigError: the endpoint is none. PeerError: the first
    attempt to connect failed, or a socket that listens cannot be made.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        """Held while what the connection serves changes."""
        self._connected = self._unreported = self._closing = self._over = False
        self._fault = "not connected"
        self._undo = ExitStack()
        self._alarm = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._undo.callback(os.close, self._alarm)
        self._tried = threading.Event()

    @abstractmethod
    def _serve(self, connection: socket.socket) -> None:
        """Use this connection, and call `_joined` once it works; return, or raise a PeerError or an OSError that says
        why, once it has ended. The caller closes it.
        """

    @abstractmethod
    def _leave(self) -> str | None:
        """The connection has ended, or was not made; returns why, if the subclass knows better. `_lock` is held."""

    # ---- the connection, in its own thread

    def _start(
        self, where: Endpoint | socket.socket | Meet, *, server: bool = False, seconds: float | None
    ) -> None:
        """Start the thread. A first attempt to connect gets so many seconds, and must succeed; None: it need not."""
        try:
            try:
                self._meet, waits = (where, False) if callable(where) else self._way(where, server=server)
            except (ConfigError, PeerError) as error:
                raise type(error)(f"{self.name}: {error}") from error
            thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            thread.start()
            self._undo.callback(thread.join)
            if not waits and seconds is not None:
                self._tried.wait(seconds)
                self.check()
        except BaseException:
            self.close()
            raise

    def _way(self, endpoint: Endpoint | socket.socket, *, server: bool) -> tuple[Meet, bool]:
        """How a connection is made, and whether that waits for the other program."""
        if isinstance(endpoint, Inherited):
            endpoint = inherit(endpoint, socket.SOCK_STREAM)
        if isinstance(endpoint, socket.socket):
            self._undo.enter_context(endpoint)
            if _is_listening(endpoint):
                endpoint.setblocking(False)
                server = True
                listener = endpoint
            else:
                return given(endpoint), False
        elif server:
            listener = _listen(endpoint, self._undo)
        else:
            return connecting(endpoint), False
        self._fault = "it has not connected yet"
        return accepting(listener), True

    def _run(self) -> None:
        failures = 0
        while not self._closing and not self._over:
            begun = time.monotonic()
            try:
                try:
                    with shut_down(self._meet(self._alarm)) as connection:
                        self._serve(connection)
                except (PeerError, OSError) as error:
                    failures = 0 if time.monotonic() > begun + STEADY_SECONDS else failures + 1
                    self._over = isinstance(error, GoneError)
                    self._lose(error)
                    await_event(-1, 0, self._alarm, PAUSES[min(failures, len(PAUSES)) - 1])
            except Interrupted:
                self._lose(None)

    def _joined(self) -> None:
        """The connection works. `_lock` is held."""
        self._connected = True
        self._tried.set()

    def _lose(self, error: Exception | None) -> None:
        """The connection ended, or was not made; None: on purpose."""
        with self._lock:
            reason = self._leave()
            if error is not None:
                text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                self._fault = self._fault if self._over else reason or text
                self._unreported = True
            self._connected = False
        self._tried.set()

    # ---- for control code

    def check(self) -> bool:
        """PeerError: the other program is not connected now, or was lost since the last check. GoneError: it can no
        longer be met.
        """
        if self._closing:
            return False
        with self._lock:
            fault, unreported, connected = self._fault, self._unreported, self._connected
            self._unreported = False
        if connected and unreported:
            raise PeerError(f"{self.name}: {fault}; connected again, the rings as they were")
        if not connected:
            raise (GoneError if self._over else PeerError)(f"{self.name}: {fault}")
        return False

    def close(self) -> None:
        """End the connection. What the other program has not taken yet is lost."""
        if self._closing:
            return
        self._closing = True
        os.eventfd_write(self._alarm, 1)
        self._undo.close()


class ConnectedNetwork(Connected, Linkless):
    """A network over such a connection: `_serve` gives it to the peers."""

    @property
    def up(self) -> bool:
        """Whether the other program is connected."""
        return self._connected

    def remove(self) -> None:
        """Nothing was made that outlives the connection."""
        self.close()
