# SPDX-License-Identifier: Apache-2.0
"""The lab's bench: Linux's xen-netback, QEMU's qnic and netback serve the same guest in one boot, in turns.

How each backend starts and ends is in backends.py, what is measured in rows.py, what is kept in results.py, what comes
of it in report.py.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import msgspec

from netback.directory import Directory
from netback.errors import ConfigError, NetbackError
from netback.lab.bench.backends import LabBackend
from netback.lab.bench.report import draw, evaluate, summary
from netback.lab.bench.results import Plan, Results, begin, save
from netback.lab.bench.rows import ROWS, At, Row, Sample
from netback.lab.host import Guest, Lab, clean_up, open_lab
from netback.lab.image import Say
from netback.lab.machine import LabError, Options
from netback.lab.tools import serve_iperf

TRIES = 2
GIVE_UP = 2
"""After so many failures in succession a backend's row is skipped for the rest of the boot: a stall takes a minute."""

FILE = "bench.json"
"""The results in a run's directory."""


async def _dom0_seconds(lab: Lab) -> float:
    """LabError: xl printed something else; an emulated dom0's kernel sometimes kills a process."""
    printed = await lab.dom0("xl list 0 | awk 'NR==2 {print $NF}'")
    try:
        return float(printed)
    except ValueError as error:
        raise LabError(f"dom0: xl list printed {printed.strip()!r} as a time") from error


async def _sample(guest: Guest, row: Row, backend: LabBackend, at: At, seconds: int) -> Sample:
    """Measure a row, trying twice since iperf3 sometimes loses a test; a failed try counts for nothing."""
    for _ in range(TRIES):
        try:
            before = await _dom0_seconds(guest.lab)
            value, work = await row.measure(guest, seconds)
            spent = await _dom0_seconds(guest.lab) - before
        except NetbackError as error:
            fault = _line(error)
            continue
        if value > 0:
            return Sample(row.name, backend.name, *at, value, spent / work)
        fault = "nothing arrived"
    return Sample(row.name, backend.name, *at, fault=fault)


def _line(error: NetbackError) -> str:
    return str(error).partition("\n")[0]


async def make_guest(lab: Lab) -> Guest:
    """A guest without a vif that runs iperf3's server."""
    guest = await lab.create("bench", vif=(), memory=512)
    await serve_iperf(guest)
    return guest


def given_up(samples: Sequence[Sample], row: str, backend: str, at: At) -> Sample | None:
    """The sample to record instead of another try, if this boot's last tries all failed; else None."""
    key = at[0], row, backend
    faults = [one.fault for one in samples if (one.boot, one.row, one.backend) == key][-GIVE_UP:]
    if len(faults) < GIVE_UP or not all(faults):
        return None
    return Sample(row, backend, *at, fault=faults[-1])


def in_turn(backends: Sequence[LabBackend], at: At) -> Sequence[LabBackend]:
    """The order of a round: every second one goes backwards, so none always comes after the same other one."""
    return backends[::-1] if at[1] % 2 else backends


def filled(
    taken: Sequence[Sample], backends: Sequence[LabBackend], rows: Sequence[Row], at: At, fault: str
) -> list[Sample]:
    """The samples of a round and, with `fault` as the reason, those that these backends lack."""
    have = {(one.backend, one.row) for one in taken}
    wanted = [(backend.name, row.name) for backend in backends for row in rows]
    missing = [
        Sample(row, backend, *at, fault=fault) for backend, row in wanted if (backend, row) not in have
    ]
    return [*taken, *missing]


async def _living(lab: Lab, guest: Guest, say: Say) -> Guest:
    """The guest, or another if its kernel has crashed."""
    if await lab.succeeds(f"xl domid {guest.name}"):
        return guest
    say("the guest's kernel has crashed: a new guest")
    return await make_guest(lab)


class _Run:
    """A run in its directory: the results so far, and the machines that add to them."""

    def __init__(
        self,
        directory: Path,
        say: Say,
        results: Results,
        backends: Sequence[LabBackend],
        rows: Sequence[Row],
        open_host: Callable[..., AbstractAsyncContextManager[Lab]],
    ) -> None:
        self.results = results
        self._directory = directory
        self._say = say
        self._backends = backends
        self._rows = rows
        self._open = open_host

    async def complete(self) -> None:
        """Measure what is left. LabError: TRIES machines in succession did not come up; what was measured is kept."""
        failed = 0
        while left := self.results.left():
            boot = left[0][0]
            try:
                await self._boot([at for at in left if at[0] == boot])
                failed = 0
            except LabError as error:
                failed += 1
                if failed == TRIES:
                    raise
                self._say(f"boot {boot + 1}: {error}; once more")

    async def _boot(self, rounds: Sequence[At]) -> None:
        """Measure these rounds, all of one boot, on a new machine.

        If the machine dies, or a crashed guest cannot be replaced, a round that has begun loses what it lacks, and the
        rounds after it are left to another machine. LabError: no round has begun.
        """
        options = Options(accel=self.results.plan.accel)
        async with self._open(self._place(), self._say, options=options, backend="none") as lab:
            guest = await make_guest(lab)
            for at in rounds:
                taken: list[Sample] = []
                try:
                    for backend in in_turn(self._backends, at):
                        guest = await _living(lab, guest, self._say)
                        taken += await self._turn(guest, backend, at)
                except LabError as error:
                    if not taken:
                        raise
                    self._say(f"boot {at[0] + 1} round {at[1] + 1} ended early: {error}")
                    self._keep(filled(taken, self._backends, self._rows, at, _line(error)))
                    return
                self._keep(taken)

    async def _turn(self, guest: Guest, backend: LabBackend, at: At) -> list[Sample]:
        """One backend's turn in a round, with a sample for every row: a backend that fails is no reason to stop."""
        taken: list[Sample] = []
        fault = ""
        try:
            async with backend.serving(guest):
                for row in self._rows:
                    skipped = given_up(self.results.samples, row.name, backend.name, at)
                    taken.append(skipped or await _sample(guest, row, backend, at, self.results.plan.seconds))
        except NetbackError as error:
            self._say(f"{backend.name}: {error}")
            fault = _line(error)
        figures = ", ".join("n/a" if one.value is None else f"{one.value:.4g}" for one in taken)
        self._say(f"boot {at[0] + 1} round {at[1] + 1} {backend.name:8} {figures}")
        return filled(taken, [backend], self._rows, at, fault)

    def _place(self) -> Path:
        """A directory for the next machine; a run that was killed left large files in an earlier one."""
        for number in itertools.count(1):
            place = self._directory / f"machine-{number}"
            if not place.exists():
                break
            clean_up(place)
        return place

    def _keep(self, taken: Sequence[Sample]) -> None:
        results = self.results.plus(taken, _today())
        lines = evaluate(results.samples, self._backends, self._rows)
        self.results = msgspec.structs.replace(results, rows=summary(lines))
        save(self.results, self._directory / FILE)


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


async def bench(
    directory: Path,
    say: Say,
    plan: Plan,
    backends: Sequence[LabBackend],
    *,
    resume: bool,
    rows: Sequence[Row] = ROWS,
    open_host: Callable[..., AbstractAsyncContextManager[Lab]] = open_lab,
) -> Results:
    """Measure all rounds, or with `resume` those that a run in this directory has not measured; returns the results.

    They are in bench.json after each round, at the end with a picture, bench.png. ConfigError: the directory is in use,
    or its results cannot be continued. LabError: no machine comes up.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError("the bench draws with matplotlib: pip install 'netback[lab]'")
    with Directory.open(directory) as held:
        lock = held.try_lock("lock")
        if lock is None:
            raise ConfigError(f"{directory}: another bench is measuring into it")
        try:
            results = begin(directory / FILE, plan, _today(), resume=resume)
            run = _Run(directory, say, results, backends, rows, open_host)
            await run.complete()
        finally:
            held.unlink("lock")
            os.close(lock)
    draw(evaluate(run.results.samples, backends, rows), backends, directory / "bench.png")
    return run.results
