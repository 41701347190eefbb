# SPDX-License-Identifier: Apache-2.0
"""Runs a guest as its own process, for `netback guest`."""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from netback.abi.xenbus import XenbusState
from netback.dataplane.notices import Notice
from netback.frontend.config import FrontConfig, Handshake
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
    handshake: Handshake = Handshake(),  # noqa: B008 (frozen)
    cpu: int | None = None,
    on_state: Callable[[str, XenbusState], None] = lambda _side, _state: None,
    on_notice: Callable[[int, Notice], None] = lambda _number, _notice: None,
    on_joined: Callable[[int], None] = lambda _domid: None,
) -> None:
    """Run a guest whose vif is joined to `net` (`tap:guest0`, `packet:eth0`, `null`), until SIGINT or SIGTERM.

    `where` is the directory of an emulated Xen, or the real domain of this process. `on_joined(domid)` is called once,
    the other arguments are Frontend's. At the end the vif closes in order, and a tap that was made for it is removed.
    ConfigError, PeerError: the network cannot be opened. BackendError, PlatformError: as in `Frontend.connected`.
    """
    stop = asyncio.Event()
    network = open_network(parse_spec(net), name=f"{name or 'guest'}.{index}", several=config.queues > 1)
    with ExitStack() as undo:
        undo.callback(network.remove)
        undo.enter_context(ended_by_signals(stop.set))
        async with Frontend(
            where,
            network,
            index=index,
            config=config,
            handshake=handshake,
            on_state=on_state,
            on_notice=on_notice,
            domid=domid,
            name=name,
            cpu=cpu,
        ) as vif:
            on_joined(vif.guest.domid)
            await until_stopped(stop, vif.until(lambda: False))
