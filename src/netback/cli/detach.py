# SPDX-License-Identifier: Apache-2.0
"""`netback detach`: take a network device from a guest."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from netback.cli import options, query
from netback.cli.options import warn
from netback.cli.target import PlatformName, Target
from netback.errors import printable

if TYPE_CHECKING:
    from netback.control.schema import DeviceType


@click.command
@query.vif
@click.option(
    "--seconds",
    type=options.Seconds(min=0, max=3600),
    default=10.0,
    show_default=True,
    help="Seconds to wait for the guest before the device is removed by force.",
)
@options.target
def detach(
    vif: str,
    kind: "DeviceType | None",
    index: int | None,
    seconds: float,
    platform: PlatformName | None,
    directory: Path | None,
) -> None:
    """Take a network device from its guest, which is asked first. VIF: its name, as in vif3.0, or its guest."""
    from netback.control import NoBackend

    target = Target.choose(platform, directory)
    try:
        with query.connect(target) as client:
            name = query.find(client, vif, kind, index)
            answered = client.detach(name, seconds=seconds)
    except NoBackend as error:
        name, answered = _detach_offline(target, vif, kind, index, seconds)
        warn(str(error))
    click.echo(printable(name) + ("" if answered else " (forced: the guest did not answer)"))


def _detach_offline(
    target: Target, guest: str, kind: "DeviceType | None", index: int | None, seconds: float
) -> tuple[str, bool]:
    import asyncio

    from netback.cli import offline

    return asyncio.run(offline.detach(target, guest, kind, index, seconds))
