# SPDX-License-Identifier: Apache-2.0
"""`netback lab`: real Xen inside QEMU."""

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from netback.cli.options import interruptible
from netback.errors import ConfigError

app = typer.Typer(
    name="lab",
    help="Real Xen, dom0 and guests, inside QEMU: to test netback or your own frontend.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Accel = Annotated[str, typer.Option(help="kvm, tcg, or auto: KVM if a trial boot of Xen works.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", help="Directory for consoles and logs, a new or an empty one.  [default: a new one]"
    ),
]


@app.callback()
def _clean_up() -> None:
    interruptible()


def _say(line: str) -> None:
    typer.echo(f"{time.strftime('%H:%M:%S')} {line}", err=True)


def _directory(out: Path | None) -> Path:
    return (out or Path(tempfile.mkdtemp(prefix="netback-lab-"))).resolve()


@app.command()
def up(
    command: Annotated[
        str | None, typer.Option("--exec", metavar="CMD", help="Run this in dom0 instead of giving a prompt.")
    ] = None,
    guest: Annotated[bool, typer.Option(help="Create a guest, g1.")] = True,
    accel: Accel = "auto",
    out: Out = None,
) -> None:
    """Boot a Xen host with netback running and a guest on it, and give a prompt in dom0."""
    from netback.lab.shell import shell

    sys.exit(asyncio.run(shell(_directory(out), _say, accel=accel, command=command, guest=guest)))


@app.command()
def run(
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO", help="boot, ping or reconnect.")],
    kernel: Annotated[
        Path, typer.Option(help="The guest's kernel or unikernel.", exists=True, dir_okay=False)
    ],
    initrd: Annotated[
        Path | None, typer.Option(help="The guest's initial ramdisk.", exists=True, dir_okay=False)
    ] = None,
    options: Annotated[str, typer.Option("--append", help="The guest's kernel command line.")] = "",
    memory: Annotated[int, typer.Option(help="The guest's memory in MiB.")] = 256,
    kind: Annotated[str, typer.Option("--type", help="pv or pvh.")] = "pv",
    address: Annotated[str, typer.Option(help="The address that the guest configures.")] = "10.0.0.2",
    accel: Accel = "auto",
    out: Out = None,
) -> None:
    """Boot your own guest kernel on a Xen host and report what its frontend did."""
    from netback.lab.custom_guest import CustomGuest, run_custom_guest

    guest = CustomGuest(kernel.resolve(), initrd and initrd.resolve(), options, memory, kind, address)
    sys.exit(asyncio.run(run_custom_guest(scenario, guest, _directory(out), _say, accel=accel)))


@app.command(name="test")
def run_scenarios(
    scenarios: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SCENARIO]...", help="Scenarios to run.  [default: the smoke set]"),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="All scenarios, with all their rounds.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="List the scenarios.")] = False,
    accel: Accel = "auto",
    out: Out = None,
) -> None:
    """Run scenarios against Linux's netfront. A failed one prints the last lines of every console."""
    from netback.lab.machine import Options
    from netback.lab.runner import choose, find_scenarios, run_all

    if listing:
        for scenario in find_scenarios().values():
            typer.echo(f"{scenario.name:16} {'smoke' if scenario.smoke else 'full ':5}  {scenario.title}")
        return
    directory, start = _directory(out), time.monotonic()
    chosen = choose(scenarios or [], full=full)
    outcomes = asyncio.run(run_all(chosen, directory, _say, options=Options(accel=accel), full=full))
    failed = [outcome.scenario.name for outcome in outcomes if outcome.fault]
    typer.echo(
        f"{len(outcomes) - len(failed)} of {len(outcomes)} scenarios hold, {time.monotonic() - start:.0f} s"
        f"{'; not: ' + ', '.join(failed) if failed else ''} (consoles: {directory})"
    )
    sys.exit(1 if failed else 0)


@app.command()
def bench(
    boots: Annotated[int, typer.Option(min=1, help="Boots of the machine.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in each boot.")] = 5,
    seconds: Annotated[int, typer.Option(min=1, help="Seconds per measurement.")] = 2,
    without: Annotated[list[str] | None, typer.Option(help="Leave out kernel or qnic.")] = None,
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            metavar="NAME=WORDS",
            help="One more column: netback with this environment (words KEY=VALUE) and these options of"
            " 'netback run', as in 'one=--workers 1'.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a run with the same options and --out was cut off.")
    ] = False,
    table: Annotated[
        Path | None, typer.Option(help="Write the table to this file, a page of Markdown.", dir_okay=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    accel: Accel = "auto",
    out: Out = None,
) -> None:
    """Measure Linux's xen-netback, QEMU's qnic and netback in turns on one guest: ratios, JSON and a picture."""
    from netback.lab.bench.backends import choose_backends
    from netback.lab.bench.report import page
    from netback.lab.bench.results import Plan
    from netback.lab.bench.run import FILE
    from netback.lab.bench.run import bench as measure

    if resume and out is None:
        raise ConfigError("--resume needs --out, the directory of the run to go on with")
    if table and not table.absolute().parent.is_dir():
        raise ConfigError(f"--table {table}: there is no directory {table.absolute().parent}")
    chosen = choose_backends(without or (), variants or ())
    plan = Plan(boots, rounds, seconds, accel, tuple(backend.column for backend in chosen))
    directory = _directory(out)
    _say(f"results: {directory}")
    results = asyncio.run(measure(directory, _say, plan, chosen, resume=resume))
    text = page(results, chosen)
    if table:
        table.write_text(text)
    typer.echo((directory / FILE).read_text() if json else text)


@app.command()
def profile(
    seconds: Annotated[int, typer.Option(min=1, help="Seconds that are counted, of each row twice.")] = 4,
    without: Annotated[list[str] | None, typer.Option(help="Leave out kernel or qnic.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    accel: Accel = "auto",
    out: Out = None,
) -> None:
    """Count what a frame costs xen-netback, QEMU's qnic and netback: calls, hypercalls, copies, maps, wake-ups.

    The tables go to standard output, the JSON also to profile.json in --out, for `netback lab estimate`.
    """
    from netback.lab.bench.profile import FILE, SUBJECTS, as_json
    from netback.lab.bench.profile import profile as measure
    from netback.lab.bench.tables import render

    directory = _directory(out)
    chosen = [subject for subject in SUBJECTS if subject.backend.name not in (without or [])]
    result = asyncio.run(measure(directory, _say, accel=accel, seconds=seconds, subjects=chosen))
    typer.echo(as_json(result) if json else render(result))
    _say(f"{directory / FILE}")


@app.command()
def estimate(
    counts: Annotated[Path, typer.Argument(metavar="COUNTS.json", help="What `profile --json` printed.")],
    prices: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PRICES.toml]", help="A price list.  [default: netback's, of published prices]"
        ),
    ] = None,
) -> None:
    """Turn counts into a frame's time on other machines, from prices: a table for each machine of the list."""
    from netback.lab.bench.estimate import PRICES, read_prices, read_profile, render

    machines = read_prices(prices or PRICES)
    typer.echo(render(read_profile(counts), machines))
