# SPDX-License-Identifier: Apache-2.0
"""`netback demo`: passes its arguments on to the demo's command."""

import typer

from netback.cli.options import interruptible


def demo(context: typer.Context) -> None:
    """Show it all: two TCP/IP stacks, a guest's and a host's, over emulated Xen. `netback demo --help` tells more."""
    from netback.demo.command import demo as show

    interruptible()
    shown = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    shown.command()(show)
    shown(context.args, prog_name="netback demo")
