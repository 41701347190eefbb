# SPDX-License-Identifier: Apache-2.0
"""What a frame costs in dom0, counted alike for xen-netback, QEMU's qnic and netback.

Each row of the bench runs twice for each backend: once undisturbed, for the pace, the processor time, wake-ups and
interrupts; once with Xen's tracer and the kernel's histograms, for the rest. Both look at a stretch in the middle of
the flow. docs/speed.md says what each count is.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from netback.errors import NetbackError
from netback.lab.bench import backends
from netback.lab.bench.counters import BYTE_CALLS, Span, hits, span, threads
from netback.lab.bench.made import Made, made
from netback.lab.bench.rows import ROWS, Row
from netback.lab.bench.run import make_guest
from netback.lab.bench.xentrace import TraceError, read_trace
from netback.lab.host import Guest, Lab, open_lab
from netback.lab.image import Say
from netback.lab.machine import LabError, Options

COUNTS = {
    "frames": "frames",
    "system_calls": "system calls",
    "grant_hypercalls": "grant hypercalls",
    "event_hypercalls": "event hypercalls",
    "other_hypercalls": "other hypercalls",
    "copies": "grant copies",
    "bytes_by_xen": "bytes copied by Xen",
    "bytes_by_kernel": "by the kernel",
    "bytes_by_backend": "by the backend",
    "pages_mapped": "pages mapped",
    "pages_unmapped": "unmapped",
    "tlb_flushes": "TLB flushes",
    "wakeups": "wake-ups",
    "interrupts": "interrupts",
}
"""Every count of a frame: its name in JSON and in price lists, and its column."""
HEADER_BYTES = 128
"""What xen-netback copies of a frame from the guest before it maps the rest: XEN_NETBACK_TX_COPY_LEN."""
MIN_FRAMES = 50
"""With fewer, what dom0 does besides would count as theirs."""
_TRACE, _READY = "counting.trace", "/run/counting"
FILE = "profile.json"
"""The results, in the directory of consoles and logs."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Where the costs of a backend are found in dom0."""

    backend: backends.LabBackend
    interrupts: str
    """What begins the names of its event channels in /proc/interrupts: a regular expression."""
    link: Callable[[Guest], str]
    pid_file: str = ""
    main: bool = False
    """Whether the process's first thread moves frames."""
    kthreads: str = r"vhost-{pid}"


SUBJECTS = (
    Subject(backends.KERNEL, r"vif\d+\.\d+-", lambda guest: guest.vif, kthreads=r"vif\d+\.\d+-.*"),
    Subject(backends.NETBACK, "evtchn:(python|netback)", lambda guest: guest.vif, backends.NETBACK_PID),
    Subject(backends.QNIC, "evtchn:xen-qemu", lambda _: backends.QNIC_TAP, backends.QNIC_PID, main=True),
)


@dataclass(frozen=True, slots=True)
class Account:
    """What one frame of either direction cost a backend in one row."""

    row: str
    backend: str
    fault: str = ""
    """Why nothing was counted."""
    pace: float = 0.0
    """Frames per second, undisturbed."""
    counted_pace: float = 0.0
    """Frames per second while calls were counted."""
    bytes_to_guest: float = 0.0
    bytes_from_guest: float = 0.0
    user: float = 0.0
    system: float = 0.0
    """Microseconds of the backend's threads, undisturbed."""
    counts: Mapping[str, float] = field(default_factory=dict)
    """By the names of COUNTS; what could not be counted is missing."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Why a count is missing."""
    derived: Mapping[str, str] = field(default_factory=dict)
    """From what a count was derived."""
    calls: Mapping[str, float] = field(default_factory=dict)
    """System calls by name."""
    hypercalls: Mapping[str, float] = field(default_factory=dict)
    """dom0's hypercalls by kind, those of its other programs included."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything that the command found."""

    made: Made
    seconds: int
    call_costs: Mapping[str, float]
    """Microseconds of a call in the lab's dom0."""
    accounts: Sequence[Account]


async def _observe(guest: Guest, row: Row, subject: Subject, seconds: int, *, trace: bool) -> dict[str, Any]:
    """Run the row, and the counters in its midst; once more if no frames came, for iperf3 sometimes loses a test."""
    try:
        return await _observe_once(guest, row, subject, seconds, trace=trace)
    except LabError:
        return await _observe_once(guest, row, subject, seconds, trace=trace)


async def _observe_once(
    guest: Guest, row: Row, subject: Subject, seconds: int, *, trace: bool
) -> dict[str, Any]:
    lab = guest.lab
    pid = int(await lab.dom0(f"cat {subject.pid_file}")) if subject.pid_file else 0
    job = {
        "link": subject.link(guest),
        "seconds": seconds,
        "pid": pid,
        "main": subject.main,
        "kthreads": subject.kthreads.format(pid=pid),
        "ready": _READY,
        "trace": f"/tmp/{_TRACE}" if trace else "",
    }
    await lab.dom0(f"rm -f {_READY}")
    command = f"python3 -P -m netback.lab.inside.counting '{json.dumps(job)}'"
    counting = asyncio.create_task(lab.dom0(command, seconds=seconds + 120))
    with suppress(LabError):  # a lost summary of iperf3 or ping changes nothing of what was counted
        await lab.until(lambda: lab.succeeds(f"test -e {_READY}"), "the counters are ready")
        await row.measure(guest, 3 * seconds + 3)
    found: dict[str, Any] = json.loads(await counting)
    return found


async def _trace(lab: Lab) -> bytes:
    """Fetch Xen's trace from dom0."""
    await lab.dom0(f"mv /tmp/{_TRACE} /lab/{_TRACE}", seconds=120)
    path = lab.machine.directory / _TRACE
    data = await asyncio.to_thread(path.read_bytes)
    path.unlink()
    return data


async def _account(guest: Guest, row: Row, subject: Subject, seconds: int) -> Account:
    name = subject.backend.name
    try:
        quiet = span(await _observe(guest, row, subject, seconds, trace=False), subject.interrupts)
        found = await _observe(guest, row, subject, seconds, trace=True)
        counted = span(found, subject.interrupts)
        fewest = min(quiet.frames, counted.frames)
        if fewest < MIN_FRAMES:
            return Account(row.name, name, f"only {fewest} frames crossed while they were counted")
        trace = b"" if "trace" in found["missing"] else await _trace(guest.lab)
    except NetbackError as error:
        return Account(row.name, name, str(error).splitlines()[0])
    copied = {} if subject.pid_file != backends.NETBACK_PID else await _own_copies(guest.lab)
    return account(row.name, name, quiet, counted, found, trace, copied)


async def _own_copies(lab: Lab) -> dict[str, int]:
    """How often netback itself copied a frame's bytes, since its start."""
    names = ("rx_staged", "tx_staged", "rx_segmented", "tx_segmented")
    devices = await lab.netback.list()
    return {name: sum(int(device["counters"][name]) for device in devices) for name in names}


def account(
    row: str,
    backend: str,
    quiet: Span,
    counted: Span,
    found: Mapping[str, Any],
    trace: bytes,
    own_copies: Mapping[str, int],
) -> Account:
    """Divide what was counted by the frames of its stretch; `found` is what inside/counting.py printed."""
    counts: dict[str, float] = {
        "frames": 1.0,
        "wakeups": quiet.wakeups / quiet.frames,
        "interrupts": quiet.interrupts / quiet.frames,
    }
    missing = {"copies": found["missing"]["copies"]} if "copies" in found["missing"] else {}
    derived: dict[str, str] = {}
    calls = hits(found, "calls", threads(found))
    counts["system_calls"] = sum(one.count for one in calls.values()) / counted.frames
    if "copies" in found["end"]["histograms"]:
        counts["copies"] = sum(one.total for one in hits(found, "copies").values()) / counted.frames
    _copied(backend, counted, found, own_copies, counts, missing, derived)
    hypercalls: dict[str, float] = {}
    try:
        if "trace" in found["missing"]:
            raise TraceError(found["missing"]["trace"])
        _traced(trace, float(found["hz"]), counted, counts, hypercalls)
        derived["tlb_flushes"] = "pages unmapped: Xen flushes once for each 32 pages of one hypercall"
    except TraceError as error:
        missing |= dict.fromkeys(
            (name for name in COUNTS if "hypercalls" in name or "pages" in name or name == "tlb_flushes"),
            str(error),
        )
    per = 1e6 / quiet.frames
    return Account(
        row,
        backend,
        pace=quiet.frames / quiet.seconds,
        counted_pace=counted.frames / counted.seconds,
        bytes_to_guest=counted.bytes_to_guest / counted.frames,
        bytes_from_guest=counted.bytes_from_guest / counted.frames,
        user=quiet.user * per,
        system=quiet.system * per,
        counts={name: counts[name] for name in COUNTS if name in counts},
        missing=missing,
        derived=derived,
        calls={name: one.count / counted.frames for name, one in calls.items()},
        hypercalls=hypercalls,
    )


def _copied(
    backend: str,
    counted: Span,
    found: Mapping[str, Any],
    own_copies: Mapping[str, int],
    counts: dict[str, float],
    missing: dict[str, str],
    derived: dict[str, str],
) -> None:
    """Bytes copied per frame, and by which part. Xen counts no bytes: they follow from the link's."""
    to, back, frames = counted.bytes_to_guest, counted.bytes_from_guest, counted.frames
    returned = hits(found, "returned", threads(found))
    by_calls = sum(one.total for name, one in returned.items() if name in BYTE_CALLS)
    if backend == "kernel":
        headers = min(back, HEADER_BYTES * counted.from_guest)
        counts |= {"bytes_by_xen": (to + headers) / frames, "bytes_by_kernel": 0.0, "bytes_by_backend": 0.0}
        derived["bytes_by_xen"] = (
            f"the link's bytes: all to the guest, and the first {HEADER_BYTES} of each frame from it"
        )
        derived["bytes_by_kernel"] = derived["bytes_by_backend"] = "xen-netback's source: no other copy"
        return
    counts["bytes_by_kernel"] = ((to + back) if counted.vhost else by_calls) / frames
    if counted.vhost:
        derived["bytes_by_kernel"] = "the link's bytes: vhost copies each once, without a system call"
    if backend == "qnic":
        counts["bytes_by_xen"] = 0.0
        derived["bytes_by_xen"] = "QEMU's source: it maps every page"
        missing["bytes_by_backend"] = "QEMU does not count what it copies to and from mapped pages"
        return
    counts["bytes_by_xen"] = (to + back) / frames
    derived["bytes_by_xen"] = "the link's bytes: each is copied between the guest and netback once"
    if any(own_copies.values()):
        missing["bytes_by_backend"] = "netback counts its own copies (staged, segmented), not their bytes"
    else:
        counts["bytes_by_backend"] = 0.0
        derived["bytes_by_backend"] = "netback's counters: no frame was staged or segmented"


def _traced(
    data: bytes, hz: float, counted: Span, counts: dict[str, float], hypercalls: dict[str, float]
) -> None:
    """Add what Xen's trace says. It is a little longer than the stretch, so its counts are per second first."""
    trace = read_trace(data)
    if not hz:
        raise TraceError("/proc/cpuinfo does not say how fast timestamps count")
    per = counted.seconds * hz / trace.cycles / counted.frames
    hypercalls |= {kind: number * per for kind, number in sorted(trace.calls.items())}
    grants = sum(number for kind, number in hypercalls.items() if kind.startswith("grant_"))
    events = hypercalls.get("event_channel_op", 0.0)
    counts |= {
        "grant_hypercalls": grants,
        "event_hypercalls": events,
        "other_hypercalls": sum(hypercalls.values()) - grants - events,
        "pages_mapped": trace.mapped * per,
        "pages_unmapped": trace.unmapped * per,
        "tlb_flushes": trace.flushes * per,
    }


async def profile(
    directory: Path,
    say: Say,
    *,
    accel: str,
    seconds: int,
    subjects: Sequence[Subject] = SUBJECTS,
    rows: Sequence[Row] = ROWS,
) -> Profile:
    """Count every row of every backend in one boot; a row that fails says why, and the rest goes on.

    What is known after each backend is in profile.json, whatever comes then.
    """
    async with open_lab(directory, say, options=Options(accel=accel), backend="none") as lab:
        return await profile_in(lab, say, seconds, subjects, rows)


async def profile_in(
    lab: Lab, say: Say, seconds: int, subjects: Sequence[Subject], rows: Sequence[Row]
) -> Profile:
    """Count everything in a running lab whose vifs no backend serves."""
    accounts: list[Account] = []
    result = Profile(await made(lab), seconds, await _call_costs(lab), accounts)
    guest = await make_guest(lab)
    for subject in subjects:
        if not await lab.succeeds(f"xl domid {guest.name}"):
            say("the guest's kernel has crashed: a new guest")
            guest = await make_guest(lab)
        try:
            async with subject.backend.serving(guest):
                for row in rows:
                    done = await _account(guest, row, subject, seconds)
                    accounts.append(done)
                    say(f"{row.name}, {done.backend}: {done.fault or f'{done.pace:.0f} frames a second'}")
        except NetbackError as error:
            say(f"{subject.backend.name}: {error}")
        names = [row.name for row in rows]
        accounts.sort(key=lambda one: names.index(one.row))  # stable: backends in turn
        (lab.machine.directory / FILE).write_text(as_json(result))
    return result


async def _call_costs(lab: Lab) -> dict[str, float]:
    """Microseconds of calls in the lab's dom0."""
    costs: dict[str, float] = json.loads(
        await lab.dom0("python3 -P -m netback.lab.inside.costs", seconds=120)
    )
    return costs


def as_json(result: Profile) -> str:
    """What `--json` prints, and `netback lab estimate` reads."""
    return msgspec.json.format(msgspec.json.encode(result), indent=1).decode()
