# SPDX-License-Identifier: Apache-2.0
"""What the control rings of all vifs share: event channels, which the event loop reads, and a budget of pages."""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from netback.platforms.base import EventChannels, Platform
from netback.xenbus.pace import Pace

MAX_STAGED_PAGES = 16384
"""Pages of all guests together. A page takes a mapping of this process, which has 65530 (vm.max_map_count)."""


@dataclass(slots=True)
class StagingBudget:
    """The pages that guests may still stage."""

    left: int = MAX_STAGED_PAGES


class ControlPorts:
    """The ports of all control rings of a backend, on one handle that the event loop reads.

    The handle exists while there are rings: a backend whose guests have none spends nothing on it.
    """

    def __init__(self, platform: Platform) -> None:
        self.pace = Pace()
        self._platform = platform
        self._events: EventChannels | None = None
        self._users = 0
        self._rings: dict[int, Callable[[], object]] = {}

    def open(self, undo: ExitStack) -> EventChannels:
        """The handle, in use until `undo` is closed. PlatformError: it cannot be opened."""
        if self._events is None:
            self._events = self._platform.open_events()
            asyncio.get_running_loop().add_reader(self._events.native.fd, self._fired)
        self._users += 1
        undo.callback(self._leave)
        return self._events

    def follow(self, port: int, call: Callable[[], object], undo: ExitStack) -> None:
        """Call `call` when the port fires; it is masked then, until `unmask`."""
        self._rings[port] = call
        undo.callback(self._rings.pop, port)

    def unmask(self, port: int) -> None:
        """Let a followed port fire again."""
        if self._events is not None and port in self._rings:
            self._events.native.unmask(port)

    def _leave(self) -> None:
        self._users -= 1
        if not self._users and self._events is not None:
            asyncio.get_running_loop().remove_reader(self._events.native.fd)
            self._events.close()
            self._events = None

    def _fired(self) -> None:
        if self._events is None:
            return
        for port in self._events.native.take():
            if port in self._rings:
                self._rings[port]()
