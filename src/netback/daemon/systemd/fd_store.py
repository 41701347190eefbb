# SPDX-License-Identifier: Apache-2.0
"""Descriptors of taps that outlive this process in systemd's hands, so that what waits in a tap survives a restart.

Knows a descriptor by its device's name; who else holds it is the notifier's business.
"""

import os

from netback.daemon.systemd.notify import Notifier, take_held
from netback.net.tap import discard


class SystemdFdStore:
    """Gives each new tap's descriptor away to be held, and has those that an earlier process gave."""

    def __init__(self, notifier: Notifier | None = None) -> None:
        self._notifier = notifier
        self._held: dict[str, int] = {}
        if notifier is not None:
            for name, fd in take_held():
                if name in self._held:
                    os.close(self._held[name])
                self._held[name] = fd

    @property
    def untaken(self) -> set[str]:
        """Whose descriptors nobody asked for yet."""
        return set(self._held)

    def take(self, name: str) -> int | None:
        """The descriptor that an earlier process used for this device, now the caller's."""
        return self._held.pop(name, None)

    def keep(self, name: str, fd: int) -> None:
        """Have it held from now on, instead of what was held for this device before."""
        if self._notifier is not None:
            self._notifier.tell("FDSTOREREMOVE=1", f"FDNAME={name}")
            self._notifier.tell("FDSTORE=1", f"FDNAME={name}", fds=(fd,))

    def forget(self, name: str) -> None:
        """The device is gone: its tap goes, too."""
        if (fd := self._held.pop(name, None)) is not None:
            discard(fd)
        if self._notifier is not None:
            self._notifier.tell("FDSTOREREMOVE=1", f"FDNAME={name}")
