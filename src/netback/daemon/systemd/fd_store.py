# SPDX-License-Identifier: Apache-2.0
"""systemd's descriptor store for taps: frames queued in a tap survive a restart of netback.

A descriptor is keyed by its device's name and its queue (`queue_name`); the notifier sends the datagrams.
"""

import os
from collections.abc import Sequence

from netback.daemon.systemd.notify import Notifier, take_held
from netback.net.tap import discard
from netback.vif.queue import queue_name, queue_owner


class SystemdFdStore:
    """Hands each new tap's descriptors to systemd, and returns those that an earlier process stored."""

    def __init__(self, notifier: Notifier | None = None) -> None:
        self._notifier = notifier
        self._held: dict[str, dict[str, int]] = {}
        self._stored: dict[str, set[str]] = {}
        """The FDNAMEs that systemd holds for each device, as far as this process knows."""
        for name, fd in take_held() if notifier is not None else ():
            of_device = self._held.setdefault(queue_owner(name), {})
            if name in of_device:
                os.close(of_device[name])
            of_device[name] = fd
            self._stored.setdefault(queue_owner(name), set()).add(name)

    @property
    def untaken(self) -> set[str]:
        """The devices whose stored descriptors were not taken."""
        return set(self._held)

    def take(self, name: str) -> tuple[int, ...]:
        """Take the descriptors that an earlier process stored for this device, by queue; the caller owns them
        now.
        """
        held = self._held.pop(name, {})
        return tuple(held[queue] for queue in sorted(held, key=lambda queue: (len(queue), queue)))

    def keep(self, name: str, fds: Sequence[int]) -> None:
        """Store one descriptor for each queue of this device, replacing earlier ones."""
        self._remove(name)
        self._stored[name] = {queue_name(name, number) for number in range(len(fds))}
        for number, fd in enumerate(fds):
            self._tell("FDSTORE=1", f"FDNAME={queue_name(name, number)}", fds=(fd,))

    def forget(self, name: str) -> None:
        """Remove what is stored for a removed device, and a tap that netback made for it."""
        for fd in self.take(name):
            discard(fd)
        self._remove(name)

    def _remove(self, name: str) -> None:
        for queue in sorted(self._stored.pop(name, set()) | {name}):
            self._tell("FDSTOREREMOVE=1", f"FDNAME={queue}")

    def _tell(self, *lines: str, fds: tuple[int, ...] = ()) -> None:
        if self._notifier is not None:
            self._notifier.tell(*lines, fds=fds)
