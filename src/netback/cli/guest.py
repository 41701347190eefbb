# SPDX-License-Identifier: Apache-2.0
"""`netback guest`: a guest with netback's own netfront."""

import asyncio
from typing import Annotated

import typer

from netback.cli.options import SPEC_HELP, Directory, Platform
from netback.cli.target import Target


def guest(
    net: Annotated[str, typer.Option(help=f"{SPEC_HELP} What the guest's vif is joined to.")],
    platform: Platform = None,
    directory: Directory = None,
    domid: Annotated[
        int | None, typer.Option(min=1, help="Domid, on an emulated Xen.  [default: the next free one]")
    ] = None,
    name: Annotated[str, typer.Option(help="The domain's name, on an emulated Xen.")] = "",
    index: Annotated[int, typer.Option(min=0, help="Index of its network device.")] = 0,
) -> None:
    """Be a guest, with netback's own netfront: a new one of an emulated Xen, or the real domain that this is.

    It waits for its device to be attached. On real Xen, unload xen-netfront first.
    """
    from netback.frontend import run_guest

    asyncio.run(
        run_guest(
            Target.choose(platform, directory).open_domain(domid=domid, name=name),
            net,
            name=name,
            index=index,
            on_joined=lambda number: typer.echo(f"domain {number}"),
            on_state=lambda side, state: typer.echo(f"{side} {state.title}", err=True),
        )
    )
