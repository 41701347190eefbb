# SPDX-License-Identifier: Apache-2.0
"""Finds the devices of a backend domain in the store and wakes each one when its nodes change.

This module knows where devices appear; `device` acts when it wakes. A directory or watch that the store
refuses is requested again later. Only the end of the store (StoreGone) ends this task.
"""

import asyncio
import logging
from contextlib import suppress

from netback.abi.xen import DOMID_FIRST_RESERVED
from netback.errors import printable
from netback.observe.trace import LogBudget
from netback.vif.features import DeviceType
from netback.xenbus.context import Context
from netback.xenbus.device import Device
from netback.xenbus.frontends import Frontends
from netback.xenbus.names import (
    DEVICE_TYPES,
    DeviceName,
    backends,
    decimal,
    errors,
    remove_empty,
)
from netback.xenbus.nodes import LINK_DOWN, PCAP, RATES
from netback.xenbus.pace import RETRY_SECONDS, Pace
from netback.xenstore.aio import Store, StoreError, StoreGone, Watch

log = logging.getLogger("netback.xenbus")

_RATES = [[node] for node in (*RATES, LINK_DOWN, PCAP)]

AGAIN_SECONDS = RETRY_SECONDS[-1]
"""Seconds until a refused directory or watch is requested again."""


async def patient_watch(store: Store, path: str, budget: LogBudget) -> Watch:
    """Set a watch; retry for as long as the store refuses it. StoreGone: the store ended."""
    while True:
        try:
            return await store.watch(path)
        except StoreGone:
            raise
        except StoreError as error:
            budget.warn(log, f"cannot look for devices: {printable(str(error))}")
        await asyncio.sleep(AGAIN_SECONDS)


class Devices:
    """All devices of the backend's domain."""

    def __init__(self, context: Context) -> None:
        self.devices: dict[DeviceName, Device] = {}
        self.scanned = asyncio.Event()
        """Set once every device that existed at the start is known."""
        self._context, self._store = context, context.store
        self._domid = context.platform.domid
        self._pace = Pace()
        self._budget = LogBudget()
        self._unscanned = set(DEVICE_TYPES)
        self._frontends: Frontends
        self._tasks: asyncio.TaskGroup

    async def run(self) -> None:
        """Serve until cancelled; raises StoreGone when the store ends."""
        self._frontends = Frontends(self._store, shared=not await self._store.privileged())
        async with asyncio.TaskGroup() as self._tasks:
            for kind in DEVICE_TYPES:
                self._tasks.create_task(self._follow(kind))
            self._tasks.create_task(self._follow_releases())
            await self.scanned.wait()
            await self._remove_errors()

    # ---- watches

    async def _follow(self, kind: DeviceType) -> None:
        root = backends(self._domid, kind)
        async with await patient_watch(self._store, root, self._budget) as watch:
            async for path in watch:
                try:
                    await self._scan(kind, path.removeprefix(root).strip("/").split("/"))
                except StoreGone:
                    raise
                except StoreError as error:
                    self._budget.warn(log, f"cannot look for devices: {printable(str(error))}")
                    asyncio.get_running_loop().call_later(AGAIN_SECONDS, watch.fired, path)
                self._unscanned.discard(kind)
                if not self._unscanned:
                    self.scanned.set()

    async def _follow_releases(self) -> None:
        """Wake the devices of domains that ended, and of domains that this domain may not query."""
        async with await patient_watch(self._store, "@releaseDomain", self._budget) as watch:
            async for _ in watch:
                domids = {name.domid for name in self.devices}
                gone = {domid for domid in domids if not await self._lives(domid)}
                for name, device in self.devices.items():
                    if name.domid in gone:
                        device.news.set()

    async def _lives(self, domid: int) -> bool:
        try:
            return await self._store.introduced(domid)
        except StoreGone:
            raise
        except StoreError:
            return False

    async def _scan(self, kind: DeviceType, parts: list[str]) -> None:
        """Wake the devices at or below backend/<type>/<parts>."""
        if len(parts) >= 2:
            self._wake(kind, parts[0], parts[1], rates=parts[2:] in _RATES)
            return
        for name, device in self.devices.items():
            if name.kind == kind and parts[0] in ("", str(name.domid)):
                device.news.set()
        root = backends(self._domid, kind)
        for domid in [parts[0]] if parts[0] else await self._store.children(root):
            for number in await self._store.children(f"{root}/{domid}"):
                self._wake(kind, domid, number)

    # ---- devices

    def _wake(self, kind: DeviceType, domid: str, number: str, *, rates: bool = False) -> None:
        guest = decimal(domid, DOMID_FIRST_RESERVED)
        if guest is None:
            return
        name = DeviceName(kind, self._domid, guest, number)
        if name not in self.devices:
            self.devices[name] = Device(name, self._context, self._frontends, self._pace)
            self._tasks.create_task(self._run_device(self.devices[name]))
        self.devices[name].rates_changed |= rates
        self.devices[name].news.set()

    async def _run_device(self, device: Device) -> None:
        """Run a device until its end. News that arrived during its end is for a new device of that name."""
        name = device.name
        try:
            await device.run()
        except StoreGone:
            raise
        except Exception:  # a bug while one device is released must not end the others
            self._budget.warn(log, f"{name}: unexpected at its end", exc_info=True)
        del self.devices[name]
        if device.news.is_set():
            self._wake(name.kind, str(name.domid), name.number)

    async def _remove_errors(self) -> None:
        """Remove error nodes of devices that were removed while no backend ran."""
        for kind in DEVICE_TYPES:
            root = errors(self._domid, kind)
            with suppress(StoreError):
                for domid in await self._store.children(root):
                    for number in await self._store.children(f"{root}/{domid}"):
                        if not self._knows(kind, domid, number):
                            await remove_empty(self._store, f"{root}/{domid}/{number}", 3)

    def _knows(self, kind: DeviceType, domid: str, number: str) -> bool:
        """Whether the device is served now: it may have appeared since the error nodes were listed."""
        guest = decimal(domid, DOMID_FIRST_RESERVED)
        return guest is not None and DeviceName(kind, self._domid, guest, number) in self.devices
