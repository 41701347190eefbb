# SPDX-License-Identifier: Apache-2.0
"""`netback unit`: the files by which a system runs netback."""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer


def unit(
    modprobe: Annotated[
        bool,
        typer.Option(
            "--modprobe", help="Print what keeps the kernel's backend out instead: for /etc/modprobe.d/."
        ),
    ] = False,
) -> None:
    """Print a systemd unit that runs this netback: for /etc/systemd/system/netback.service."""
    from netback.daemon.systemd import unit as service

    if modprobe:
        typer.echo(service.KEEP_KERNEL_OUT.read_text(), nl=False)
        return
    own = Path(sys.argv[0]).absolute()
    program = str(own) if own.name == "netback" else shutil.which("netback") or "/usr/bin/netback"
    typer.echo(service.unit(program), nl=False)
    if service.is_hidden(program):
        typer.echo(f"netback: the unit may not see {program}: install netback outside of homes", err=True)
