# SPDX-License-Identifier: Apache-2.0
"""`netback run`: the backend in the foreground."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from netback.cli import options
from netback.cli.options import SPEC_HELP
from netback.cli.target import PlatformName, Target

if TYPE_CHECKING:
    from netback.control.schema import HotplugBy
    from netback.daemon.config import Config
    from netback.observe.choice import RecordMode


@click.command
@options.target
@click.option("--net", help=f"{SPEC_HELP} Used for devices that name no network.  [default: tap]")
@click.option("--trace", multiple=True, help="Trace points to show: a name or a glob such as 'xen_netdev_*'.")
@click.option("--workers", type=click.IntRange(min=1), help="Worker threads.  [default: one for each core]")
@click.option(
    "--queues",
    type=click.IntRange(1, 256),
    help="The most queues of a vif.  [default: one for each core, at most 8]",
)
@click.option(
    "--hotplug",
    type=click.Choice(["toolstack", "netback"]),
    help="What runs the devices' hotplug scripts.  [default: toolstack]",
)
@options.record
@click.option(
    "--config",
    type=click.Path(path_type=Path, readable=False),
    help="Configuration file; command-line options override it.  [default: /etc/netback/netback.toml]",
)
@click.option("--check", is_flag=True, help="Only check the configuration.")
def run(
    platform: PlatformName | None,
    directory: Path | None,
    net: str | None,
    trace: tuple[str, ...],
    workers: int | None,
    queues: int | None,
    hotplug: "HotplugBy | None",
    record: "RecordMode | None",
    config: Path | None,
    check: bool,
) -> None:
    """Serve the guests' network devices until a signal. The end is invisible to guests: the next run
    continues from there.
    """
    from netback.daemon.config import load_config
    from netback.daemon.service import serve

    def load() -> "Config":
        return load_config(config).overruled(
            net=net, trace=trace, workers=workers, queues=queues, hotplug=hotplug, record=record
        )

    if check:
        load()
        return
    target = Target.choose(platform, directory)
    asyncio.run(serve(target.directory, target.open_platform, load))
