# SPDX-License-Identifier: Apache-2.0
"""`netback set`: change the limits and the carrier of a network device while it works."""

import asyncio
from functools import partial
from typing import Annotated

import typer

from netback.cli.options import Directory, Domain, Platform, RxRate, TxRate, parse_rates
from netback.cli.query import Index, Kind, ask_about
from netback.cli.target import Target
from netback.errors import ConfigError, printable


def set_limits(
    domain: Domain,
    tx_rate: TxRate = None,
    rx_rate: RxRate = None,
    carrier: Annotated[
        bool | None,
        typer.Option("--carrier/--no-carrier", help="Show the guest its network's carrier, or none."),
    ] = None,
    kind: Kind = None,
    index: Index = None,
    platform: Platform = None,
    directory: Directory = None,
) -> None:
    """Limit what a guest sends and receives, or turn its carrier off, at once and for the device's life.

    Needs the running backend.
    """
    from netback.control.protocol import LIMIT
    from netback.daemon.limits import LimitAnswer, LimitRequest

    parse_rates(tx_rate, rx_rate)
    if tx_rate is None and rx_rate is None and carrier is None:
        raise ConfigError("nothing to set: give --tx-rate, --rx-rate, --carrier or --no-carrier")
    wanted = partial(LimitRequest, tx_rate=tx_rate, rx_rate=rx_rate, carrier=carrier)
    target = Target.choose(platform, directory)
    _, answer = asyncio.run(
        ask_about(target, domain, kind, index, LIMIT, LimitAnswer, lambda name: wanted(device=name))
    )
    carrier_text = "carrier" if answer.carrier else "no carrier"
    typer.echo(printable(f"{answer.device}: tx {answer.tx_rate}, rx {answer.rx_rate}, {carrier_text}"))
