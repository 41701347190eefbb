# SPDX-License-Identifier: Apache-2.0
"""`netback emulate`: an emulated Xen in the foreground."""

import asyncio
from pathlib import Path

import click

from netback.cli import options
from netback.cli.target import default_directory


@click.command
@options.directory
@click.option(
    "--print-env", is_flag=True, help="Print what points the xenstore tools here, for eval; then exit."
)
@click.option(
    "--cflags", is_flag=True, help="Print the C compiler's flag for netback/emulated_xen.h; then exit."
)
def emulate(directory: Path | None, print_env: bool, cflags: bool) -> None:
    """Run an emulated Xen: a xenstore and a hypervisor for processes that are domains. Stays in the foreground."""
    from netback.platforms import emulated

    if cflags:
        click.echo(emulated.CFLAGS)
        return
    chosen = directory or default_directory()
    if print_env:
        click.echo(emulated.print_env(chosen))
        return
    asyncio.run(emulated.emulate(chosen, lambda: click.echo(f"emulated Xen in {chosen}", err=True)))
