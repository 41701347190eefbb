# SPDX-License-Identifier: Apache-2.0
"""`netback guest`: a guest with netback's own netfront."""

import asyncio
from dataclasses import replace
from pathlib import Path

import click

from netback.cli import options
from netback.cli.options import SPEC_HELP
from netback.cli.target import PlatformName, Target
from netback.vif.features import MAC


@click.command
@click.option("--net", required=True, help=f"{SPEC_HELP} What the guest's vif is joined to.")
@options.target
@click.option(
    "--domid", type=click.IntRange(min=1), help="Domid, on an emulated Xen.  [default: the next free one]"
)
@click.option("--name", default="", help="The domain's name, on an emulated Xen.")
@click.option(
    "--index", type=click.IntRange(min=0), default=0, show_default=True, help="Index of its network device."
)
@click.option(
    "--like",
    default="linux-7.x",
    show_default=True,
    help="Behave as this frontend: windows, freebsd, ipxe, ... (docs/frontends.md).",
)
@click.option(
    "--multicast",
    multiple=True,
    help="Receive multicast frames of this MAC address only; may be repeated.  [default: all]",
)
@click.option(
    "--queues",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Queues that its netfront asks for.",
)
@click.option("--hash", is_flag=True, help="Frames of both directions go with a Toeplitz hash.")
@click.option("--stage", is_flag=True, help="Its buffers stay mapped at the backend.")
def guest(
    net: str,
    platform: PlatformName | None,
    directory: Path | None,
    domid: int | None,
    name: str,
    index: int,
    like: str,
    multicast: tuple[str, ...],
    queues: int,
    hash: bool,
    stage: bool,
) -> None:
    """Be a guest, with netback's own netfront: a new one of an emulated Xen, or the real domain that this is.

    It waits for its device to be attached. On real Xen, unload xen-netfront first.
    """
    from netback.frontend import HashConfig, run_guest
    from netback.frontend.profiles import find_profile

    profile = find_profile(like)
    groups = frozenset(map(_group, multicast)) if multicast else None
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
            on_joined=lambda number: click.echo(f"domain {number}"),
            on_state=lambda side, state: click.echo(f"{side} {state.title}", err=True),
            on_notice=lambda number, notice: click.echo(f"queue {number}: {_NOTICES[notice.name]}", err=True),
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
        raise click.BadParameter(f"{text!r} is no multicast address such as 01:00:5e:00:00:01")
    return bytes.fromhex(text.replace(":", ""))
