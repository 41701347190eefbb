# SPDX-License-Identifier: Apache-2.0
"""`netback set`: change the limits and the carrier of a network device while it works."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netback.cli.options import Directory, Domain, Platform, RxRate, TxRate, TypeName, parse_rates
from netback.cli.target import Target
from netback.errors import ConfigError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from netback.daemon.limits import LimitAnswer
    from netback.vif.features import DeviceType


def set_limits(
    domain: Domain,
    tx_rate: TxRate = None,
    rx_rate: RxRate = None,
    carrier: Annotated[
        bool | None,
        typer.Option("--carrier/--no-carrier", help="Show the guest its network's carrier, or none."),
    ] = None,
    kind: Annotated[TypeName | None, typer.Option("--type", help="Device type.")] = None,
    index: Annotated[
        int | None, typer.Option(min=0, help="Device index; required if the guest has several devices.")
    ] = None,
    platform: Platform = None,
    directory: Directory = None,
) -> None:
    """Limit what a guest sends and receives, or turn its carrier off, at once and for the device's life.

    Needs the running backend.
    """
    parse_rates(tx_rate, rx_rate)
    if tx_rate is None and rx_rate is None and carrier is None:
        raise ConfigError("nothing to set: give --tx-rate, --rx-rate, --carrier or --no-carrier")
    wanted = {"tx_rate": tx_rate, "rx_rate": rx_rate, "carrier": carrier}
    target = Target.choose(platform, directory)
    answer = asyncio.run(_set(target, domain, kind.value if kind else None, index, wanted))
    carrier_text = "carrier" if answer.carrier else "no carrier"
    typer.echo(printable(f"{answer.device}: tx {answer.tx_rate}, rx {answer.rx_rate}, {carrier_text}"))


async def _set(
    target: Target,
    domain: str,
    kind: "DeviceType | None",
    index: int | None,
    wanted: "Mapping[str, Any]",
) -> "LimitAnswer":
    from netback.cli.domains import find_domain, own_domid
    from netback.control.client import ask
    from netback.control.protocol import LIMIT
    from netback.daemon.limits import LimitAnswer, LimitRequest
    from netback.xenbus.attach import find_device

    async with await target.open_store() as store:
        backend = await own_domid(store)
        guest = await find_domain(store, domain)
        name = await find_device(store, guest, kind=kind, index=index, backend_domid=backend)
        _ = name.index  # a directory that is no device, and perhaps no text
    request = LimitRequest(device=str(name), **wanted)
    answer = await ask(target.directory, backend, LIMIT, LimitAnswer, request)
    if answer is None:
        raise ConfigError(f"no backend serves {name}: start netback run")
    return answer
