# SPDX-License-Identifier: Apache-2.0
"""Trace points that are selected by name, and logs with a limited rate."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase

from netback.errors import ConfigError

TRACE_POINTS: Mapping[str, tuple[str, ...]] = {
    "xen_device_backend_state": ("dev", "state"),
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
"""Each trace point and the names of its values; the names are those of QEMU's Xen NIC and of its xenbus."""
SLOTS = frozenset({"xen_netdev_tx", "xen_netdev_rx"})
"""Those of single slots: while one is on, workers record every slot."""

trace_log = logging.getLogger("netback.trace")


Sink = Callable[[str, float, Mapping[str, object]], None]
"""Takes a trace point's name, its time in seconds since 1970 and its values by name, in any thread."""


class Tracer:
    """The trace points that are on: those of the log, and those of each further sink. Any thread may emit; only one
    thread selects.
    """

    def __init__(self, write: Callable[[str], None] = trace_log.info) -> None:
        self._write = write
        self._logged: frozenset[str] = frozenset()
        self._sinks: tuple[tuple[frozenset[str], Sink], ...] = ()
        self._called: tuple[tuple[frozenset[str], Sink], ...] = ()
        self._on: frozenset[str] = frozenset()

    def select(self, pattern: str) -> None:
        """Have the log show every trace point that matches a name or glob; with a leading `-`, not any more.

        ConfigError: no trace point matches.
        """
        matching = matching_points(pattern.removeprefix("-"))
        self._logged = self._logged - matching if pattern.startswith("-") else self._logged | matching
        self._join()

    @contextmanager
    def sent_to(self, sink: Sink, points: frozenset[str]) -> Iterator[None]:
        """Pass these trace points to `sink`, too, while the context lasts."""
        entry = (points, sink)
        self._sinks += (entry,)
        self._join()
        try:
            yield
        finally:
            self._sinks = tuple(each for each in self._sinks if each is not entry)
            self._join()

    def _join(self) -> None:
        """A sink that was given twice is called once."""
        joined: dict[Sink, frozenset[str]] = {}
        for points, sink in self._sinks:
            joined[sink] = joined.get(sink, frozenset()) | points
        self._called = tuple((points, sink) for sink, points in joined.items())
        self._on = self._logged.union(*joined.values())

    def on(self, name: str) -> bool:
        """Whether this trace point is on. Callers check it before computing expensive values."""
        return name in self._on

    def emit(self, name: str, *values: object, at: float | None = None) -> None:
        """Write one line if the trace point is on: its name and `field=value` for each of its fields.

        `at`: when it was passed, in seconds since 1970; None: now. ValueError: too few or too many values.
        """
        if name not in self._on:
            return
        fields = dict(zip(TRACE_POINTS[name], values, strict=True))
        if name in self._logged:
            self._write(" ".join([name, *(f"{field}={value}" for field, value in fields.items())]))
        for points, sink in self._called:
            if name in points:
                sink(name, time.time() if at is None else at, fields)


def matching_points(pattern: str) -> frozenset[str]:
    """The trace points that match a name or glob. ConfigError: there are none."""
    matching = frozenset(name for name in TRACE_POINTS if fnmatchcase(name, pattern))
    if not matching:
        raise ConfigError(f"no trace point matches {pattern[:64]!r}: known are {', '.join(TRACE_POINTS)}")
    return matching


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
