# SPDX-License-Identifier: Apache-2.0
"""Where netback's time goes per frame: processor time of its workers, and their system calls.

Each row of the bench runs twice, once for the times and once for the calls, since counting calls slows them down. Reads
/proc and tracefs.
"""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

from netback.lab.bench.backends import NETBACK
from netback.lab.bench.rows import ROWS, Row
from netback.lab.bench.run import make_guest
from netback.lab.host import Guest, Lab, open_lab
from netback.lab.image import Say
from netback.lab.machine import LabError, Options

_WORKERS = "$(ls /proc/$(cat /run/nb.pid)/task | grep -vx $(cat /run/nb.pid))"
_EVENT = "/sys/kernel/tracing/events/raw_syscalls/sys_enter"
_HITS = re.compile(r"id: (?:sys_)?(\w+)\s*\[\s*\d+\]\s*\} hitcount:\s*(\d+)")


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a frame in one row, in microseconds."""

    row: str
    frames: int
    pace: float
    """Frames per second, iperf3's start and end included."""
    user: float
    system: float
    calls: dict[str, float]


def calls_in(text: str) -> dict[str, int]:
    """Calls by name, from a tracefs histogram."""
    return {name: int(hits) for name, hits in _HITS.findall(text)}


async def _frames(lab: Lab) -> int:
    """Frames that crossed the rings so far, both directions."""
    return sum(
        int(device["counters"][which])
        for device in await lab.netback.list()
        for which in ("rx_frames", "tx_frames")
    )


async def _spent(lab: Lab) -> tuple[float, float]:
    """The workers' processor time so far in seconds: (user, system).

    schedstat is exact but undivided; stat divides it, in ticks (proc(5)).
    """
    text = await lab.dom0(
        f"cd /proc/$(cat /run/nb.pid)/task; for i in {_WORKERS}; do echo $(cut -d' ' -f1 $i/schedstat)"
        " $(sed 's/.*) //' $i/stat | cut -d' ' -f12,13); done"
    )
    lines = [[int(word) for word in line.split()] for line in text.splitlines()]
    whole, user, system = (sum(column) for column in zip(*lines, strict=True))
    share = user / ((user + system) or 1)
    return whole / 1e9 * share, whole / 1e9 * (1 - share)


async def _run(guest: Guest, row: Row, seconds: int) -> None:
    """Run a row, once more if iperf3 lost the test."""
    try:
        await row.measure(guest, seconds)
    except LabError:
        await row.measure(guest, seconds)


async def _count_calls(guest: Guest, row: Row, seconds: int) -> dict[str, float]:
    """System calls per frame, by name."""
    lab = guest.lab
    mine = await lab.dom0(f"for i in {_WORKERS}; do echo common_pid==$i; done")
    trigger = f"hist:keys=id.syscall if {'||'.join(mine.split())}"
    before = await _frames(lab)
    await lab.dom0(f"echo '{trigger}' >{_EVENT}/trigger")
    try:
        await _run(guest, row, seconds)
        text = await lab.dom0(f"cat {_EVENT}/hist")
    finally:
        await lab.dom0(f"echo '!{trigger}' >{_EVENT}/trigger")
    frames = await _frames(lab) - before
    return {name: hits / frames for name, hits in calls_in(text).items()} if frames else {}


async def _cost(guest: Guest, row: Row, seconds: int) -> Cost:
    frames, (user, system) = await _frames(guest.lab), await _spent(guest.lab)
    start = time.monotonic()
    await _run(guest, row, seconds)
    took = time.monotonic() - start
    frames, after = await _frames(guest.lab) - frames, await _spent(guest.lab)
    if not frames:
        raise LabError(f"{row.name}: no frame crossed")
    calls = await _count_calls(guest, row, seconds)
    per = 1e6 / frames
    return Cost(row.name, frames, frames / took, (after[0] - user) * per, (after[1] - system) * per, calls)


async def profile(
    directory: Path, say: Say, *, accel: str, seconds: int, rows: tuple[Row, ...] = ROWS
) -> tuple[dict[str, float], list[Cost]]:
    """The costs of calls in dom0 (microseconds), and the cost of a frame in each row."""
    costs = []
    async with open_lab(directory, say, options=Options(accel=accel), backend="none") as lab:
        call_costs: dict[str, float] = json.loads(
            await lab.dom0("python3 -P -m netback.lab.inside.costs", seconds=120)
        )
        await lab.dom0("mount -t tracefs tracefs /sys/kernel/tracing")
        guest = await make_guest(lab)
        async with NETBACK.serving(guest):
            for row in rows:
                costs.append(await _cost(guest, row, seconds))
                say(f"{row.name}: {costs[-1].frames} frames")
    return call_costs, costs


def render(call_costs: dict[str, float], costs: list[Cost]) -> str:
    """The costs of calls, then a Markdown table."""
    lines = [f"{what}: {price:.3g} us" for what, price in call_costs.items()]
    lines += ["", "| | frames a second | worker's us a frame, user | system | calls a frame | which |"]
    lines.append("|---|---|---|---|---|---|")
    for cost in costs:
        often = sorted(cost.calls.items(), key=lambda item: -item[1])
        names = ", ".join(f"{name} {count:.2g}" for name, count in often if count >= 0.05)
        lines.append(
            f"| {cost.row} | {cost.pace:.0f} | {cost.user:.0f} | {cost.system:.0f}"
            f" | {sum(cost.calls.values()):.1f} | {names} |"
        )
    return "\n".join(lines)
