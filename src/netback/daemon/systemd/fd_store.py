# SPDX-License-Identifier: Apache-2.0
"""Descriptors of taps that systemd holds while no netback runs, so that frames that wait in a tap survive a restart.

Knows a descriptor by its device's name and its queue; the datagrams to systemd are the notifier's.
"""

import os
from collections.abc import Sequence

from netback.daemon.systemd.notify import Notifier, take_held
from netback.net.tap import discard

QUEUE = "-q"
"""Parts a device's name and the number of a queue in FDNAME; queue 0 has the device's name alone."""


def fd_name(device: str, queue: int) -> str:
    """The FDNAME of a queue's descriptor."""
    return f"{device}{QUEUE}{queue}" if queue else device


def parse_fd_name(name: str) -> tuple[str, int]:
    """The device and the queue of a FDNAME."""
    device, mark, queue = name.rpartition(QUEUE)
    return (device, int(queue)) if mark and queue.isdecimal() else (name, 0)


class SystemdFdStore:
    """Gives each new tap's descriptors to systemd, and has those that an earlier process gave."""

    def __init__(self, notifier: Notifier | None = None) -> None:
        self._notifier = notifier
        self._held: dict[str, dict[int, int]] = {}
        self._stored: dict[str, set[int]] = {}
        """The queues of each device whose descriptors systemd has, by all that this process knows."""
        for name, fd in take_held() if notifier is not None else ():
            device, queue = parse_fd_name(name)
            of_device = self._held.setdefault(device, {})
            if queue in of_device:
                os.close(of_device[queue])
            of_device[queue] = fd
            self._stored.setdefault(device, set()).add(queue)

    @property
    def untaken(self) -> set[str]:
        """The devices whose descriptors were not taken."""
        return set(self._held)

    def take(self, name: str) -> tuple[int, ...]:
        """The descriptors that an earlier process used for this device, by queue; now the caller's."""
        held = self._held.pop(name, {})
        return tuple(held[queue] for queue in sorted(held))

    def keep(self, name: str, fds: Sequence[int]) -> None:
        """Have systemd hold one descriptor for each queue of this device, in place of those before."""
        self._remove(name)
        self._stored[name] = set(range(len(fds)))
        for queue, fd in enumerate(fds):
            self._tell("FDSTORE=1", f"FDNAME={fd_name(name, queue)}", fds=(fd,))

    def forget(self, name: str) -> None:
        """The device is gone: remove what is held for it, and a tap that netback made with it."""
        for fd in self.take(name):
            discard(fd)
        self._remove(name)

    def _remove(self, name: str) -> None:
        for queue in sorted(self._stored.pop(name, set()) | {0}):
            self._tell("FDSTOREREMOVE=1", f"FDNAME={fd_name(name, queue)}")

    def _tell(self, *lines: str, fds: tuple[int, ...] = ()) -> None:
        if self._notifier is not None:
            self._notifier.tell(*lines, fds=fds)
