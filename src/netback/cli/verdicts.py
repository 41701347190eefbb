# SPDX-License-Identifier: Apache-2.0
"""What `netback conform` and `netback lab conform` make of verdicts: the report, files, the exit code."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from netback.cli import options
from netback.cli.options import echo_json
from netback.errors import ConfigError
from netback.output import Write, private_output, public_output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netback.conform.report import Judged
    from netback.conform.rule import Rules

F = TypeVar("F", bound=Callable[..., Any])
Form = Literal["text", "json", "tap"]
FILE = click.Path(path_type=Path, dir_okay=False)
OPTIONS = frozenset({"junit", "tap", "json", "verbose"})
"""The parameters that `report_options` makes."""

_junit = click.option("--junit", type=FILE, metavar="FILE", help="Write the verdicts as JUnit's XML, too.")
_tap = click.option("--tap", is_flag=True, help="As TAP.")
_verbose = click.option("-v", "--verbose", is_flag=True, help="Show the rules that hold, too.")

seed = click.option(
    "--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the contents of the frames."
)


def report_options(command: F) -> F:
    """The options of the report."""
    return _junit(_tap(options.json(_verbose(command))))


def form(*, json: bool, tap: bool) -> Form:
    """What is printed. UsageError: the options name two forms."""
    if json and tap:
        raise click.UsageError("--tap does not go with --json")
    return "json" if json else "tap" if tap else "text"


@dataclass(frozen=True, slots=True)
class Outputs:
    """The files of a command; None: not asked for."""

    record: Write | None
    junit: Write | None


@contextmanager
def opened(*, record: Path | None = None, junit: Path | None = None) -> Iterator[Outputs]:
    """Open the files before the runs. ConfigError: one cannot be written."""
    if record is not None and junit is not None and record.absolute() == junit.absolute():
        raise ConfigError(f"--record and --junit name the same file, {record}")
    with ExitStack() as files:
        yield Outputs(
            files.enter_context(private_output(record, "--record")) if record else None,
            files.enter_context(public_output(junit, "--junit")) if junit else None,
        )


def show(
    subject: str,
    rules: "Rules[Any]",
    runs: "Sequence[Judged]",
    outputs: Outputs,
    *,
    recording: bytes = b"",
    form: Form = "text",
    verbose: bool = False,
) -> None:
    """Write the files, print the verdicts, and end with 1 if a rule fails.

    ConfigError: a file could not be written, of which the verdicts are independent.
    """
    from netback.conform import report

    faults = []
    for write, data in (
        (outputs.record, recording),
        (outputs.junit, report.as_junit(subject, rules.rows, runs).encode()),
    ):
        try:
            if write is not None:
                write(data)
        except ConfigError as error:
            faults.append(str(error))
    if form == "json":
        echo_json(report.as_data(subject, rules.rows, runs))
    elif form == "tap":
        click.echo(report.as_tap(rules.rows, runs), nl=False)
    else:
        click.echo(report.render(subject, rules.rows, runs, verbose=verbose))
    if faults:
        raise ConfigError("; ".join(faults))
    if not report.holds(runs):
        sys.exit(1)
