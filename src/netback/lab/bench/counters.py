# SPDX-License-Identifier: Apache-2.0
"""What dom0's counters say of a stretch of a flow: from the texts of inside/counting.py to numbers. Pure."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

_HIT = re.compile(r"\{ common_pid:\s*(\d+)(?:, id: (?:sys_)?(\w+)[^}]*)?\s*\} hitcount:\s*(\d+)(.*)")
_VALUE = re.compile(r"\w+:\s*(\d+)")
_SLEEPS = re.compile(r"^voluntary_ctxt_switches:\s*(\d+)", re.MULTILINE)
BYTE_CALLS = frozenset(
    ("read", "write", "readv", "writev", "pread64", "pwrite64", "recvfrom", "sendto", "recvmsg", "sendmsg")
)
"""System calls that return the number of bytes which the kernel copied."""
VHOST = "vhost-"
"""The beginning of the name of a vhost worker's thread."""


@dataclass(frozen=True, slots=True)
class Hits:
    """A key of a tracefs histogram: how often, and the sum of its value if it has one."""

    count: int
    total: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a flow: what its link and its backend's threads did. Nothing in it slowed a frame down."""

    seconds: float
    to_guest: int
    from_guest: int
    """Frames."""
    bytes_to_guest: int
    bytes_from_guest: int
    interrupts: int
    wakeups: int
    """Voluntary context switches: how often a thread slept and was woken."""
    user: float
    system: float
    """Processor seconds of the backend's threads."""
    threads: int
    vhost: bool
    """Whether a vhost worker is among the threads."""

    @property
    def frames(self) -> int:
        return self.to_guest + self.from_guest


def histogram(text: str) -> dict[tuple[int, str], Hits]:
    """The keys of a tracefs histogram (Documentation/trace/histogram.rst): threads, and system calls by their names."""
    found = {}
    for thread, name, count, rest in _HIT.findall(text):
        value = _VALUE.search(rest)
        found[int(thread), name] = Hits(int(count), int(value[1]) if value else 0)
    return found


def threads(counted: Mapping[str, Any]) -> set[int]:
    """The threads that were counted."""
    return {int(thread) for thread in counted["end"]["tasks"]}


def hits(counted: Mapping[str, Any], name: str, of: Collection[int] | None = None) -> dict[str, Hits]:
    """What a histogram counted between two snapshots, `of` these threads or of all; nothing without that histogram."""
    begin, end = (histogram(counted[at]["histograms"].get(name, "")) for at in ("begin", "end"))
    found: dict[str, Hits] = {}
    for (thread, call), after in end.items():
        if of is None or thread in of:
            before, so_far = begin.get((thread, call), Hits(0)), found.get(call, Hits(0))
            found[call] = Hits(
                so_far.count + after.count - before.count, so_far.total + after.total - before.total
            )
    return {call: one for call, one in found.items() if one.count}


def interrupts(text: str, name: str) -> int:
    """Interrupts of all processors on the lines of /proc/interrupts whose last word begins with a match of `name`."""
    lines = text.splitlines()
    cpus = len(lines[0].split()) if lines else 0
    total = 0
    for line in lines[1:]:
        words = line.split()
        if words and re.match(name, words[-1]):
            total += sum(int(word) for word in words[1 : 1 + cpus] if word.isdigit())
    return total


def _task(files: Mapping[str, str]) -> tuple[int, int, int, int]:
    """What a thread did so far: (sleeps, nanoseconds, ticks of user time, of system time).

    schedstat is exact but undivided; stat divides it, in ticks (proc(5)).
    """
    sleeps = _SLEEPS.search(files["status"])
    user, system = (int(word) for word in files["stat"].rpartition(")")[2].split()[11:13])
    return int(sleeps[1]) if sleeps else 0, int(files["schedstat"].split()[0]), user, system


def span(counted: Mapping[str, Any], interrupt: str) -> Span:
    """The difference of two snapshots; `interrupt` matches the names of the backend's event channels."""
    begin, end = counted["begin"], counted["end"]
    link = {name: end["link"][name] - begin["link"][name] for name in end["link"]}
    done = [
        [after - before for before, after in zip(_task(begin["tasks"][tid]), _task(files), strict=True)]
        for tid, files in end["tasks"].items()
        if tid in begin["tasks"]
    ]
    wakeups, nanoseconds, user, system = (sum(column) for column in zip([0] * 4, *done, strict=True))
    share = user / ((user + system) or 1)
    names = [files["comm"].strip() for files in end["tasks"].values()]
    return Span(
        seconds=end["time"] - begin["time"],
        to_guest=link["tx_packets"],
        from_guest=link["rx_packets"],
        bytes_to_guest=link["tx_bytes"],
        bytes_from_guest=link["rx_bytes"],
        interrupts=interrupts(end["interrupts"], interrupt) - interrupts(begin["interrupts"], interrupt),
        wakeups=wakeups,
        user=nanoseconds / 1e9 * share,
        system=nanoseconds / 1e9 * (1 - share),
        threads=len(done),
        vhost=any(name.startswith(VHOST) for name in names),
    )
