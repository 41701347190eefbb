# SPDX-License-Identifier: Apache-2.0
"""Sends sd_notify(3) datagrams: the state of the service, and descriptors for systemd to hold.

Without $NOTIFY_SOCKET it sends nothing.
"""

import array
import logging
import os
import socket
import time
from collections.abc import Iterator, MutableMapping

log = logging.getLogger("netback.daemon.systemd.notify")

FIRST_FD = 3
"""SD_LISTEN_FDS_START."""
_SECONDS = 1.0
"""Seconds that a datagram may wait for systemd; the service then continues without it."""


class Notifier:
    """A datagram socket to the supervisor of this process."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path  # an abstract socket
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if path else None
        if self._socket is not None:
            self._socket.settimeout(_SECONDS)
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = environment.get("WATCHDOG_USEC", "") if ours and path else ""
        self.watchdog = int(usec) / 1e6 if usec.isdecimal() and int(usec) else None
        """Seconds within which systemd expects WATCHDOG=1; None if it expects none."""

    def close(self) -> None:
        """Stop sending."""
        if self._socket is not None:
            self._socket.close()

    def tell(self, *lines: str, fds: tuple[int, ...] = ()) -> None:
        """Send one datagram. A failure is only logged: the service does not depend on it."""
        if self._socket is None:
            return
        try:
            passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            self._socket.sendmsg(["\n".join(lines).encode()], passed, 0, self._address)
        except OSError as error:
            log.warning("cannot send %s to the service manager: %s", lines[0], error.strerror or error)

    def ready(self, status: str) -> None:
        """READY=1: started, or reloaded."""
        self.tell("READY=1", f"STATUS={status}")

    def alive(self, status: str) -> None:
        """WATCHDOG=1, due within `watchdog` seconds."""
        self.tell("WATCHDOG=1", f"STATUS={status}")

    def reloading(self) -> None:
        """RELOADING=1. `ready` ends the reload; the timestamp relates it to systemd's signal."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """STOPPING=1."""
        self.tell("STOPPING=1")


def take_held(environment: MutableMapping[str, str] = os.environ) -> Iterator[tuple[str, int]]:
    """The descriptors that systemd held for this process, with their names (sd_listen_fds(3)).

    A second call returns none, and child processes do not inherit them.
    """
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    count = environment.pop("LISTEN_FDS", "")
    if environment.pop("LISTEN_PID", "") != str(os.getpid()) or not count.isdecimal():
        return
    for number, fd in enumerate(range(FIRST_FD, FIRST_FD + int(count))):
        os.set_inheritable(fd, False)
        yield names[number] if number < len(names) else "", fd
