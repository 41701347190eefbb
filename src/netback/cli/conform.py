# SPDX-License-Identifier: Apache-2.0
"""`netback conform`: judges a frontend, or a backend, against the protocol."""

import asyncio
import sys
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from netback.cli import options
from netback.cli.options import Seconds, echo_json, interruptible
from netback.errors import ConfigError

if TYPE_CHECKING:
    from netback.conform.report import Judged
    from netback.conform.rule import Rules
    from netback.conform.session import Setting

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command
@click.option(
    "--frontend",
    metavar="CMD",
    help="Judge the frontend that this command is: it joins the emulated Xen that its environment names.",
)
@click.option(
    "--replay",
    type=_FILE,
    metavar="FILE",
    help="Judge a recording again.",
)
@click.option("--rules", "show_rules", is_flag=True, help="List the rules, and end.")
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="NAME",
    help="The backend to play: strict, linux, qnic, queues, everything, adversarial, nothing; may be repeated."
    "  [default: each]",
)
@click.option(
    "--index", type=click.IntRange(0, 99), default=0, show_default=True, help="Index of the device."
)
@click.option(
    "--ip", default="192.0.2.2", show_default=True, help="The frontend's IPv4 address, if it has a stack."
)
@click.option(
    "--ip6", default="2001:db8::2", show_default=True, help="The frontend's IPv6 address, if it has a stack."
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of all that is random.")
@click.option(
    "--limit",
    type=Seconds(min=0.1, max=600),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the frontend may take for a state or a buffer; twice that to join.",
)
@click.option("--record", type=_FILE, metavar="FILE", help="Keep what was seen, for --replay.")
@click.option("--junit", type=_FILE, metavar="FILE", help="Write the verdicts as JUnit's XML, too.")
@click.option("--tap", is_flag=True, help="As TAP.")
@options.json
@click.option("-v", "--verbose", is_flag=True, help="Show the rules that hold, too.")
def conform(
    frontend: str | None,
    replay: Path | None,
    show_rules: bool,
    profiles: tuple[str, ...],
    index: int,
    ip: str,
    ip6: str,
    seed: int,
    limit: float,
    record: Path | None,
    junit: Path | None,
    tap: bool,
    json: bool,
    verbose: bool,
) -> None:
    """Drive a frontend through the protocol and judge it, rule by rule.

    For each profile netback makes an emulated Xen, runs the command, plays a backend for the device of the domain that
    joins, and ends it. Exit code: 0 no rule fails, 1 a rule fails, 2 the request is invalid.
    """
    from netback.conform import recording
    from netback.conform.observation import Observation
    from netback.conform.profiles import PROFILES, find_profile
    from netback.conform.report import Judged
    from netback.conform.rules import RULES
    from netback.conform.session import Setting
    from netback.conform.view import View

    if sum((frontend is not None, replay is not None, show_rules)) != 1:
        raise click.UsageError("give one of --frontend, --replay and --rules")
    if tap and json:
        raise click.UsageError("give one of --tap and --json")
    if show_rules:
        _list(RULES)
        return
    chosen = [find_profile(name) for name in profiles] or list(PROFILES)
    if replay is not None:
        if record is not None or profiles:
            raise click.UsageError(
                "--replay judges what was recorded: --record and --profile do not go with it"
            )
        seen, subject = recording.load(replay, "frontend", Observation), f"the recording {replay}"
    else:
        setting = Setting(
            command=_command(frontend or ""),
            index=index,
            seed=seed,
            limits=_limits(limit),
            address4=_address(IPv4Address, "--ip", ip),
            address6=_address(IPv6Address, "--ip6", ip6),
        )
        seen, subject = _observe(chosen, setting), f"the frontend {frontend}"
        if record is not None:
            recording.save(record, "frontend", seen)
    _show(
        subject,
        RULES,
        [Judged(run.profile, RULES.judge(View(run))) for run in seen],
        junit,
        tap,
        json,
        verbose,
    )


def _command(text: str) -> str:
    if not text.strip():
        raise ConfigError("--frontend is empty: it is a command for sh, such as './guest DIR'")
    return text


def _limits(seconds: float) -> Any:
    from netback.conform.backend import Limits

    return Limits(join=2 * seconds, answer=seconds)


def _address(kind: type[IPv4Address | IPv6Address], option: str, text: str) -> str:
    try:
        address = kind(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error
    if int(address) == 0 or address.is_multicast:
        raise ConfigError(f"{option}: {text} is no address of a host")
    return text


def _observe(profiles: "Sequence[Any]", setting: "Setting") -> "list[Any]":
    from netback.conform.session import observe

    interruptible()
    found = []
    try:
        for profile in profiles:
            click.echo(f"{profile.name} ...", err=True)
            found.append(asyncio.run(observe(profile, setting)))
    except KeyboardInterrupt:
        click.echo("netback: interrupted; the frontend was ended", err=True)
        sys.exit(130)
    return found


def _show(
    subject: str,
    rules: "Rules[Any]",
    runs: "list[Judged]",
    junit: Path | None,
    tap: bool,
    json: bool,
    verbose: bool,
) -> None:
    """Print the verdicts and end with 1 if a rule fails."""
    from netback.conform import report

    if junit is not None:
        try:
            junit.write_text(report.as_junit(subject, rules.rows, runs), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{junit}: cannot be written: {error.strerror}") from error
    if json:
        echo_json(report.as_data(subject, rules.rows, runs))
    elif tap:
        click.echo(report.as_tap(rules.rows, runs), nl=False)
    else:
        click.echo(report.render(subject, rules.rows, runs, verbose=verbose))
    if not report.holds(runs):
        sys.exit(1)


def _list(rules: "Rules[Any]") -> None:
    for row in rules.rows:
        click.echo(f"{row.id:28} {row.level.value:6} {row.text}")
