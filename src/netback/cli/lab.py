# SPDX-License-Identifier: Apache-2.0
"""`netback lab`: real Xen inside QEMU."""

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from netback.cli import options as shared
from netback.cli import verdicts
from netback.cli.options import interruptible, refuse_unused
from netback.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])


@click.group
def lab() -> None:
    """Real Xen, dom0 and guests, inside QEMU: to test netback or your own frontend."""
    interruptible()


def _machine(command: F) -> F:
    """The options that every command has which boots a machine."""
    accel = click.option(
        "--accel",
        default="auto",
        show_default=True,
        help="kvm, tcg, or auto: KVM if a trial boot of Xen works.",
    )
    out = click.option(
        "--out",
        type=click.Path(path_type=Path, readable=False),
        help="Directory for consoles and logs, a new or an empty one.  [default: a new one]",
    )
    return accel(out(command))


_seconds = click.option(
    "--seconds", type=click.IntRange(min=1), default=4, show_default=True, help="Seconds per measurement."
)
_OF_ANY_KERNEL = frozenset({"profiles", "seed", "accel", "out"})
_existing = click.Path(exists=True, dir_okay=False, path_type=Path)


def _say(line: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {line}", err=True)


def _directory(out: Path | None) -> Path:
    return (out or Path(tempfile.mkdtemp(prefix="netback-lab-"))).resolve()


@lab.command
@click.option("--exec", "command", metavar="CMD", help="Run this in dom0 instead of giving a prompt.")
@click.option("--guest/--no-guest", default=True, show_default=True, help="Create a guest, g1.")
@_machine
def up(command: str | None, guest: bool, accel: str, out: Path | None) -> None:
    """Boot a Xen host with netback running and a guest on it, and give a prompt in dom0."""
    from netback.lab.shell import shell

    sys.exit(asyncio.run(shell(_directory(out), _say, accel=accel, command=command, guest=guest)))


@lab.command
@click.argument("scenario")
@click.option("--kernel", required=True, type=_existing, help="The guest's kernel or unikernel.")
@click.option("--initrd", type=_existing, help="The guest's initial ramdisk.")
@click.option("--append", "options", default="", help="The guest's kernel command line.")
@click.option("--memory", type=int, default=256, show_default=True, help="The guest's memory in MiB.")
@click.option("--type", "kind", default="pv", show_default=True, help="pv or pvh.")
@click.option(
    "--address", default="10.0.0.2", show_default=True, help="The address that the guest configures."
)
@_machine
def run(
    scenario: str,
    kernel: Path,
    initrd: Path | None,
    options: str,
    memory: int,
    kind: str,
    address: str,
    accel: str,
    out: Path | None,
) -> None:
    """Boot your own guest kernel on a Xen host and report what its frontend did. SCENARIO: boot, ping or reconnect."""
    from netback.lab.custom_guest import CustomGuest, run_custom_guest

    guest = CustomGuest(kernel.resolve(), initrd and initrd.resolve(), options, memory, kind, address)
    sys.exit(asyncio.run(run_custom_guest(scenario, guest, _directory(out), _say, accel=accel)))


@lab.command
@click.option(
    "--kernel", type=_existing, help="The guest's kernel or unikernel.  [default: the lab's Linux 6.12]"
)
@click.option("--initrd", type=_existing, help="The guest's initial ramdisk.")
@click.option("--append", "options", default="", help="The guest's kernel command line.")
@click.option("--memory", type=int, default=256, show_default=True, help="The guest's memory in MiB.")
@click.option("--type", "kind", default="pv", show_default=True, help="pv or pvh.")
@click.option(
    "--address", default="10.0.0.2", show_default=True, help="The address that the guest gives its links."
)
@click.option(
    "--profile", "profiles", multiple=True, metavar="NAME", help="A backend to play, as in `netback conform`."
)
@verdicts.seed
@verdicts.report_options
@_machine
def conform(
    kernel: Path | None,
    initrd: Path | None,
    options: str,
    memory: int,
    kind: str,
    address: str,
    profiles: tuple[str, ...],
    seed: int,
    junit: Path | None,
    tap: bool,
    json: bool,
    verbose: bool,
    accel: str,
    out: Path | None,
) -> None:
    """Judge a guest kernel's own netfront on real Xen, by the rules of `netback conform --frontend`.

    The recording is conform.runs in --out, for `netback conform --replay`.
    """
    from netback.conform.profiles import find_profile
    from netback.conform.rules import RULES
    from netback.lab.conform import judge_kernel
    from netback.lab.custom_guest import CustomGuest

    guest = None
    if kernel is not None:
        guest = CustomGuest(kernel.resolve(), initrd and initrd.resolve(), options, memory, kind, address)
    else:
        refuse_unused("without --kernel", _OF_ANY_KERNEL | verdicts.OPTIONS)
    form = verdicts.form(json=json, tap=tap)
    for name in profiles:
        find_profile(name)
    with verdicts.opened(junit=junit) as outputs:
        directory = _directory(out)
        runs = asyncio.run(judge_kernel(guest, directory, _say, accel=accel, profiles=profiles, seed=seed))
        _say(f"{directory}")
        subject = f"the frontend of {kernel or 'Linux 6.12'}, on Xen"
        verdicts.show(subject, RULES, runs, outputs, form=form, verbose=verbose)


@lab.command("test")
@click.argument("scenarios", metavar="[SCENARIO]...", nargs=-1)
@click.option("--full", is_flag=True, help="All scenarios, with all their rounds.")
@click.option("--list", "listing", is_flag=True, help="List the scenarios.")
@_machine
def run_scenarios(
    scenarios: tuple[str, ...], full: bool, listing: bool, accel: str, out: Path | None
) -> None:
    """Run scenarios against Linux's netfront, without a name the smoke set.

    A failed one prints the last lines of every console.
    """
    from netback.lab.machine import Options
    from netback.lab.runner import choose, find_scenarios, run_all

    if listing:
        for scenario in find_scenarios().values():
            click.echo(f"{scenario.name:16} {'smoke' if scenario.smoke else 'full ':5}  {scenario.title}")
        return
    directory, start = _directory(out), time.monotonic()
    chosen = choose([*scenarios], full=full)
    outcomes = asyncio.run(run_all(chosen, directory, _say, options=Options(accel=accel), full=full))
    failed = [outcome for outcome in outcomes if outcome.fault]
    for outcome in failed:  # again, since a fault is followed by pages of consoles and later scenarios
        click.echo(f"FAIL {outcome.scenario.name}: {outcome.fault}")
    click.echo(
        f"{len(outcomes) - len(failed)} of {len(outcomes)} scenarios hold, {time.monotonic() - start:.0f} s"
        f"{'; not: ' * bool(failed)}{', '.join(outcome.scenario.name for outcome in failed)} (consoles: {directory})"
    )
    sys.exit(1 if failed else 0)


_without = click.option("--without", multiple=True, help="Leave out kernel or qnic.")


@lab.command
@click.option(
    "--boots", type=click.IntRange(min=1), default=3, show_default=True, help="Boots of the machine."
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Rounds in each boot."
)
@click.option(
    "--seconds", type=click.IntRange(min=1), default=2, show_default=True, help="Seconds per measurement."
)
@_without
@click.option(
    "--variant",
    "variants",
    metavar="NAME=WORDS",
    multiple=True,
    help="One more column: netback with this environment (words KEY=VALUE) and these options of"
    " 'netback run', as in 'one=--workers 1'.",
)
@click.option("--resume", is_flag=True, help="Go on where a run with the same options and --out was cut off.")
@click.option(
    "--table",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the table to this file, a page of Markdown.",
)
@shared.json
@_machine
def bench(
    boots: int,
    rounds: int,
    seconds: int,
    without: tuple[str, ...],
    variants: tuple[str, ...],
    resume: bool,
    table: Path | None,
    json: bool,
    accel: str,
    out: Path | None,
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
    chosen = choose_backends(without, variants)
    plan = Plan(boots, rounds, seconds, accel, tuple(backend.column for backend in chosen))
    directory = _directory(out)
    _say(f"results: {directory}")
    results = asyncio.run(measure(directory, _say, plan, chosen, resume=resume))
    text = page(results, chosen)
    if table:
        table.write_text(text)
    click.echo((directory / FILE).read_text() if json else text)


@lab.command
@_seconds
@_without
@shared.json
@_machine
def profile(seconds: int, without: tuple[str, ...], json: bool, accel: str, out: Path | None) -> None:
    """Count what a frame costs xen-netback, QEMU's qnic and netback: calls, hypercalls, copies, maps, wake-ups.

    The tables go to standard output, the JSON also to profile.json in --out, for `netback lab estimate`.
    """
    from netback.lab.bench.profile import FILE, SUBJECTS, as_json
    from netback.lab.bench.profile import profile as measure
    from netback.lab.bench.tables import render

    directory = _directory(out)
    chosen = [subject for subject in SUBJECTS if subject.backend.name not in without]
    result = asyncio.run(measure(directory, _say, accel=accel, seconds=seconds, subjects=chosen))
    click.echo(as_json(result) if json else render(result))
    _say(f"{directory / FILE}")


@lab.command
@click.argument("counts", type=click.Path(path_type=Path), metavar="COUNTS.json")
@click.argument("prices", type=click.Path(path_type=Path), required=False, metavar="[PRICES.toml]")
def estimate(counts: Path, prices: Path | None) -> None:
    """Turn counts into a frame's time on other machines, from prices: a table for each machine of the list.

    COUNTS.json is what `profile --json` printed, PRICES.toml a price list, by default netback's of published prices.
    """
    from netback.lab.bench.estimate import PRICES, read_prices, read_profile, render

    machines = read_prices(prices or PRICES)
    click.echo(render(read_profile(counts), machines))
