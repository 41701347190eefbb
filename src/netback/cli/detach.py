# SPDX-License-Identifier: Apache-2.0
"""`netback detach`: take a network device from a guest, through the store alone."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from netback.cli.options import Directory, Domain, Platform, TypeName
from netback.cli.target import Target
from netback.errors import printable

if TYPE_CHECKING:
    from netback.vif.features import DeviceType
    from netback.xenbus.names import DeviceName


def detach(
    domain: Domain,
    kind: Annotated[TypeName | None, typer.Option("--type", help="Device type.")] = None,
    index: Annotated[
        int | None, typer.Option(min=0, help="Device index; required if the guest has several devices.")
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(min=0, help="Seconds to wait for the guest before the device is removed by force."),
    ] = 10.0,
    platform: Platform = None,
    directory: Directory = None,
) -> None:
    """Take a network device from a guest: the guest is asked first."""
    target = Target.choose(platform, directory)
    name, answered = asyncio.run(_detach(target, domain, kind.value if kind else None, index, seconds))
    typer.echo(printable(str(name)) + ("" if answered else " (forced: the guest did not answer)"))


async def _detach(
    target: Target, domain: str, kind: "DeviceType | None", index: int | None, seconds: float
) -> "tuple[DeviceName, bool]":
    """The device's name, and whether the guest answered."""
    from netback.cli.domains import find_domain, own_domid
    from netback.xenbus.attach import detach as detach_device
    from netback.xenbus.attach import find_device

    async with await target.open_store() as store:
        name = await find_device(
            store,
            await find_domain(store, domain),
            kind=kind,
            index=index,
            backend_domid=await own_domid(store),
        )
        return name, await detach_device(store, name, seconds=seconds)
