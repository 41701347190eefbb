# SPDX-License-Identifier: Apache-2.0
"""`netback set`: change the limits and the carrier of a network device while it works."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from netback.cli import options, query
from netback.cli.target import PlatformName, Target
from netback.errors import ConfigError, printable

if TYPE_CHECKING:
    from netback.control.schema import DeviceType


@click.command("set")
@query.vif
@options.rates
@click.option("--carrier/--no-carrier", default=None, help="Show the guest its network's carrier, or none.")
@options.target
def set_device(
    vif: str,
    kind: "DeviceType | None",
    index: int | None,
    tx_rate: str | None,
    rx_rate: str | None,
    carrier: bool | None,
    platform: PlatformName | None,
    directory: Path | None,
) -> None:
    """Limit what a guest sends and receives, or turn its carrier off, at once and for the device's life.

    VIF: the device's name, as in vif3.0, or its guest. Needs the running backend.
    """
    options.check_rates(tx_rate, rx_rate)
    if tx_rate is None and rx_rate is None and carrier is None:
        raise ConfigError("nothing to set: give --tx-rate, --rx-rate, --carrier or --no-carrier")
    with query.connect(Target.choose(platform, directory)) as client:
        name = query.find(client, vif, kind, index)
        answer = client.set(name, tx_rate=tx_rate, rx_rate=rx_rate, carrier=carrier)
    carrier_text = "carrier" if answer.carrier else "no carrier"
    click.echo(printable(f"{answer.device}: tx {answer.tx_rate}, rx {answer.rx_rate}, {carrier_text}"))
