# SPDX-License-Identifier: Apache-2.0
"""`netback run`: the backend in the foreground."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netback.cli.options import SPEC_HELP, Directory, Platform
from netback.cli.target import Target

if TYPE_CHECKING:
    from netback.daemon.config import Config


def run(
    platform: Platform = None,
    directory: Directory = None,
    net: Annotated[
        str | None, typer.Option(help=f"{SPEC_HELP} Used for devices that name no network.  [default: tap]")
    ] = None,
    trace: Annotated[
        list[str] | None, typer.Option(help="Trace points to show: a name or a glob such as 'xen_netdev_*'.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker threads.  [default: one for each core]")
    ] = None,
    queues: Annotated[
        int | None,
        typer.Option(
            min=1, max=256, help="The most queues of a vif.  [default: one for each core, at most 8]"
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Configuration file; command-line options override it.  [default: /etc/netback/netback.toml]"
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only check the configuration.")] = False,
) -> None:
    """Serve the guests' network devices until a signal. The end is invisible to guests: the next run
    continues from there.
    """
    from netback.daemon.config import load_config
    from netback.daemon.service import serve

    def load() -> "Config":
        return load_config(config).overruled(
            net=net, trace=tuple(trace or ()), workers=workers, queues=queues
        )

    if check:
        load()
        return
    target = Target.choose(platform, directory)
    asyncio.run(serve(target.directory, target.open_platform, load))
