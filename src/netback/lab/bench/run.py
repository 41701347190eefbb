# SPDX-License-Identifier: Apache-2.0
"""The lab's bench: Linux's xen-netback, QEMU's qnic and netback serve the same guest in one boot, in turns.

How each backend starts and ends is in backends.py, what is measured in rows.py, what comes of it in report.py.
"""

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from netback.errors import ConfigError, NetbackError
from netback.lab.bench.backends import LabBackend
from netback.lab.bench.report import Line, evaluate, write
from netback.lab.bench.rows import ROWS, Row, Sample
from netback.lab.host import Guest, Lab, open_lab
from netback.lab.image import Say
from netback.lab.machine import LabError, Options
from netback.lab.tools import serve_iperf

TRIES = 2
GIVE_UP = 2
"""After so many failures in succession a backend's row is skipped for the rest of the boot: a stall takes a minute."""


async def _dom0_seconds(lab: Lab) -> float:
    return float(await lab.dom0("xl list 0 | awk 'NR==2 {print $NF}'"))


async def _sample(guest: Guest, row: Row, backend: LabBackend, at: tuple[int, int], seconds: int) -> Sample:
    """Measure a row, trying twice since iperf3 sometimes loses a test; a failed try counts for nothing."""
    for _ in range(TRIES):
        before = await _dom0_seconds(guest.lab)
        try:
            value, work = await row.measure(guest, seconds)
        except NetbackError as error:
            fault = str(error).splitlines()[0]
            continue
        spent = await _dom0_seconds(guest.lab) - before
        if value > 0:
            return Sample(row.name, backend.name, *at, value, spent / work)
        fault = "nothing arrived"
    return Sample(row.name, backend.name, *at, math.nan, math.nan, fault)


async def make_guest(lab: Lab) -> Guest:
    """A guest without a vif that runs iperf3's server."""
    guest = await lab.create("bench", vif=(), memory=512)
    await serve_iperf(guest)
    return guest


def given_up(samples: Sequence[Sample], row: str, backend: str, at: tuple[int, int]) -> Sample | None:
    """The sample to record instead of another try, if this boot's last tries all failed; else None."""
    key = at[0], row, backend
    faults = [one.fault for one in samples if (one.boot, one.row, one.backend) == key][-GIVE_UP:]
    if len(faults) < GIVE_UP or not all(faults):
        return None
    return Sample(row, backend, *at, math.nan, math.nan, faults[-1])


async def measure_boot(
    lab: Lab,
    samples: list[Sample],
    boot: int,
    rounds: int,
    seconds: int,
    backends: Sequence[LabBackend],
    say: Say,
) -> None:
    """Append every row of every backend to `samples`, round by round; a failure never stops the run."""
    guest = await make_guest(lab)
    for number in range(rounds):
        for backend in backends:
            taken: list[Sample] = []
            if not await lab.succeeds(f"xl domid {guest.name}"):
                say("the guest's kernel has crashed: a new guest")
                guest = await make_guest(lab)
            try:
                async with backend.serving(guest):
                    for row in ROWS:
                        at = boot, number
                        skipped = given_up(samples, row.name, backend.name, at)
                        taken.append(skipped or await _sample(guest, row, backend, at, seconds))
            except NetbackError as error:
                say(f"{backend.name}: {error}")  # this backend's other rows of the round are missing
            samples += taken
            figures = ", ".join(f"{sample.value:.4g}" for sample in taken)
            say(f"boot {boot + 1} round {number + 1} {backend.name:8} {figures}")


async def bench(
    directory: Path,
    say: Say,
    *,
    accel: str,
    boots: int,
    rounds: int,
    seconds: int,
    backends: Sequence[LabBackend],
) -> tuple[list[Line], Path, Path]:
    """Run all boots; returns the lines and the paths of bench.json and bench.png.

    A machine that dies loses the rest of its boot. The files are written after each boot.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError("the bench draws with matplotlib: pip install 'netback[lab]'")
    samples: list[Sample] = []
    for boot in range(boots):
        place = directory / f"boot-{boot + 1}"
        try:
            async with open_lab(place, say, options=Options(accel=accel), backend="none") as lab:
                await measure_boot(lab, samples, boot, rounds, seconds, backends, say)
        except LabError as error:
            say(f"boot {boot + 1} ended early: {error}")
        lines = evaluate(samples, backends)
        data, picture = write(samples, lines, backends, directory)
    return lines, data, picture
