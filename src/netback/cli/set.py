# SPDX-License-Identifier: Apache-2.0
"""`netback set`: change the limits and the carrier of a network device while it works."""

from typing import Annotated

import typer

from netback.cli.options import Directory, Platform, RxRate, TxRate, check_rates
from netback.cli.query import Index, Kind, Vif, connect, find
from netback.cli.target import Target
from netback.errors import ConfigError, printable


def set_device(
    vif: Vif,
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
    check_rates(tx_rate, rx_rate)
    if tx_rate is None and rx_rate is None and carrier is None:
        raise ConfigError("nothing to set: give --tx-rate, --rx-rate, --carrier or --no-carrier")
    with connect(Target.choose(platform, directory)) as client:
        name = find(client, vif, kind, index)
        answer = client.set(name, tx_rate=tx_rate, rx_rate=rx_rate, carrier=carrier)
    carrier_text = "carrier" if answer.carrier else "no carrier"
    typer.echo(printable(f"{answer.device}: tx {answer.tx_rate}, rx {answer.rx_rate}, {carrier_text}"))
