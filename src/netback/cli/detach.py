# SPDX-License-Identifier: Apache-2.0
"""`netback detach`: take a network device from a guest."""

from typing import Annotated

import typer

from netback.cli.options import Directory, Platform, TypeName, warn
from netback.cli.query import Index, Kind, Vif, connect, find
from netback.cli.target import Target
from netback.errors import printable


def detach(
    vif: Vif,
    kind: Kind = None,
    index: Index = None,
    seconds: Annotated[
        float,
        typer.Option(min=0, help="Seconds to wait for the guest before the device is removed by force."),
    ] = 10.0,
    platform: Platform = None,
    directory: Directory = None,
) -> None:
    """Take a network device from a guest: the guest is asked first."""
    from netback.control import NoBackend

    target = Target.choose(platform, directory)
    try:
        with connect(target) as client:
            name = find(client, vif, kind, index)
            answered = client.detach(name, seconds=seconds)
    except NoBackend as error:
        name, answered = _detach_offline(target, vif, kind, index, seconds)
        warn(str(error))
    typer.echo(printable(name) + ("" if answered else " (forced: the guest did not answer)"))


def _detach_offline(
    target: Target, guest: str, kind: TypeName | None, index: int | None, seconds: float
) -> tuple[str, bool]:
    import asyncio

    from netback.cli import offline

    return asyncio.run(offline.detach(target, guest, kind.value if kind else None, index, seconds))
