# SPDX-License-Identifier: Apache-2.0
"""What the program says of itself: trace points that are chosen by name, and logs that nobody can flood.

Knows names and lines, nothing of what happens at a trace point.
"""

import logging
import time
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

from netback.errors import ConfigError

TRACE_POINTS: Mapping[str, tuple[str, ...]] = {
    "xen_netdev_realize": ("dev", "info", "peer"),
    "xen_netdev_unrealize": ("dev",),
    "xen_netdev_create": ("dev",),
    "xen_netdev_destroy": ("dev",),
    "xen_netdev_connect": ("dev", "tx", "rx", "port"),
    "xen_netdev_disconnect": ("dev",),
    "xen_netdev_frontend_changed": ("dev", "state"),
    "xen_netdev_tx": ("dev", "gref", "offset", "size", "flags"),
    "xen_netdev_rx": ("dev", "index", "status", "flags"),
}
"""Each trace point and what it tells; the names are those of QEMU's Xen NIC."""

trace_log = logging.getLogger("netback.trace")


class Tracer:
    """Which trace points are on. Any thread may hit one."""

    def __init__(self, write: Callable[[str], None] = trace_log.info) -> None:
        self._write = write
        self._on: frozenset[str] = frozenset()

    def select(self, pattern: str) -> None:
        """Turn on every point that a name or glob matches; with a leading `-`, turn it off."""
        matching = {name for name in TRACE_POINTS if fnmatchcase(name, pattern.removeprefix("-"))}
        if not matching:
            raise ConfigError(f"no trace point matches {pattern!r}: there are {', '.join(TRACE_POINTS)}")
        self._on = self._on - matching if pattern.startswith("-") else self._on | matching

    def on(self, name: str) -> bool:
        """Whether hitting this point writes a line: for those whose values cost something."""
        return name in self._on

    def hit(self, name: str, *values: object) -> None:
        """Write one line, if the point is on: its name and `what=value` for each value."""
        if name in self._on:
            fields = zip(TRACE_POINTS[name], values, strict=True)
            self._write(" ".join([name, *(f"{field}={value}" for field, value in fields)]))


class LogBudget:
    """So many lines in so many seconds for one source; the rest is counted, and said with the next that passes."""

    def __init__(
        self, lines: int = 10, seconds: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lines, self._seconds, self._clock = lines, seconds, clock
        self._since = clock()
        self._spent = 0
        self._unsaid = 0
        self.total = 0
        """Everything that this source had to say, written or not."""

    def warn(self, log: logging.Logger, text: str, *, exc_info: bool = False) -> None:
        """Write a line while the budget lasts; `exc_info` adds the traceback of the exception at hand."""
        self.total += 1
        now = self._clock()
        if now - self._since >= self._seconds:
            self._since, self._spent = now, 0
        if self._spent >= self._lines:
            self._unsaid += 1
            return
        self._spent += 1
        log.warning(f"{text} (and {self._unsaid} more)" if self._unsaid else text, exc_info=exc_info)
        self._unsaid = 0
