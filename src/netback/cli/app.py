# SPDX-License-Identifier: Apache-2.0
"""Assembles the commands, one file each, and turns errors into exit codes.

Only the command that the command line names is imported, and each imports its implementation when it runs: this keeps
every start short. `--help` and completion need all of them.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any, cast

import typer

from netback import __version__
from netback.errors import ConfigError, NetbackError, PlatformError, printable

UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])
"""Click's exception classes, from the Click that typer uses: some versions of typer vendor it."""

_COMMANDS: Mapping[str, str] = {
    "emulate": "emulate",
    "run": "run",
    "doctor": "doctor",
    "unit": "unit",
    "attach": "attach",
    "detach": "detach",
    "list": "list_devices",
    "set": "set_device",
    "stats": "stats",
    "rings": "rings",
    "guest": "guest",
    "demo": "demo",
    "lab": "app",
}
"""Each command, in the order of the help, and its function in the module of its name, or its group of commands."""
_PASSED_ON = {
    "add_help_option": False,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {"demo": _PASSED_ON}
"""How commands are registered that do not parse their words themselves."""


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"netback {__version__}")
        raise typer.Exit


def _netback(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it and exit.")
    ] = False,
) -> None:
    """A Xen network backend in userspace: serves guests' netfronts on a real or an emulated Xen."""


def build(words: Sequence[str] = ()) -> typer.Typer:
    """The program with the command that `words` begin with, or with all commands."""
    app = typer.Typer(
        name="netback", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
    )
    app.callback()(_netback)
    for name in [word for word in words[:1] if word in _COMMANDS] or _COMMANDS:
        command = getattr(import_module(f"netback.cli.{name}"), _COMMANDS[name])
        if isinstance(command, typer.Typer):
            app.add_typer(command)
        else:
            app.command(name=name, **_OPTIONS.get(name, {}))(command)
    return app


def main() -> int:
    """Run the command of sys.argv and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # escape characters that the terminal's encoding cannot represent
            stream.reconfigure(errors="backslashreplace")
    try:
        return build(sys.argv[1:])(prog_name="netback", standalone_mode=False) or 0
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
