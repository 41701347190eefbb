# SPDX-License-Identifier: Apache-2.0
"""`netback set`: change the limits, the filters, the link and the MTU of a network device while it works."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from netback.cli import options, query
from netback.cli.target import PlatformName, Target
from netback.errors import ConfigError, printable

if TYPE_CHECKING:
    from netback.control.schema import DeviceType
    from netback.observe.choice import RecordMode


@click.command("set")
@query.vif
@options.rates
@click.option("--carrier/--no-carrier", default=None, help="Show the guest its network's carrier, or none.")
@click.option(
    "--link", type=click.Choice(["up", "down"]), help="down: no frame passes, and the guest sees no carrier."
)
@click.option(
    "--mtu", type=click.IntRange(68, 65535), help="The MTU of the device's tap, if netback made that."
)
@options.filters
@click.option("--no-filters", is_flag=True, help="Take all filters away.")
@click.option(
    "--pcap",
    metavar="FILE[,snaplen=N][,size=N][,files=N]",
    help="Have the backend keep its frames in a file.",
)
@click.option("--no-pcap", is_flag=True, help="End that.")
@options.record
@options.target
def set_device(
    vif: str,
    kind: "DeviceType | None",
    index: int | None,
    tx_rate: str | None,
    rx_rate: str | None,
    carrier: bool | None,
    link: str | None,
    mtu: int | None,
    filters: tuple[str, ...],
    no_filters: bool,
    pcap: str | None,
    no_pcap: bool,
    record: "RecordMode | None",
    platform: PlatformName | None,
    directory: Path | None,
) -> None:
    """Limit and filter what a guest sends and receives, turn its carrier or all of its traffic off, or change its MTU:
    at once and for the device's life.

    The filters given replace those of before; docs/filters.md has them.

    VIF: the device's name, as in vif3.0, or its guest. Needs the running backend.
    """
    options.check_rates(tx_rate, rx_rate)
    if filters and no_filters:
        raise ConfigError("--filter and --no-filters contradict each other: give one of them")
    chosen = filters if filters or no_filters else None
    if pcap is not None and no_pcap:
        raise ConfigError("--pcap and --no-pcap contradict each other: give one of them")
    pcap = "none" if no_pcap else None if pcap is None else str(Path.cwd() / pcap)
    if all(value is None for value in (tx_rate, rx_rate, carrier, link, mtu, chosen, pcap, record)):
        raise ConfigError(
            "nothing to set: give --tx-rate, --rx-rate, --carrier, --no-carrier, --link, --mtu, --filter, "
            "--no-filters, --pcap, --no-pcap or --record"
        )
    with query.connect(Target.choose(platform, directory)) as client:
        name = query.find(client, vif, kind, index)
        answer = client.set(
            name,
            tx_rate=tx_rate,
            rx_rate=rx_rate,
            carrier=carrier,
            link=None if link is None else link == "up",
            mtu=mtu,
            filters=chosen,
            pcap=pcap,
            record=record,
        )
    parts = [f"tx {answer.tx_rate}", f"rx {answer.rx_rate}", "carrier" if answer.carrier else "no carrier"]
    parts += [] if answer.link else ["link down"]
    parts += [] if answer.mtu is None else [f"MTU {answer.mtu}"]
    parts += [f"filters {'; '.join(answer.filters)}"] if answer.filters else []
    if answer.pcap:
        parts.append(f"pcap {answer.pcap.file}" + (f" ({answer.pcap.error})" if answer.pcap.error else ""))
    parts += [] if answer.record == "off" else [f"record {answer.record}"]
    click.echo(printable(f"{answer.device}: {', '.join(parts)}"))
