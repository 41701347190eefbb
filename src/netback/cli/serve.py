# SPDX-License-Identifier: Apache-2.0
"""`netback run`: a backend until a signal ends it, and what its service manager hears of it."""

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

from netback.cli.place import Place
from netback.daemon import Backend, BackendConfig
from netback.daemon.config import Config
from netback.daemon.systemd.fd_store import SystemdFdStore
from netback.daemon.systemd.logs import set_up_log
from netback.daemon.systemd.notify import Notifier
from netback.errors import ConfigError
from netback.process import allow_descriptors, ended_by_signals, until_stopped

log = logging.getLogger("netback")

_TICKS = 3
"""Signs of life in the time after which the service manager takes us for dead."""


async def serve(place: Place, load: Callable[[], Config]) -> None:
    """Serve until SIGINT or SIGTERM, or until the store is gone, which is an error; SIGHUP has `load` called again."""
    set_up_log()
    allow_descriptors()
    config = _told(BackendConfig(place.directory), load())
    stop, reload = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload.set)
    with closing(Notifier()) as notifier, ended_by_signals(stop.set), place.open_platform() as platform:
        async with Backend(platform, config, SystemdFdStore(notifier)) as backend:
            log.info("serving domain %d of the %s Xen in %s", platform.domid, platform.name, place.directory)
            notifier.ready(_status(backend))
            await until_stopped(stop, _live(backend, notifier, reload, load))
            notifier.stopping()


async def _live(
    backend: Backend, notifier: Notifier, reload: asyncio.Event, load: Callable[[], Config]
) -> None:
    """All that goes on until the store is gone."""
    going = [
        asyncio.create_task(backend.wait()),
        asyncio.create_task(_reload(backend, notifier, reload, load)),
    ]
    if notifier.watchdog is not None:
        going.append(asyncio.create_task(_breathe(backend, notifier, notifier.watchdog / _TICKS)))
    try:
        done, _ = await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in going:
            task.cancel()
        await asyncio.gather(*going, return_exceptions=True)


async def _reload(
    backend: Backend, notifier: Notifier, reload: asyncio.Event, load: Callable[[], Config]
) -> None:
    """A configuration with a mistake changes nothing."""
    while await reload.wait():
        reload.clear()
        notifier.reloading()
        try:
            await backend.reconfigure(_told(backend.config, load()))
        except ConfigError as error:
            log.error("the configuration stays as it was: %s", error)
        else:
            log.info("the configuration is loaded")
        notifier.ready(_status(backend))


async def _breathe(backend: Backend, notifier: Notifier, seconds: float) -> None:
    """A sign of life while this loop and every worker have one."""
    while True:
        await backend.respond()
        notifier.alive(_status(backend))
        await asyncio.sleep(seconds)


def _told(backend: BackendConfig, config: Config) -> BackendConfig:
    return replace(backend, net=config.net, trace=config.trace, workers=config.workers, rules=config.device)


def _status(backend: Backend) -> str:
    """One line for `systemctl status`."""
    devices = backend.devices.values()
    connected = sum(device.vif is not None and device.vif.connected for device in devices)
    return f"domain {backend.platform.domid}: {len(devices)} devices, {connected} connected"
