# SPDX-License-Identifier: Apache-2.0
"""`netback add`: a rule for devices, from now on."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from netback.cli import options
from netback.cli.options import SPEC_HELP, TYPES, check_rates, echo_json, warn
from netback.cli.query import connect
from netback.cli.target import PlatformName, Target

if TYPE_CHECKING:
    from netback.control.schema import DeviceType


@click.command
@click.option("--net", required=True, help=f"{SPEC_HELP} For the devices that match all that follows.")
@click.option("--guest", help="The guest's name or UUID.  [default: any]")
@click.option("--domid", type=click.IntRange(min=0), help="The guest's domid.  [default: any]")
@click.option("--type", "kind", type=TYPES, help="Device type.  [default: any]")
@click.option("--index", type=click.IntRange(min=0), help="Device index.  [default: any]")
@click.option("--mac", help="MAC address.  [default: any]")
@click.option(
    "--attach",
    is_flag=True,
    help="Attach the device whenever the guest appears, and now if it runs; needs --guest and --index.",
)
@options.rates
@options.filters
@click.option("--name", help="The rule's name, for `netback remove`.  [default: added-1, added-2, ...]")
@options.target
@options.json
def add(
    net: str,
    guest: str | None,
    domid: int | None,
    kind: "DeviceType | None",
    index: int | None,
    mac: str | None,
    attach: bool,
    tx_rate: str | None,
    rx_rate: str | None,
    filters: tuple[str, ...],
    name: str | None,
    platform: PlatformName | None,
    directory: Path | None,
    json: bool,
) -> None:
    """Add a rule, as a [[device]] of the configuration: it applies at once and is kept over restarts.

    Prints its name and the devices that were attached; exits with 1 if one could not be. Needs the running backend.
    """
    from netback.control.schema import AddRequest

    check_rates(tx_rate, rx_rate)
    request = AddRequest(
        net=net,
        name=name,
        guest=guest,
        domid=domid,
        type=kind,
        index=index,
        mac=mac,
        attach=attach,
        tx_rate=tx_rate,
        rx_rate=rx_rate,
        filters=filters or None,
    )
    with connect(Target.choose(platform, directory)) as client:
        added = client.add(request)
    if json:
        echo_json(added)
    else:
        click.echo(" ".join([str(added.rule.name), *added.attached]))
    for reason in added.failed:
        warn(reason)
    if added.failed:
        raise SystemExit(1)
