# SPDX-License-Identifier: Apache-2.0
"""`netback run`: a backend until a signal ends it."""

import asyncio
import logging
import os

from netback.cli.place import Place
from netback.daemon import Backend, BackendConfig
from netback.net.spec import parse_spec
from netback.platforms.limits import allow_descriptors
from netback.platforms.signals import ended_by_signals, until_stopped

log = logging.getLogger("netback")


def set_up_log() -> None:
    """To stderr; the journal has its own clock."""
    stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    logging.basicConfig(format=f"{stamp}%(levelname)s %(name)s: %(message)s", level=logging.INFO)


async def serve(place: Place, net: str | None, trace: tuple[str, ...], workers: int | None) -> None:
    """Serve until SIGINT or SIGTERM, or until the store is gone, which is an error."""
    set_up_log()
    allow_descriptors()
    if net is not None:
        parse_spec(net)
    stop = asyncio.Event()
    config = BackendConfig(place.directory, net=net, trace=trace, workers=workers)
    with ended_by_signals(stop.set), place.open_platform() as platform:
        async with Backend(platform, config) as backend:
            log.info("serving domain %d of the %s Xen in %s", platform.domid, platform.name, place.directory)
            await until_stopped(stop, backend.wait())
