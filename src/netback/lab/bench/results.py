# SPDX-License-Identifier: Apache-2.0
"""A run of the bench as a file: what was asked for, what was measured so far, and of which source code.

The file is replaced as a whole after each round, so that a run that is cut off at any instant can be continued.
"""

import hashlib
import itertools
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

import netback
from netback.errors import ConfigError, printable
from netback.lab.bench.rows import At, Sample

_MAX_SIZE = 1 << 24
_COMPILED = (".so", ".c", ".pyc")


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of a run; a run is continued under the same ones only."""

    boots: int
    rounds: int
    seconds: int
    accel: str
    columns: tuple[str, ...]
    """The backends; a variant as it was given, NAME=WORDS."""

    def differs(self, other: "Plan") -> str:
        """The first option in which `other` differs, one line; "" if none does."""
        for name in self.__struct_fields__:
            mine, its = getattr(self, name), getattr(other, name)
            if mine != its:
                return f"{name} {printable(str(mine))}, not {printable(str(its))}"
        return ""


class Results(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a run has measured: complete rounds, in order."""

    plan: Plan
    source: str
    """A digest of netback's source code."""
    commit: str
    date: str
    samples: tuple[Sample, ...] = ()
    rows: tuple[dict[str, Any], ...] = ()
    """What comes of the samples, for other programs (report.py)."""
    digest: str = ""

    def left(self) -> list[At]:
        """The rounds that are not measured yet."""
        done = {(one.boot, one.round) for one in self.samples}
        return [
            at for at in itertools.product(range(self.plan.boots), range(self.plan.rounds)) if at not in done
        ]

    def plus(self, samples: Sequence[Sample], date: str) -> Self:
        """These results and one more round, measured on `date`."""
        return msgspec.structs.replace(self, samples=(*self.samples, *samples), date=date)


def begin(path: Path, plan: Plan, date: str, *, resume: bool) -> Results:
    """The results to go on with: those in the file, or empty ones if there is no file.

    ConfigError: there is a file although nothing is to be resumed, it is damaged, or it is of other source code or of
    other options.
    """
    fresh = Results(plan, source_digest(), commit(), date)
    if not path.exists():
        return fresh
    if not resume:
        raise ConfigError(f"{path} has results: continue them with --resume, or choose another directory")
    found = load(path)
    if found.source != fresh.source:
        raise ConfigError(
            f"{path}: measured with other source code (commit {found.commit}, this is {fresh.commit})"
        )
    if difference := found.plan.differs(plan):
        raise ConfigError(f"{path}: measured with other options: {difference}")
    return found


def load(path: Path) -> Results:
    """Read a file that `save` wrote. ConfigError: it cannot be read, or it was damaged or changed since."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_SIZE + 1)
        if len(data) > _MAX_SIZE:
            raise ConfigError(f"{path}: larger than {_MAX_SIZE} bytes; no results of the bench")
        found = msgspec.json.decode(data, type=Results)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: no results of the bench, or damaged: {printable(str(error))}") from error
    if found.digest != _digest(found):
        raise ConfigError(f"{path}: changed since the bench wrote it; measure again in another directory")
    return found


def save(results: Results, path: Path) -> None:
    """Replace the file; after a kill or a power cut it is the old one or the new one."""
    complete = msgspec.structs.replace(results, digest=_digest(results))
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(complete), indent=1))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _digest(results: Results) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(results, digest=""))).hexdigest()


def source_digest(package: Path = Path(netback.__file__).parent) -> str:
    """A digest of the package's source files, with or without a repository."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.suffix not in _COMPILED:
            digest.update(f"{path.relative_to(package)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def commit(package: Path = Path(netback.__file__).parent) -> str:
    """The commit of the package's repository, with "-dirty" if files differ from it; else netback's version."""
    command = ["git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return f"version {netback.__version__}"
    return found
