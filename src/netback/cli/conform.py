# SPDX-License-Identifier: Apache-2.0
"""`netback conform`: judges a frontend, or a backend, against the protocol."""

import asyncio
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from netback.cli import options, verdicts
from netback.cli.options import Seconds, interruptible
from netback.cli.target import PlatformName, Target
from netback.errors import ConfigError, PlatformError

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine, Mapping

    from netback.conform.answers import BackendSeen
    from netback.conform.observation import Observation
    from netback.conform.recording import Side
    from netback.conform.report import Judged
    from netback.conform.rule import Rules

T = TypeVar("T")
Seen = TypeVar("Seen", bound="Observation | BackendSeen")
_RUN = frozenset({"index", "ip", "ip6", "limit", "record"})
_MODES: "Mapping[str, Collection[str]]" = {
    "--frontend": {"frontend", "profiles", "seed"} | _RUN | verdicts.OPTIONS,
    "--rules": {"show_rules", "backend"},
    "--replay": {"replay", "backend"} | verdicts.OPTIONS,
    "--backend": {"backend", "platform", "directory"} | _RUN | verdicts.OPTIONS,
}
"""What the command does, by the option that asks for it, and the parameters that have an effect then. The first one
that is given counts: --backend also says whose rules, and whose recording.
"""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the command line asks for, of either side."""

    profiles: tuple[str, ...]
    index: int
    ip: str
    ip6: str
    seed: int
    limit: float
    target: tuple[PlatformName | None, Path | None]
    replay: Path | None
    record: Path | None
    junit: Path | None
    form: verdicts.Form
    verbose: bool


@click.command
@click.option(
    "--frontend",
    metavar="CMD",
    help="Judge the frontend that this command is: it joins the emulated Xen that its environment names.",
)
@click.option(
    "--backend",
    is_flag=True,
    help="Judge the backend of this guest's device: a new guest of an emulated Xen, or the real domain that this is.",
)
@click.option(
    "--replay",
    type=verdicts.FILE,
    metavar="FILE",
    help="Judge a recording again; with --backend, of a backend.",
)
@click.option(
    "--rules", "show_rules", is_flag=True, help="List the rules; with --backend, those of backends."
)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="NAME",
    help="The backend to play: strict, linux, plain, qnic, queues, everything, adversarial, nothing; may be repeated."
    "  [default: each]",
)
@click.option(
    "--index", type=click.IntRange(0, 99), default=0, show_default=True, help="Index of the device."
)
@click.option(
    "--ip",
    default="192.0.2.2",
    show_default=True,
    help="The frontend's IPv4 address, if it has a stack; the other end has the one before.",
)
@click.option(
    "--ip6", default="2001:db8::2", show_default=True, help="The frontend's IPv6 address, if it has a stack."
)
@verdicts.seed
@click.option(
    "--limit",
    type=Seconds(min=0.1, max=600),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a state, a buffer or a response may take; twice that to join.",
)
@click.option(
    "--record",
    type=verdicts.FILE,
    metavar="FILE",
    help="Keep what was seen, for --replay: a new file with mode 0600, in place of an older one.",
)
@verdicts.report_options
@options.target
def conform(
    frontend: str | None,
    backend: bool,
    show_rules: bool,
    platform: PlatformName | None,
    directory: Path | None,
    json: bool,
    tap: bool,
    **plan: Any,
) -> None:
    """Drive a frontend, or a backend, through the protocol and judge it, rule by rule.

    --frontend: for each profile netback makes an emulated Xen, runs the command, plays a backend for the device of the
    domain that joins, and ends it. --backend: netback is the guest of a device, which is attached as any other.
    Exit code: 0 no rule fails, 1 a rule fails, 2 the request is invalid.
    """
    given = {
        "--frontend": frontend is not None,
        "--rules": show_rules,
        "--replay": plan["replay"] is not None,
        "--backend": backend,
    }
    mode = next((mode for mode in _MODES if given[mode]), None)
    if mode is None:
        raise click.UsageError("give one of --frontend, --backend, --replay and --rules")
    options.refuse_unused(f"with {mode}", _MODES[mode])
    form = verdicts.form(json=json, tap=tap)
    chosen = _Plan(target=(platform, directory), form=form, **plan)
    if show_rules:
        _list(backend=backend)
    elif backend:
        _judge_backend(chosen)
    else:
        _judge_frontend(frontend, chosen)


def _list(*, backend: bool) -> None:
    from netback.conform import backend_rules, rules

    table: Rules[Any] = backend_rules.RULES if backend else rules.RULES
    for row in table.rows:
        click.echo(f"{row.id:28} {row.level.value:6} {row.text}")


def _judge_frontend(command: str | None, plan: _Plan) -> None:
    from netback.conform.observation import Observation
    from netback.conform.report import Judged
    from netback.conform.rules import RULES
    from netback.conform.view import View

    def verdicts_of(run: Observation) -> Judged:
        return Judged(run.profile, RULES.judge(View(run)))

    observe = partial(_observe, command or "", plan)
    _judge(plan, "frontend", Observation, RULES, observe, verdicts_of, f"the frontend {command}")


def _judge(
    plan: _Plan,
    side: "Side",
    kind: type[Seen],
    rules: "Rules[Any]",
    observe: Callable[[], list[Seen]],
    verdicts_of: "Callable[[Seen], Judged]",
    subject: str,
) -> None:
    """Judge what is observed, or a recording of it, once the files of the verdicts can be written."""
    from netback.conform import recording

    with verdicts.opened(record=plan.record, junit=plan.junit) as outputs:
        if plan.replay is not None:
            seen, subject = recording.load(plan.replay, side, kind), f"the recording {plan.replay}"
        else:
            seen = observe()
        runs = [verdicts_of(run) for run in seen]
        data = recording.encode(side, seen)
        verdicts.show(subject, rules, runs, outputs, recording=data, form=plan.form, verbose=plan.verbose)


def _observe(command: str, plan: _Plan) -> "list[Observation]":
    from netback.conform.backend import Limits
    from netback.conform.profiles import PROFILES, find_profile
    from netback.conform.session import Setting, observe

    if not command.strip():
        raise ConfigError("--frontend is empty: it is a command for sh, such as './guest DIR'")
    profiles = [find_profile(name) for name in plan.profiles] or PROFILES
    ip, ip6 = _addresses(plan)
    setting = Setting(
        command=command,
        index=plan.index,
        seed=plan.seed,
        limits=Limits(join=2 * plan.limit, answer=plan.limit),
        address4=str(ip),
        address6=str(ip6),
    )
    seen = []
    for profile in profiles:
        click.echo(f"{profile.name} ...", err=True)
        seen.append(_run(lambda profile=profile: observe(profile, setting)))  # type: ignore[misc]
    return seen


def _judge_backend(plan: _Plan) -> None:
    from netback.conform.answers import BackendSeen
    from netback.conform.backend_rules import RULES
    from netback.conform.report import Judged

    def verdicts_of(run: BackendSeen) -> Judged:
        return Judged(run.platform, RULES.judge(run))

    _judge(plan, "backend", BackendSeen, RULES, lambda: [_ask(plan)], verdicts_of, "the backend")


def _ask(plan: _Plan) -> "BackendSeen":
    """Be the guest until its device was asked everything. PlatformError: no backend offers it."""
    from netback.conform.asking import Patience, ask_backend
    from netback.conform.frames import Addresses

    ip, ip6 = _addresses(plan)
    ends = Addresses(bytes(6), bytes(6), (ip - 1).packed, ip.packed, (ip6 - 1).packed, ip6.packed)
    target = Target.choose(*plan.target)
    domain = target.open_domain(name="conform" if target.platform is PlatformName.EMULATED else "")
    patience = Patience.of_limit(plan.limit)
    start = time.monotonic()

    def say(question: str) -> None:
        click.echo(f"{time.monotonic() - start:6.1f} s  {question} ...", err=True)

    click.echo(f"domain {domain.domid}: waits for device {plan.index}", err=True)
    try:
        return _run(lambda: ask_backend(domain, ends, patience, index=plan.index, say=say))
    except TimeoutError as error:
        what = f"no backend offers domain {domain.domid} a device {plan.index} within {patience.device:.0f} s"
        raise PlatformError(f"{what}: attach one, as in `netback attach {domain.domid}`") from error


def _run(start: "Callable[[], Coroutine[Any, Any, T]]") -> T:
    """Run until the end, SIGINT or SIGTERM, which CI systems and timeout(1) send: both end the command in order."""
    interruptible()
    signal.signal(signal.SIGTERM, lambda _number, _frame: signal.raise_signal(signal.SIGINT))
    return asyncio.run(start())


def _addresses(plan: _Plan) -> tuple[IPv4Address, IPv6Address]:
    """The frontend's. ConfigError: one is no address of a host that has another before it."""
    return _address(IPv4Address, "--ip", plan.ip), _address(IPv6Address, "--ip6", plan.ip6)


_Address = TypeVar("_Address", IPv4Address, IPv6Address)


def _address(kind: type[_Address], option: str, text: str) -> _Address:
    try:
        address = kind(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error
    if int(address) < 2 or address.is_multicast:
        raise ConfigError(f"{option}: {text} is no address of a host")
    return address
