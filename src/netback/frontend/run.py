# SPDX-License-Identifier: Apache-2.0
"""A guest as a process of its own: what `netback guest` runs."""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from netback.abi.xenbus import XenbusState
from netback.frontend.config import FrontConfig
from netback.frontend.device import Frontend
from netback.net.spec import open_network, parse_spec
from netback.platforms.base import Domain
from netback.process import ended_by_signals, until_stopped


async def run_guest(
    where: Domain | Path | str,
    net: str,
    *,
    domid: int | None = None,
    name: str = "",
    index: int = 0,
    config: FrontConfig = FrontConfig(),  # noqa: B008 (frozen)
    cpu: int | None = None,
    on_state: Callable[[str, XenbusState], None] = lambda _side, _state: None,
    on_joined: Callable[[int], None] = lambda _domid: None,
) -> None:
    """Be a guest whose vif is joined to `net` (`tap:guest0`, `packet:eth0`, `null`), until SIGINT or SIGTERM.

    `where` is Frontend's: an emulated Xen's directory, or the real domain that this is. `on_joined` is told the domid.
    The vif closes in order at the end, and what was made for it (a tap) is removed.
    """
    stop = asyncio.Event()
    network = open_network(parse_spec(net), name=f"{name or 'guest'}.{index}")
    with ExitStack() as undo:
        undo.callback(network.remove)
        undo.enter_context(ended_by_signals(stop.set))
        async with Frontend(
            where,
            network,
            index=index,
            config=config,
            on_state=on_state,
            domid=domid,
            name=name,
            cpu=cpu,
        ) as vif:
            on_joined(vif.guest.domid)
            await until_stopped(stop, vif.until(lambda: False))
