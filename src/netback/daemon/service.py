# SPDX-License-Identifier: Apache-2.0
"""The backend as a service: runs it from its configuration until a signal, and reports to the service
manager.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path

from netback.daemon.backend import Backend, BackendConfig
from netback.daemon.config import Config
from netback.daemon.systemd.fd_store import SystemdFdStore
from netback.daemon.systemd.logs import set_up_log
from netback.daemon.systemd.notify import Notifier
from netback.errors import ConfigError
from netback.observe.trace import LogBudget
from netback.platforms.base import Platform
from netback.platforms.xen.devices import xen_version
from netback.process import allow_descriptors, called_at, ended_by_signals, until_stopped
from netback.xenstore.aio import StoreError

log = logging.getLogger("netback")

_BEATS = 3
"""WATCHDOG=1 messages per interval of the service manager; more than one, so that a late message does no
harm."""


async def serve(
    directory: Path,
    open_platform: Callable[[], AbstractContextManager[Platform]],
    load: Callable[[], Config],
) -> None:
    """Serve until SIGINT or SIGTERM; SIGHUP calls `load` again.

    `directory` is the runtime directory. ConfigError: a mistake in the configuration, or another backend serves this
    domain. PlatformError with errno EIO: there is no store, or it is gone.
    """
    set_up_log()
    allow_descriptors()
    config = _configured(BackendConfig(directory, recordings=kept_recordings()), load())
    stop, reload = asyncio.Event(), asyncio.Event()
    with (
        called_at(signal.SIGHUP, reload.set),
        closing(Notifier()) as notifier,
        open_platform() as platform,
        ended_by_signals(stop.set),
    ):
        backend = Backend(platform, config, SystemdFdStore(notifier))
        await until_stopped(stop, _start(backend, notifier, reload, load))


async def _start(
    backend: Backend, notifier: Notifier, reload: asyncio.Event, load: Callable[[], Config]
) -> None:
    """Start and serve until cancelled or until the store is gone. A signal during the start cancels it too."""
    async with backend:
        log.info("serving domain %d on %s", backend.platform.domid, _where(backend))
        notifier.ready(_status(backend))
        try:
            await _live(backend, notifier, reload, load)
        finally:
            notifier.stopping()


def _where(backend: Backend) -> str:
    """The Xen to use, and the runtime directory."""
    xen = f"Xen {xen_version()}".rstrip() if backend.platform.name == "xen" else "an emulated Xen"
    return f"{xen}, runtime files in {backend.config.directory}"


async def _live(
    backend: Backend, notifier: Notifier, reload: asyncio.Event, load: Callable[[], Config]
) -> None:
    """The tasks that run until the store is gone."""
    going = [
        asyncio.create_task(backend.wait()),
        asyncio.create_task(_reload(backend, notifier, reload, load)),
    ]
    if notifier.watchdog is not None:
        going.append(asyncio.create_task(_watchdog(backend, notifier, notifier.watchdog / _BEATS)))
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
    """Load the configuration at every SIGHUP. A file with a mistake changes nothing; no file ends the
    backend.
    """
    budget = LogBudget()
    while await reload.wait():
        reload.clear()
        notifier.reloading()
        try:
            await backend.reconfigure(_configured(backend.config, load()))
        except ConfigError as error:
            budget.warn(log, f"the previous configuration stays in force: {error}")
        except StoreError:
            raise
        except Exception as error:  # a bug while reading a file must not end the backend
            budget.warn(log, f"the previous configuration stays in force: unexpected {error!r}")
        else:
            log.info("the configuration is loaded")
        notifier.ready(_status(backend))


async def _watchdog(backend: Backend, notifier: Notifier, seconds: float) -> None:
    """Send WATCHDOG=1 while this loop and every worker respond."""
    while True:
        await backend.respond()
        notifier.alive(_status(backend))
        await asyncio.sleep(seconds)


def kept_recordings(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The directory for recordings of faults among those that outlive a boot (StateDirectory=, systemd.exec(5)); None:
    systemd gave none.
    """
    state = environment.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(state) / "recordings" if state.startswith("/") else None


def _configured(backend: BackendConfig, config: Config) -> BackendConfig:
    return replace(
        backend,
        net=config.net,
        trace=config.trace,
        workers=config.workers,
        queues=config.queues,
        rules=config.device,
        rules_file=None if config.rules_file is None else Path(config.rules_file),
        filters=config.filters,
        record=config.record,
        times=config.times,
        hotplug=config.scripts,
        access=config.access,
    )


def _status(backend: Backend) -> str:
    """One line for `systemctl status`."""
    devices = backend.devices.values()
    connected = sum(device.vif is not None and device.vif.connected for device in devices)
    return f"domain {backend.platform.domid}: {len(devices)} devices, {connected} connected"
