# SPDX-License-Identifier: Apache-2.0
"""`netback guest`: a guest with netback's own netfront."""

import asyncio
from dataclasses import replace
from typing import Annotated

import typer

from netback.cli.options import SPEC_HELP, Directory, Platform
from netback.cli.target import Target
from netback.vif.features import MAC


def guest(
    net: Annotated[str, typer.Option(help=f"{SPEC_HELP} What the guest's vif is joined to.")],
    platform: Platform = None,
    directory: Directory = None,
    domid: Annotated[
        int | None, typer.Option(min=1, help="Domid, on an emulated Xen.  [default: the next free one]")
    ] = None,
    name: Annotated[str, typer.Option(help="The domain's name, on an emulated Xen.")] = "",
    index: Annotated[int, typer.Option(min=0, help="Index of its network device.")] = 0,
    like: Annotated[
        str, typer.Option(help="Behave as this frontend: windows, freebsd, ipxe, ... (docs/frontends.md).")
    ] = "linux-7.x",
    multicast: Annotated[
        list[str] | None,
        typer.Option(
            help="Receive multicast frames of this MAC address only; may be repeated.  [default: all]"
        ),
    ] = None,
    queues: Annotated[int, typer.Option(min=1, max=256, help="Queues that its netfront asks for.")] = 1,
    hash: Annotated[
        bool, typer.Option("--hash", help="Frames of both directions go with a Toeplitz hash.")
    ] = False,
    stage: Annotated[bool, typer.Option("--stage", help="Its buffers stay mapped at the backend.")] = False,
) -> None:
    """Be a guest, with netback's own netfront: a new one of an emulated Xen, or the real domain that this is.

    It waits for its device to be attached. On real Xen, unload xen-netfront first.
    """
    from netback.frontend import HashConfig, run_guest
    from netback.frontend.profiles import find_profile

    profile = find_profile(like)
    groups = None if multicast is None else frozenset(map(_group, multicast))
    selected = HashConfig() if hash else profile.config.hash
    config = replace(profile.config, queues=queues, multicast=groups, hash=selected, stage=stage)

    asyncio.run(
        run_guest(
            Target.choose(platform, directory).open_domain(domid=domid, name=name),
            net,
            name=name,
            index=index,
            config=config,
            handshake=profile.handshake,
            on_joined=lambda number: typer.echo(f"domain {number}"),
            on_state=lambda side, state: typer.echo(f"{side} {state.title}", err=True),
            on_notice=lambda number, notice: typer.echo(f"queue {number}: {_NOTICES[notice.name]}", err=True),
        )
    )


_NOTICES = {
    "READY": "frames pass again",
    "STALLED": "the backend has taken no frame for a minute; they wait",
    "PEER_GONE": "its network is gone or down",
    "BROKEN": "the backend broke the protocol; the queue is stopped",
}
"""What is shown when a queue's condition (netback.dataplane.notices) changes."""


def _group(text: str) -> bytes:
    """A multicast address, as bytes. BadParameter: it is none."""
    if not MAC.fullmatch(text) or not int(text[:2], 16) & 1:
        raise typer.BadParameter(f"{text!r} is no multicast address such as 01:00:5e:00:00:01")
    return bytes.fromhex(text.replace(":", ""))
