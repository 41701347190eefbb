# SPDX-License-Identifier: Apache-2.0
"""Counts in a file of Xen's xentrace: one domain's hypercalls by kind, grants mapped and unmapped, TLB flushes.

Layouts and numbers are from Xen's public/trace.h and public/xen.h. A hypercall that Xen preempts and continues is
traced at each entry, and counted as often: each one is an entry into Xen.
"""

import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from netback.errors import NetbackError

_CYCLES = 1 << 31
_CPU_CHANGE = 0x0001F003
_LOST = 0x0001F001
_RUNSTATE, _CONTINUE = 0x00021001, 0x00021002
_STATES = 0xFF0
"""A runstate change's number holds the old state and the new one."""
_MAP, _UNMAP = 0x0010F001, 0x0010F002
_HYPERCALLS = {0x0020100D, 0x0020200E}
"""TRC_PV_HYPERCALL_V2 and TRC_PV_HYPERCALL_SUBCALL: a trap, and a call within a multicall."""
_PV_ENTRY = 0x00201000
_OP = 0xFFFFF
UNMAP_BATCH = 32
"""Pages that Xen unmaps before it flushes TLBs: GNTTAB_UNMAP_BATCH_SIZE of its common/grant_table.c."""

GRANT_OP = 20
OPS = {
    1: "mmu_update",
    3: "stack_switch",
    5: "fpu_taskswitch",
    10: "update_descriptor",
    12: "memory_op",
    13: "multicall",
    14: "update_va_mapping",
    15: "set_timer_op",
    17: "xen_version",
    GRANT_OP: "grant_table_op",
    23: "iret",
    24: "vcpu_op",
    25: "set_segment_base",
    26: "mmuext_op",
    29: "sched_op",
    32: "event_channel_op",
    33: "physdev_op",
    35: "sysctl",
}
GRANT_COMMANDS = {0: "grant_map", 1: "grant_unmap", 5: "grant_copy", 7: "grant_unmap"}


class TraceError(NetbackError):
    """A trace that cannot be counted."""


@dataclass(frozen=True, slots=True)
class Trace:
    """What one domain did in a trace, between its first timestamp and its last."""

    cycles: int
    calls: Mapping[str, int]
    """Hypercalls by kind, those within multicalls included."""
    traps: int
    """Entries into Xen other than hypercalls: page faults, privileged instructions."""
    mapped: int
    unmapped: int
    """Pages."""
    flushes: int
    """Derived: one for each batch of up to UNMAP_BATCH pages of one unmap."""


@dataclass(slots=True)
class _Cpu:
    """A physical processor while the trace is read."""

    domain: int = -1
    unmapping: int = 0
    """Pages unmapped since the last hypercall began."""


@dataclass(slots=True)
class _Count:
    calls: Counter[str] = field(default_factory=Counter)
    traps: int = 0
    mapped: int = 0
    unmapped: int = 0
    flushes: int = 0
    times: list[int] = field(default_factory=list)


def records(data: bytes) -> Iterator[tuple[int, int | None, tuple[int, ...]]]:
    """Each record: its event, its timestamp in cycles if it has one, its words; TraceError at a cut end."""
    at = 0
    try:
        while at < len(data):
            (head,) = struct.unpack_from("<I", data, at)
            words, cycles = (head >> 28) & 7, None
            at += 4
            if head & _CYCLES:
                (cycles,) = struct.unpack_from("<Q", data, at)
                at += 8
            yield head & 0x0FFFFFFF, cycles, struct.unpack_from(f"<{words}I", data, at)
            at += 4 * words
    except struct.error:
        raise TraceError(f"Xen's trace ends within a record, at byte {at}") from None


def kind(words: tuple[int, ...]) -> str:
    """The kind of a traced hypercall: its name in xen.h, for grants its command."""
    if not words:
        return "unknown"
    op = words[0] & _OP
    if op == GRANT_OP and len(words) > 1:
        return GRANT_COMMANDS.get(words[1], "grant_other")
    return OPS.get(op, f"hypercall {op}")


def read_trace(data: bytes, domain: int = 0) -> Trace:
    """Count a domain's part of a trace; TraceError if it is damaged, empty or has lost records."""
    cpus: dict[int, _Cpu] = {}
    cpu, count, lost = _Cpu(), _Count(), 0
    for event, cycles, words in records(data):
        if event == _CPU_CHANGE and words:
            cpu = cpus.setdefault(words[0], _Cpu())
            continue
        if cycles is not None:
            count.times.append(cycles)
        if event == _LOST and words:
            lost += words[0]
        elif event & ~_STATES == _RUNSTATE & ~_STATES or event == _CONTINUE:
            _follow(cpu, event, words)
        elif cpu.domain == domain:
            _add(count, cpu, event, words)
    for one in cpus.values():
        _flush(count, one)
    if lost:
        raise TraceError(f"Xen's trace lost {lost} records")
    if len(count.times) < 2:
        raise TraceError("Xen's trace is empty")
    cycles = max(count.times) - min(count.times)
    return Trace(cycles, dict(count.calls), count.traps, count.mapped, count.unmapped, count.flushes)


def _follow(cpu: _Cpu, event: int, words: tuple[int, ...]) -> None:
    """Note which domain runs on the processor from here; a new state of 0 is RUNSTATE_running."""
    if words and (event == _CONTINUE or not (event >> 4) & 0xF):
        cpu.domain = words[0] >> 16


def _add(count: _Count, cpu: _Cpu, event: int, words: tuple[int, ...]) -> None:
    if event in _HYPERCALLS:
        _flush(count, cpu)
        count.calls[kind(words)] += 1
    elif event == _MAP:
        count.mapped += 1
    elif event == _UNMAP:
        count.unmapped += 1
        cpu.unmapping += 1
    elif event & 0x0FFFF000 == _PV_ENTRY:
        count.traps += 1


def _flush(count: _Count, cpu: _Cpu) -> None:
    count.flushes += -(-cpu.unmapping // UNMAP_BATCH)
    cpu.unmapping = 0
