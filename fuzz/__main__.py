# SPDX-License-Identifier: Apache-2.0
"""The command `python -m fuzz`: its arguments and its printed result."""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import sys
from pathlib import Path

from fuzz import campaign, kept
from fuzz.targets import TARGETS, Target


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fuzz", description="Random and hostile input for some seconds."
    )
    parser.add_argument("--seconds", type=float, default=60, help="duration (60)")
    parser.add_argument(
        "--target", action="append", choices=TARGETS, help="this target only; may be repeated"
    )
    parser.add_argument("--seed", type=int, default=secrets.randbits(40), help="the first seed (random)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (one for each core)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="play the case of a kept file again")
    return parser.parse_args()


def report(score: campaign.Score, targets: list[Target], seed: int) -> None:
    print(f"{'target':<12}{'operations':>14}{'per second':>12}{'cases':>10}{'failures':>10}")
    for target in targets:
        tally = score.tallies[target.name]
        rate = tally.operations / tally.seconds if tally.seconds else 0
        print(
            f"{target.name:<12}{tally.operations:>14,}{rate:>12,.0f}{tally.cases:>10,}{tally.failures:>10,}"
        )
    print(f"{'total':<12}{sum(tally.operations for tally in score.tallies.values()):>14,}  (seed {seed})")
    for path in score.failures:
        print(f"kept: {path}\n      {shlex.join([sys.executable, '-m', 'fuzz', '--replay', str(path)])}")


def main() -> int:
    options = arguments()
    if options.replay:
        target, case = kept.load(options.replay)
        print(f"{target.name}: {target.play(case):,} operations, the invariant holds")
        return 0
    targets = [TARGETS[name] for name in options.target or TARGETS]
    score = campaign.run(targets, options.seconds, options.seed, options.jobs)
    report(score, targets, options.seed)
    return 1 if score.failures else 0


if __name__ == "__main__":
    sys.exit(main())
