# SPDX-License-Identifier: Apache-2.0
"""`netback attach`: give a guest a network device."""

from typing import TYPE_CHECKING, Annotated

import typer

from netback.cli.options import (
    SPEC_HELP,
    Directory,
    Domain,
    Platform,
    RxRate,
    TxRate,
    TypeName,
    check_rates,
    warn,
)
from netback.cli.query import connect
from netback.cli.target import Target

if TYPE_CHECKING:
    from netback.control.schema import AttachRequest


def attach(
    domain: Domain,
    net: Annotated[str, typer.Option(help=SPEC_HELP)],
    mac: Annotated[str | None, typer.Option(help="MAC address.  [default: random, of Xen's range]")] = None,
    kind: Annotated[TypeName, typer.Option("--type", help="Device type.")] = TypeName.VIF,
    index: Annotated[int, typer.Option(min=-1, help="Device index; -1: the first free one.")] = -1,
    tx_rate: TxRate = None,
    rx_rate: RxRate = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Attach even if the domain is the backend's own, such as domain 0."),
    ] = False,
    platform: Platform = None,
    directory: Directory = None,
) -> None:
    """Give a guest a network device. A running backend connects it; one that is started later does as well."""
    from netback.control import NoBackend
    from netback.control.schema import AttachRequest

    check_rates(tx_rate, rx_rate)
    target = Target.choose(platform, directory)
    request = AttachRequest(
        guest=domain,
        net=net,
        type=kind.value,
        mac=mac,
        index=index,
        tx_rate=tx_rate,
        rx_rate=rx_rate,
        force=force,
    )
    try:
        with connect(target) as client:
            name = client.attach(request)
    except NoBackend as error:
        name = _attach_offline(target, request)
        warn(f"{error}, which then connects the device")
    typer.echo(name)


def _attach_offline(target: Target, request: "AttachRequest") -> str:
    import asyncio

    from netback.cli import offline

    return asyncio.run(offline.attach(target, request))
