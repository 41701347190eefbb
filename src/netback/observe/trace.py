# SPDX-License-Identifier: Apache-2.0
"""Trace points that are selected by name, and logs with a limited rate."""

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
"""Each trace point and the names of its values; the names are those of QEMU's Xen NIC."""

trace_log = logging.getLogger("netback.trace")


class Tracer:
    """The trace points that are on. Any thread may emit a line; only one thread selects."""

    def __init__(self, write: Callable[[str], None] = trace_log.info) -> None:
        self._write = write
        self._on: frozenset[str] = frozenset()

    def select(self, pattern: str) -> None:
        """Turn on every trace point that matches a name or glob; with a leading `-`, turn it off.

        ConfigError: no trace point matches.
        """
        matching = {name for name in TRACE_POINTS if fnmatchcase(name, pattern.removeprefix("-"))}
        if not matching:
            raise ConfigError(f"no trace point matches {pattern!r}: known are {', '.join(TRACE_POINTS)}")
        self._on = self._on - matching if pattern.startswith("-") else self._on | matching

    def on(self, name: str) -> bool:
        """Whether this trace point is on. Callers check it before computing expensive values."""
        return name in self._on

    def emit(self, name: str, *values: object) -> None:
        """Write one line if the trace point is on: its name and `field=value` for each of its fields.

        ValueError: too few or too many values.
        """
        if name in self._on:
            fields = zip(TRACE_POINTS[name], values, strict=True)
            self._write(" ".join([name, *(f"{field}={value}" for field, value in fields)]))


class LogBudget:
    """Writes at most `lines` lines of one source in `seconds`. The next line then counts the omitted ones."""

    def __init__(
        self, lines: int = 10, seconds: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lines, self._seconds, self._clock = lines, seconds, clock
        self._since = clock()
        self._spent = 0
        self._left_out = 0

    def warn(self, log: logging.Logger, text: str, *, exc_info: bool = False) -> None:
        """Write a line while the budget lasts; `exc_info` adds the current exception's traceback."""
        now = self._clock()
        if now - self._since >= self._seconds:
            self._since, self._spent = now, 0
        if self._spent >= self._lines:
            self._left_out += 1
            return
        self._spent += 1
        log.warning(f"{text} (and {self._left_out} more)" if self._left_out else text, exc_info=exc_info)
        self._left_out = 0
