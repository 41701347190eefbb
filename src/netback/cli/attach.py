# SPDX-License-Identifier: Apache-2.0
"""`netback attach`: give a guest a network device, through the store alone."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from netback.cli.options import SPEC_HELP, Directory, Domain, Platform, RxRate, TxRate, TypeName, parse_rates
from netback.cli.target import Target
from netback.errors import ConfigError, printable

if TYPE_CHECKING:
    from netback.vif.features import DeviceType
    from netback.vif.rate import Rates
    from netback.xenbus.names import DeviceName


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
    target = Target.choose(platform, directory)
    rates = parse_rates(tx_rate, rx_rate)
    typer.echo(asyncio.run(_attach(target, domain, net, kind.value, mac, index, force, rates)))


async def _attach(
    target: Target,
    domain: str,
    net: str,
    kind: "DeviceType",
    mac: str | None,
    index: int,
    force: bool,
    rates: "Rates",
) -> "DeviceName":
    from netback.cli.domains import await_domain, own_domid
    from netback.daemon.backend import first_index
    from netback.net.spec import parse_spec
    from netback.xenbus.attach import attach as attach_device

    parse_spec(net)  # reject a malformed spec here; the backend opens the network
    async with await target.open_store() as store:
        domid = await await_domain(store, domain)
        backend = await own_domid(store)
        if domid == backend and not force:
            raise ConfigError(
                f"domain {domid} is the backend's own: its kernel would take the device; --force attaches it anyway"
            )
        return await attach_device(
            store,
            domid,
            net,
            kind=kind,
            mac=mac,
            index=index,
            first_index=first_index(target.platform),
            backend_domid=backend,
            offered=await _offered(target, backend),
            tx_rate=rates.tx,
            rx_rate=rates.rx,
        )


async def _offered(target: Target, backend: int) -> dict[str, str] | None:
    """The features that the running backend serves; None if no backend answers: `attach` then offers what
    every netback serves.
    """
    from netback.control.client import ask
    from netback.control.protocol import OFFER, ControlError

    try:
        return await ask(target.directory, backend, OFFER, dict[str, str])
    except ControlError as error:
        typer.echo(
            f"netback: {printable(str(error))}; offering the features that every netback serves", err=True
        )
        return None
