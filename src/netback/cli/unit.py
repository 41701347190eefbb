# SPDX-License-Identifier: Apache-2.0
"""`netback unit`: prints the files that a service manager needs to run netback."""

import os
import shutil
import sys
from pathlib import Path

import click


@click.command
@click.option(
    "--modprobe",
    is_flag=True,
    help="Print what keeps the kernel's backend out instead: for /etc/modprobe.d/.",
)
@click.option(
    "--hotplug",
    is_flag=True,
    help='Print what scripts need if hotplug = "netback" instead: for /etc/systemd/system/netback.service.d/.',
)
def unit(modprobe: bool, hotplug: bool) -> None:
    """Print a systemd unit that runs this netback: for /etc/systemd/system/netback.service."""
    from netback.daemon.systemd import unit as service
    from netback.errors import printable

    for wanted, file in ((modprobe, service.KEEP_KERNEL_OUT), (hotplug, service.HOTPLUG)):
        if wanted:
            click.echo(file.read_text(), nl=False)
            return
    own = Path(sys.argv[0]).absolute()
    program = str(own) if own.name == "netback" else shutil.which("netback") or "/usr/bin/netback"
    click.echo(service.unit(program), nl=False)
    if not os.access(program, os.X_OK):
        click.echo(f"netback: there is no program {printable(program)}: install netback first", err=True)
    for directory, (path, setting) in service.hidden(service.needed(program)).items():
        click.echo(
            f"netback: the unit cannot access {printable(str(path))}: its {setting} hides {directory};"
            " install netback and its Python elsewhere, as in /opt",
            err=True,
        )
