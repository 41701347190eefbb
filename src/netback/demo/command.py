# SPDX-License-Identifier: Apache-2.0
"""`netback demo`: its options, its files and its exit codes."""

import json as json_text
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console

from netback.cli.options import refuse_unused
from netback.demo.interruption import Interrupted, Interruption
from netback.demo.report import CaptureFile, Report
from netback.demo.run import CAPTURE, Break, Options, Run
from netback.demo.tiers import Tier
from netback.demo.ui import Terminal, Ui
from netback.errors import ConfigError, NetbackError
from netback.web import needs_extra

_LESSON = {"web", "port"}
_DEMO = {"tier", "broken", "json", "seconds"}
SECONDS = 20.0
MIN_SECONDS = 4.0


@click.command
@click.option(
    "--tier",
    type=click.Choice([tier.value for tier in Tier]),
    help="The kind of the two stacks.   [default: the best that works here]",
)
@click.option(
    "--break",
    "broken",
    type=click.Choice([kind.value for kind in Break]),
    help="Lose the guest's checksum flags, or kill -9 the backend during transfers.",
)
@click.option("--json", is_flag=True, help="Print only the results, as JSON.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=MIN_SECONDS),
    default=SECONDS,
    show_default=True,
    help="Time limit for the whole demo.",
)
@click.option("--web", is_flag=True, help="A lesson in a browser instead, step by step, until Ctrl-C.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="With --web: on loopback.  [default: a free one]"
)
def demo(tier: str | None, broken: str | None, json: bool, seconds: float, web: bool, port: int) -> None:
    """Frames over Xen's rings, end to end, without Xen: a guest and a host, each with its own TCP/IP stack.

    Emulated Xen, a backend, a netfront and both stacks are separate processes. The only file left is
    netback-demo.pcapng; after an interruption there is none.
    """
    refuse_unused("with --web" if web else "without --web", _LESSON if web else _DEMO)
    if web:
        teach(port)
        return
    interruption = Interruption()
    terminal = Terminal(Console())
    try:
        report = run(_options(tier, broken, seconds), Ui() if json else terminal, interruption)
    except Interrupted as interrupted:
        fail(json, f"interrupted by {interrupted}: everything is removed", interrupted.code)
    except (NetbackError, OSError) as error:
        fail(json, str(error), 2 if isinstance(error, ConfigError) else 1)
    commands = next_commands(report)
    report.next = [command for command, _ in commands]
    if json:
        print(json_text.dumps(report.as_data(), indent=2))
        return
    if report.capture:
        terminal.show(report.capture)
    terminal.next(commands)


def teach(port: int) -> None:
    """Serve the lesson until a signal. ConfigError: the packages for it are missing, or the port is taken."""
    with needs_extra():
        from netback.web import lesson

    interruption = Interruption()
    with suppress(Interrupted), runtime_directory() as directory:
        interruption.run(lesson.teach(directory, port, click.echo))


def _options(tier: str | None, broken: str | None, seconds: float) -> Options:
    return Options(Tier(tier) if tier else None, Break(broken) if broken else None, seconds)


def run(options: Options, ui: Ui, interruption: Interruption) -> Report:
    """Run one demo in a temporary directory; keep its capture at the end."""
    with runtime_directory() as directory:
        demo = Run(options, ui, directory)
        report = interruption.run(demo.run())
        interruption.check()
        if report.capture:
            path = keep(demo.capture_path)
            report.capture = CaptureFile(str(path), report.capture.frames)
    return report


@contextmanager
def runtime_directory() -> Iterator[Path]:
    """A directory for the sockets, journals and logs of one demo."""
    directory = Path(tempfile.mkdtemp(prefix="netback-demo-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def keep(capture: Path) -> Path:
    """Copy the capture into the working directory, or into a new temporary one if that is not writable."""
    here = Path.cwd() / CAPTURE
    if not os.access(here.parent, os.W_OK | os.X_OK):
        here = Path(tempfile.mkdtemp(prefix="netback-demo-capture-")) / CAPTURE
    beside = here.with_suffix(f".{os.getpid()}")
    try:
        shutil.copyfile(capture, beside)
        beside.replace(here)
    finally:
        beside.unlink(missing_ok=True)
    return here


def next_commands(report: Report) -> list[tuple[str, str]]:
    """Commands to try next with their purpose; only those that are installed."""
    commands = []
    if report.capture and shutil.which("tshark"):
        commands.append(
            (
                f"tshark -r {report.capture.path} -T fields -e frame.number -e frame.comment",
                "the rings' story",
            )
        )
    if report.lost_flags is None:
        commands.append(("netback demo --break csum", "ping works, TCP fails"))
    if report.restart is None:
        commands.append(("netback demo --break restart", "kill -9, and the transfers continue"))
    return [*commands, ("netback emulate", "an emulated Xen to join: netback run, guest, attach, list")]


def fail(json: bool, reason: str, code: int) -> NoReturn:
    """Print the reason as one line, and as one object with `--json`; end with `code`."""
    if json:
        print(json_text.dumps({"error": reason}))
    print(f"netback demo: {reason}", file=sys.stderr)
    raise SystemExit(code)
