# SPDX-License-Identifier: Apache-2.0
"""Assembles the commands, one file each, and turns errors into exit codes.

Only the command that the command line names is imported, and each imports its implementation when it runs: this keeps
every start short. `--help` and completion need all of them.
"""

import sys
from collections.abc import Mapping
from importlib import import_module

import click

from netback import __version__
from netback.errors import ConfigError, Exit, NetbackError, PlatformError, printable

_COMMANDS: Mapping[str, str] = {
    "emulate": "emulate",
    "run": "run",
    "doctor": "doctor",
    "unit": "unit",
    "config": "config",
    "attach": "attach",
    "detach": "detach",
    "add": "add",
    "remove": "remove",
    "rules": "rules",
    "list": "list_devices",
    "show": "show",
    "explain": "explain",
    "set": "set_device",
    "stats": "stats",
    "rings": "rings",
    "top": "top",
    "trace": "trace",
    "capture": "capture",
    "extcap": "extcap",
    "record": "record",
    "replay": "replay",
    "metrics": "metrics",
    "web": "web",
    "guest": "guest",
    "conform": "conform",
    "demo": "demo",
    "lab": "lab",
}
"""Each command, in the order of the help, and its name in the module cli/COMMAND.py."""


class _Commands(click.Group):
    """Imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(f"netback.cli.{cmd_name}"), _COMMANDS[cmd_name])
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Commands)
@click.version_option(__version__, message="%(prog)s %(version)s")
def netback() -> None:
    """A Xen network backend in userspace: serves guests' netfronts on a real or an emulated Xen."""


def main() -> int:
    """Run the command of sys.argv and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # escape characters that the terminal's encoding cannot represent
            stream.reconfigure(errors="backslashreplace")
    try:
        return netback(prog_name="netback", standalone_mode=False) or Exit.DONE
    except SystemExit as end:
        return _code(end)
    except click.UsageError as error:
        _explain(error)
        return Exit.INVALID
    except click.Abort:  # made of KeyboardInterrupt, which options.interruptible has SIGINT raise
        click.echo("netback: interrupted", err=True)
        return Exit.INTERRUPTED
    except (NetbackError, OSError) as error:
        click.echo(f"netback: {printable(str(error))}", err=True)
        return exit_code(error)


def _explain(error: click.UsageError) -> None:
    """Print a mistake in the command line as one line; print the help if no command was given."""
    # click 8.1, Debian 13's, has no such error: it prints the help itself, and the exit code is 0.
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        error.show()
        return
    command = error.ctx.command_path if error.ctx is not None else "netback"
    click.echo(f"netback: {printable(error.format_message().rstrip('.'))}; see {command} --help", err=True)


def exit_code(error: Exception) -> Exit:
    """The exit code of an error: INVALID is the request's own mistake, NO_BACKEND a store or a backend that is missing
    or gone, FAILED any other.
    """
    from netback.control import NoBackend

    if isinstance(error, ConfigError):
        return Exit.INVALID
    gone = isinstance(error, NoBackend) or (isinstance(error, PlatformError) and error.errno == "EIO")
    return Exit.NO_BACKEND if gone else Exit.FAILED


def _code(end: SystemExit) -> int:
    if isinstance(end.code, str):
        click.echo(end.code, err=True)
        return Exit.FAILED
    return end.code or Exit.DONE
