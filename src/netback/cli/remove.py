# SPDX-License-Identifier: Apache-2.0
"""`netback remove`: takes a rule away that `netback add` made."""

from pathlib import Path

import click

from netback.cli import options
from netback.cli.options import echo_json
from netback.cli.query import connect
from netback.cli.target import PlatformName, Target
from netback.errors import printable


@click.command
@click.argument("name")
@click.option("--detach", is_flag=True, help="Also detach the devices that the rule attached.")
@click.option(
    "--seconds",
    type=options.Seconds(min=0, max=3600),
    default=10.0,
    show_default=True,
    help="Seconds to wait for each guest before its device is removed by force.",
)
@options.target
@options.json
def remove(
    name: str,
    detach: bool,
    seconds: float,
    platform: PlatformName | None,
    directory: Path | None,
    json: bool,
) -> None:
    """Remove the rule NAME of `netback add` (`netback rules`). Devices keep the network that they have.

    Needs the running backend.
    """
    with connect(Target.choose(platform, directory)) as client:
        detached = client.remove(name, detach=detach, seconds=seconds)
    if json:
        echo_json(detached)
        return
    for device in detached:
        click.echo(
            printable(device.device) + ("" if device.answered else " (forced: the guest did not answer)")
        )
