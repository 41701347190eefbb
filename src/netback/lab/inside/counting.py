# SPDX-License-Identifier: Apache-2.0
"""Reads dom0's counters at the beginning and at the end of a stretch of a flow; run it in dom0.

The argument is a job as JSON (Job's fields). It waits until frames cross the link and the flow has settled, so that the
start of programs is not counted, and prints JSON: two snapshots of texts of /proc, /sys and tracefs, as the kernel
wrote them. Nothing is interpreted here: bench/counters.py does that, on the machine that has the time.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

XENTRACE = "/usr/lib/xen-4.20/bin/xentrace"
EVENTS = "0x323000"
"""public/trace.h: runstate changes, entries of PV domains and calls of multicalls, grants mapped and unmapped."""
BUFFER_PAGES = 1024
"""Of each processor: some seconds of trace if xentrace itself gets no processor."""
TRACING = Path("/sys/kernel/tracing")
COPIES = "gnttab_batch_copy"
"""Linux's function through which every grant copy goes: xen-netback's and those of /dev/xen/gntdev."""
BEGIN_FRAMES = 30
BEGIN_SECONDS = 30.0
SETTLE_SECONDS = 0.7
END_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Job:
    """What to count; `pid` 0 means threads of the kernel alone."""

    link: str
    seconds: float
    pid: int
    main: bool
    """Whether the process's first thread moves frames."""
    kthreads: str
    """The names of kernel threads to count, a regular expression."""
    ready: str
    """The file that it makes once it waits for frames."""
    trace: str
    """The file for Xen's trace; "" counts only what costs the frames nothing."""


def link(name: str) -> dict[str, int]:
    """What crossed the link so far, from /proc/net/dev, whose columns are received and then sent (proc_net(5))."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        device, colon, counters = line.partition(":")
        if colon and device.strip() == name:
            words = [int(word) for word in counters.split()]
            return {
                "rx_bytes": words[0],
                "rx_packets": words[1],
                "tx_bytes": words[8],
                "tx_packets": words[9],
            }
    raise SystemExit(f"no link is called {name}")


def frames(name: str) -> int:
    """Frames of both directions."""
    found = link(name)
    return found["rx_packets"] + found["tx_packets"]


def threads(job: Job) -> list[int]:
    """The threads that serve the link, as they are now: vhost's is made at a flow's beginning."""
    found = []
    for place in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):  # it ended
            if re.fullmatch(job.kthreads, place.read_text().strip()):
                found.append(int(place.parent.name))
    if job.pid:
        found += [int(one.name) for one in Path(f"/proc/{job.pid}/task").iterdir()]
    return [tid for tid in sorted(set(found)) if job.main or tid != job.pid]


def snapshot(job: Job, tids: list[int], histograms: dict[str, Path]) -> dict[str, Any]:
    """Every text, with the time in seconds."""
    tasks = {}
    for tid in tids:
        place = Path(f"/proc/{tid}")
        with suppress(OSError):  # it ended
            tasks[tid] = {
                name: (place / name).read_text() for name in ("comm", "status", "stat", "schedstat")
            }
    return {
        "time": time.monotonic(),
        "link": link(job.link),
        "interrupts": Path("/proc/interrupts").read_text(),
        "tasks": tasks,
        "histograms": {name: (event / "hist").read_text() for name, event in histograms.items()},
    }


@contextmanager
def trigger(event: Path, text: str) -> Iterator[None]:
    """A histogram of a tracefs event for the length of the context."""
    place = event / "trigger"
    place.write_text(text)
    try:
        yield
    finally:
        place.write_text(f"!{text}")


@contextmanager
def probe(name: str, function: str, argument: str) -> Iterator[Path]:
    """An event at the entry of a kernel function for the length of the context."""
    _probe_events(f"p:{name} {function} {argument}")
    try:
        yield TRACING / "events/kprobes" / name
    finally:
        _probe_events(f"-:{name}")


def _probe_events(command: str) -> None:
    """Write one command: Python's "a" seeks to the end, which tracefs refuses; "w" would remove all other probes."""
    events = os.open(TRACING / "kprobe_events", os.O_WRONLY | os.O_APPEND)
    try:
        os.write(events, command.encode())
    finally:
        os.close(events)


def start_trace(path: Path) -> "tuple[subprocess.Popen[str] | None, str]":
    """Xen's tracer once it records, or the reason why not."""
    path.unlink(missing_ok=True)
    command = [XENTRACE, "-D", "-S", str(BUFFER_PAGES), "-e", EVENTS, str(path)]
    try:
        tracer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        return None, f"{XENTRACE}: {error.strerror}"
    end = time.monotonic() + 20
    while tracer.poll() is None and time.monotonic() < end:
        if path.exists() and path.stat().st_size:
            return tracer, ""
        time.sleep(0.05)
    tracer.kill()
    _, said = tracer.communicate()
    lines = said.strip().splitlines() or ["it recorded nothing in 20 s"]
    return None, f"xentrace: {lines[-1]}"


def count(job: Job, histograms: dict[str, Path], missing: dict[str, str]) -> dict[str, Any]:
    """Two snapshots `seconds` apart, and Xen's trace of what was in between."""
    tracer = None
    if job.trace:
        tracer, fault = start_trace(Path(job.trace))
        if fault:
            missing["trace"] = fault
    tids = threads(job)
    begin = snapshot(job, tids, histograms)
    time.sleep(job.seconds)
    end = snapshot(job, tids, histograms)
    if tracer is not None:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate()
    mhz = re.search(r"cpu MHz\s*: ([\d.]+)", Path("/proc/cpuinfo").read_text())
    return {"begin": begin, "end": end, "missing": missing, "hz": float(mhz[1]) * 1e6 if mhz else 0.0}


@contextmanager
def counting(missing: dict[str, str]) -> Iterator[dict[str, Path]]:
    """The events whose histograms count the system calls of each thread, the bytes that they return, and grant copies.

    They are set up before frames flow and taken away after that, because Linux patches its own code for either, and an
    emulated processor that executes the code at that moment may see half of it: then dom0 crashes.
    """
    enter, leave = (TRACING / "events/raw_syscalls" / name for name in ("sys_enter", "sys_exit"))
    with ExitStack() as undo:
        undo.enter_context(trigger(enter, "hist:keys=common_pid,id.syscall"))
        undo.enter_context(trigger(leave, "hist:keys=common_pid,id.syscall:vals=ret if ret>0"))
        events = {"calls": enter, "returned": leave}
        try:
            copies = undo.enter_context(probe("netback_copies", COPIES, "count=%si:u32"))
            undo.enter_context(trigger(copies, "hist:keys=common_pid:vals=count"))
            events["copies"] = copies
        except OSError as error:
            missing["copies"] = f"no probe at {COPIES}: {error.strerror}"
        yield events


def wait_for_end(name: str) -> None:
    """Wait until hardly any frame crosses the link, not for ever."""
    end = time.monotonic() + END_SECONDS
    crossed = BEGIN_FRAMES
    while crossed >= BEGIN_FRAMES and time.monotonic() < end:
        before = frames(name)
        time.sleep(SETTLE_SECONDS)
        crossed = frames(name) - before


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    if job.trace and not (TRACING / "events").exists():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", str(TRACING)], check=True)
    missing: dict[str, str] = {}
    with ExitStack() as undo:
        histograms = undo.enter_context(counting(missing)) if job.trace else {}
        before, end = frames(job.link), time.monotonic() + BEGIN_SECONDS
        Path(job.ready).touch()
        while frames(job.link) < before + BEGIN_FRAMES:
            if time.monotonic() > end:
                raise SystemExit(
                    f"fewer than {BEGIN_FRAMES} frames crossed {job.link} in {BEGIN_SECONDS:.0f} s"
                )
            time.sleep(0.1)
        time.sleep(SETTLE_SECONDS)
        found = count(job, histograms, missing)
        if histograms:
            wait_for_end(job.link)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
