# SPDX-License-Identifier: Apache-2.0
"""`netback emulate`: an emulated Xen in the foreground."""

import asyncio
from typing import Annotated

import typer

from netback.cli.options import Directory
from netback.cli.target import default_directory


def emulate(
    directory: Directory = None,
    print_env: Annotated[
        bool,
        typer.Option("--print-env", help="Print what points the xenstore tools here, for eval; then exit."),
    ] = False,
) -> None:
    """Run an emulated Xen: a xenstore and a hypervisor for processes that are domains. Stays in the foreground."""
    from netback.platforms import emulated

    chosen = directory or default_directory()
    if print_env:
        typer.echo(emulated.print_env(chosen))
        return
    asyncio.run(emulated.emulate(chosen, lambda: typer.echo(f"emulated Xen in {chosen}", err=True)))
