# SPDX-License-Identifier: Apache-2.0
"""Assembles the commands, one file each, and turns errors into exit codes.

Each command imports its implementation when it runs. This keeps `--help` fast and shortens a restart.
"""

import os
import sys
from typing import Annotated, Any, cast

import typer

from netback import __version__
from netback.cli import lab
from netback.cli.attach import attach
from netback.cli.demo import demo
from netback.cli.detach import detach
from netback.cli.doctor import doctor
from netback.cli.emulate import emulate
from netback.cli.guest import guest
from netback.cli.list import list_devices
from netback.cli.rings import rings
from netback.cli.run import run
from netback.cli.set import set_limits
from netback.cli.stats import stats
from netback.cli.unit import unit
from netback.errors import ConfigError, NetbackError, PlatformError, printable

UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])
"""Click's exception classes, from the Click that typer uses: some versions of typer vendor it."""

app = typer.Typer(name="netback", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"netback {__version__}")
        raise typer.Exit


@app.callback()
def netback(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it and exit.")
    ] = False,
) -> None:
    """A Xen network backend in userspace: serves guests' netfronts on a real or an emulated Xen."""


for command in (emulate, run, doctor, unit, attach, detach):
    app.command()(command)
app.command(name="list")(list_devices)
app.command(name="set")(set_limits)
app.command()(stats)
app.command()(rings)
app.command()(guest)
app.command(
    add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)(demo)
app.add_typer(lab.app)


def main() -> int:
    """Run the command of sys.argv and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # escape characters that the terminal's encoding cannot represent
            stream.reconfigure(errors="backslashreplace")
    try:
        return app(prog_name="netback", standalone_mode=False) or 0
    except SystemExit as end:
        return _code(end)
    except UsageError as error:
        _explain(error)
        return 2
    except (NetbackError, OSError) as error:
        typer.echo(f"netback: {printable(str(error))}", err=True)
        return exit_code(error)


def _explain(error: Any) -> None:
    """Print a mistake in the command line as one line; print the help if no command was given."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return
    command = error.ctx.command_path if error.ctx is not None else "netback"
    typer.echo(f"netback: {printable(error.format_message().rstrip('.'))}; see {command} --help", err=True)


def exit_code(error: Exception) -> int:
    """The exit code of an error. 2: the request is invalid. 75 (EX_TEMPFAIL): the store or the backend is missing or
    gone. 1: any other error.
    """
    from netback.control import NoBackend

    if isinstance(error, ConfigError):
        return 2
    gone = isinstance(error, NoBackend) or (isinstance(error, PlatformError) and error.errno == "EIO")
    return os.EX_TEMPFAIL if gone else 1


def _code(end: SystemExit) -> int:
    if isinstance(end.code, str):
        typer.echo(end.code, err=True)
        return 1
    return end.code or 0
