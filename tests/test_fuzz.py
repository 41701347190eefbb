# SPDX-License-Identifier: Apache-2.0
"""Each fuzz target for a fixed number of cases; a failing case is found, made small, kept and replayed."""

from __future__ import annotations

import random
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fuzz import campaign, kept
from fuzz.__main__ import report
from fuzz.targets import TARGETS, Target

from netback.abi.netif import ExtraType, TxFlag
from netback.abi.netif_control import CtrlType
from netback.abi.netif_keys import Key
from netback.vif.features import REQUIRED, SPLIT
from tests.dataplane.ring_cases import Post

ROOT = Path(__file__).parents[1]
CASES = {
    "rings": 100,
    "keys": 2000,
    "control": 200,
    "offload": 200,
    "antispoof": 200,
    "xs_wire": 1500,
    "store": 200,
    "hypervisor": 100,
    "capture": 100,
    "switch": 100,
    "sandbox": 500,
    "recording": 60,
}


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_fails(name: str) -> None:
    target = TARGETS[name]
    for seed in range(CASES[name]):
        assert target.play(target.case(seed)) > 0


@pytest.mark.parametrize("name", TARGETS)
def test_a_case_is_what_its_file_says(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    for seed in range(10):
        case = target.case(seed)
        assert case == target.case(seed)
        path = kept.save(target, seed, case, "a line\nanother", tmp_path)
        assert kept.load(path) == (target, case)


def test_every_part_of_the_protocol_is_drawn() -> None:
    """Each key of either end, each control message and each extra info: a new one is not forgotten here."""
    cases = {name: [TARGETS[name].case(seed) for seed in range(300)] for name in ("keys", "control", "rings")}
    written = {key for case in cases["keys"] for key, _ in case.ops}
    offered = {key for case in cases["keys"] for key, _ in case.offered}
    assert {f"queue-1/{key}" for key in (*REQUIRED, *SPLIT)} <= written
    assert set(map(str, Key)) <= written | offered
    assert set(CtrlType) <= {kind for case in cases["control"] for kind, *_ in case.ops}
    posted = [op for case in cases["rings"] for op in case.ops if isinstance(op, Post) and op.ring == "tx"]
    extras = {op.slots[1][0] for op in posted if len(op.slots) > 1 and op.slots[0][6] & TxFlag.EXTRA_INFO}
    received = (
        {case.config.xdp for case in cases["rings"]},
        {bool(case.config.hash_types) for case in cases["rings"]},
    )
    assert set(ExtraType) <= extras
    assert received == ({False, True}, {False, True})


@pytest.mark.parametrize("name", TARGETS)
def test_each_target_says_what_must_hold(name: str) -> None:
    assert re.fullmatch(r"[A-Z].+\.", TARGETS[name].invariant)


def test_a_file_runs_nothing() -> None:
    with pytest.raises(KeyError):
        kept.parse("print('hello')", TARGETS["rings"])
    with pytest.raises(ValueError, match="malformed"):
        kept.parse("Case.__init__.__globals__", TARGETS["rings"])


@dataclass(frozen=True)
class Numbers:
    ops: tuple[int, ...]


def no_sevens(case: Numbers) -> int:
    assert 7 not in case.ops, "a seven"
    return len(case.ops)


SEVENS = Target(
    "sevens", "No seven.", lambda rng: Numbers(tuple(rng.choices(range(9), k=40))), no_sevens, (Numbers,)
)


def test_a_failure_is_counted_kept_and_made_small(tmp_path: Path) -> None:
    tally = campaign.Tally()
    path = campaign.play(SEVENS, 1, tally, tmp_path)
    assert path is not None
    assert (tally.cases, tally.failures) == (1, 1)
    text = path.read_text()
    assert "a seven" in text
    assert kept.parse(text.splitlines()[-1], SEVENS) == Numbers((7,))


def test_a_case_that_holds_is_only_counted(tmp_path: Path) -> None:
    tally = campaign.Tally()
    harmless = replace(SEVENS, make=lambda rng: Numbers((rng.randrange(7),)))
    assert campaign.play(harmless, random.getrandbits(20), tally, tmp_path) is None
    assert (tally.operations, tally.failures, [*tmp_path.iterdir()]) == (1, 0, [])


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fuzz", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_counts(tmp_path: Path) -> None:
    result = fuzz("--seconds", "1", "--jobs", "2", "--target", "store", "--target", "xs_wire", "--seed", "5")
    assert result.returncode == 0, result.stdout + result.stderr
    counts = [int(re.sub(r"\D", "", line.split()[1])) for line in result.stdout.splitlines()[1:]]
    assert counts[-1] == sum(counts[:-1]) > 0


def test_the_reported_command_replays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = TARGETS["store"]
    score = campaign.Score.of([target])
    score.failures.append(kept.save(target, 3, target.case(3), "nothing", tmp_path))
    report(score, [target], 3)
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("store: ")
