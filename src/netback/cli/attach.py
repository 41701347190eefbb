# SPDX-License-Identifier: Apache-2.0
"""`netback attach`: give a guest a network device."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from netback.cli import options
from netback.cli.options import SPEC_HELP, TYPES, check_rates, warn
from netback.cli.query import connect
from netback.cli.target import PlatformName, Target

if TYPE_CHECKING:
    from netback.control.schema import AttachRequest, DeviceType


@click.command
@click.argument("domain")
@click.option("--net", required=True, help=SPEC_HELP)
@click.option("--mac", help="MAC address.  [default: random, of Xen's range]")
@click.option("--type", "kind", type=TYPES, default="vif", show_default=True, help="Device type.")
@click.option(
    "--index", type=click.IntRange(min=-1), default=-1, help="Device index.  [default: the first free one]"
)
@options.rates
@options.filters
@click.option(
    "--force", is_flag=True, help="Attach even if the domain is the backend's own, such as domain 0."
)
@options.target
def attach(
    domain: str,
    net: str,
    mac: str | None,
    kind: "DeviceType",
    index: int,
    tx_rate: str | None,
    rx_rate: str | None,
    filters: tuple[str, ...],
    force: bool,
    platform: PlatformName | None,
    directory: Path | None,
) -> None:
    """Give the guest DOMAIN, a domid or a name, a network device.

    A running backend connects it; one that is started later does as well.
    """
    from netback.control import NoBackend
    from netback.control.schema import AttachRequest

    check_rates(tx_rate, rx_rate)
    target = Target.choose(platform, directory)
    request = AttachRequest(
        guest=domain,
        net=net,
        type=kind,
        mac=mac,
        index=index,
        tx_rate=tx_rate,
        rx_rate=rx_rate,
        filters=filters or None,
        force=force,
    )
    try:
        with connect(target) as client:
            name = client.attach(request)
    except NoBackend as error:
        name = _attach_offline(target, request)
        warn(f"{error}, which then connects the device")
    click.echo(name)


def _attach_offline(target: Target, request: "AttachRequest") -> str:
    import asyncio

    from netback.cli import offline

    return asyncio.run(offline.attach(target, request))
