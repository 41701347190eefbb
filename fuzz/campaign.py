# SPDX-License-Identifier: Apache-2.0
"""Plays all targets in turns, in several processes, for some seconds.

A process that dies or hangs is also a finding: each process writes to shared memory which case it plays next.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import SynchronizedArray
from pathlib import Path
from typing import Any

from fuzz import kept
from fuzz.targets import TARGETS, Target

TURN_SECONDS = 0.25
HANG_SECONDS = 60.0
STRIDE = 1 << 40
"""The distance between the seeds of two processes, so that no case is played twice."""
MAX_KEPT = 5
"""Files for one target and process; further failures are only counted."""
MAX_SHRINK = 300
SPAWN = multiprocessing.get_context("spawn")


@dataclass(slots=True)
class Tally:
    """The counts of one target."""

    operations: int = 0
    cases: int = 0
    seconds: float = 0.0
    failures: int = 0

    def add(self, other: Tally) -> None:
        self.operations += other.operations
        self.cases += other.cases
        self.seconds += other.seconds
        self.failures += other.failures


@dataclass(slots=True)
class Score:
    """The counts of all targets, and the files of failing cases."""

    tallies: dict[str, Tally]
    failures: list[Path] = field(default_factory=list)

    @classmethod
    def of(cls, targets: Sequence[Target]) -> Score:
        return cls({target.name: Tally() for target in targets})

    def add(self, other: Score) -> None:
        for name, tally in other.tallies.items():
            self.tallies[name].add(tally)
        self.failures += other.failures


def trouble(target: Target, case: Any) -> str:
    """Play a case; returns the traceback of its failure, or ""."""
    try:
        target.play(case)
    except Exception:  # any exception of a target is a finding
        return traceback.format_exc()
    return ""


def shrunk(target: Target, case: Any) -> Any:
    """The case with the fewest operations that still fail; halves are removed first, single operations last."""
    size, tries = len(getattr(case, "ops", ())) // 2, 0
    while size and tries < MAX_SHRINK:
        at = 0
        while at < len(case.ops) and tries < MAX_SHRINK:
            shorter = replace(case, ops=case.ops[:at] + case.ops[at + size :])
            tries += 1
            if trouble(target, shorter):
                case = shorter
            else:
                at += size
        size //= 2
    return case


def play(target: Target, seed: int, tally: Tally, directory: Path = kept.FAILURES) -> Path | None:
    """Play one case; if it fails, shrink it, keep it and return its file."""
    began, case = time.monotonic(), target.case(seed)
    tally.cases += 1
    try:
        tally.operations += target.play(case)
    except Exception:
        tally.failures += 1
        if tally.failures > MAX_KEPT:
            return None
        return kept.save(target, seed, shrunk(target, case), traceback.format_exc(), directory)
    finally:
        tally.seconds += time.monotonic() - began
    return None


def _work(names: list[str], seconds: float, seed: int, note: Any, out: Connection) -> None:
    """Play each target in turn for some seconds. `note` holds the target's index, the seed, and the time in seconds."""
    faulthandler.enable()
    targets = [TARGETS[name] for name in names]
    score, end = Score.of(targets), time.monotonic() + seconds
    while time.monotonic() < end:
        for place, target in enumerate(targets):
            turn = min(end, time.monotonic() + TURN_SECONDS)
            while time.monotonic() < turn:
                note[:] = [place, seed, int(time.monotonic())]
                path = play(target, seed, score.tallies[target.name])
                score.failures += [path] if path else []
                seed += 1
    out.send(score)


@dataclass(slots=True)
class _Job:
    process: BaseProcess
    note: SynchronizedArray[int]
    out: Connection

    def hangs(self) -> bool:
        return self.note[2] > 0 and time.monotonic() - self.note[2] > HANG_SECONDS

    def last_case(self, targets: Sequence[Target]) -> Score:
        """The score of a process that died: the case that it was playing."""
        place, seed = self.note[0], self.note[1]
        score, target = Score.of(targets), targets[place]
        score.tallies[target.name].failures += 1
        text = f"the process ended with {self.process.exitcode} at this case"
        score.failures.append(kept.save(target, seed, target.case(seed), text))
        return score


def _start(names: list[str], seconds: float, seed: int) -> _Job:
    note, (inward, outward) = SPAWN.Array("q", 3), SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=_work, args=(names, seconds, seed, note, outward))
    process.start()
    outward.close()
    return _Job(process, note, inward)


def run(targets: Sequence[Target], seconds: float, seed: int, jobs: int) -> Score:
    """Play the targets in `jobs` processes; return their score."""
    score, names = Score.of(targets), [target.name for target in targets]
    running = [_start(names, seconds, seed + STRIDE * number) for number in range(jobs)]
    while running:
        wait([job.out for job in running], timeout=1)
        for job in [job for job in running if job.out.poll() or job.hangs()]:
            running.remove(job)
            score.add(_end(job, targets))
    return score


def _end(job: _Job, targets: Sequence[Target]) -> Score:
    try:
        if not job.out.poll():
            job.process.kill()
            raise EOFError
        found: Score = job.out.recv()
    except EOFError:
        job.process.join()
        return job.last_case(targets)
    job.process.join()
    return found
