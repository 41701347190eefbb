# SPDX-License-Identifier: Apache-2.0
"""`make bench`: runs the parts, prints their tables, writes out/bench.json and out/bench.png."""

from __future__ import annotations

import argparse
import signal
import sys
from importlib import import_module
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import Progress

from .backends import add_tree
from .native import OUT
from .report import Row, draw, show, write_json

WIDTH = 110
PARTS = (
    "rings",
    "queues",
    "control",
    "endtoend",
    "af_xdp",
    "passt",
    "switch",
    "idle",
    "subscription",
    "capture",
    "store",
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="this part alone; may be repeated")
    parser.add_argument(
        "--quick", action="store_true", help="few and short rounds: shows that every part runs"
    )
    parser.add_argument("--rounds", type=int, help="rounds of every backend (5; --quick 1)")
    parser.add_argument("--seconds", type=float, help="duration of each measurement (2; --quick 1)")
    parser.add_argument(
        "--against", type=Path, action="append", default=[], metavar="TREE",
        help="end to end, compare with the netback of another tree, built in place; may be repeated",
    )  # fmt: skip
    return parser.parse_args()


def interrupted(number: int, frame: FrameType | None) -> None:
    """Leave through every context, so that no process and no namespace of the bench stays."""
    sys.exit(128 + number)


def main() -> None:
    chosen = arguments()
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    rounds = chosen.rounds or (1 if chosen.quick else 5)
    seconds = chosen.seconds or (1 if chosen.quick else 2)
    for tree in chosen.against:
        add_tree(tree)
    rows: list[Row] = []
    with Progress(console=console, transient=True) as progress:
        for part in chosen.only or PARTS:
            rows += import_module(f".{part}", __package__).measure(rounds, seconds, progress)
    show(rows, console)
    OUT.mkdir(exist_ok=True)
    write_json(rows, OUT / "bench.json")
    names = ["bench.json"]
    if measured := [row for row in rows if row.samples]:
        draw(measured, OUT / "bench.png")
        names.append("bench.png")
    console.print(f"written: {', '.join(f'{OUT.parent.name}/out/{name}' for name in names)}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
