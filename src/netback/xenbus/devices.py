# SPDX-License-Identifier: Apache-2.0
"""Finds the devices of a backend domain in the store and gives each one its news.

Knows where devices appear; what one does with its news is in `device`.
"""

import asyncio

from netback.vif.features import DeviceType
from netback.xenbus.context import Context
from netback.xenbus.device import Device
from netback.xenbus.names import DEVICE_TYPES, DOMID_FIRST_RESERVED, DeviceName, backends, decimal
from netback.xenstore.aio import StoreError


class Devices:
    """All devices of the backend's domain."""

    def __init__(self, context: Context) -> None:
        self.devices: dict[DeviceName, Device] = {}
        self.scanned = asyncio.Event()
        self._context = context
        self._unscanned = set(DEVICE_TYPES)
        self._tasks: asyncio.TaskGroup

    async def run(self) -> None:
        """Until cancelled, or until the store ends."""
        async with asyncio.TaskGroup() as self._tasks:
            for kind in DEVICE_TYPES:
                self._tasks.create_task(self._follow(kind))
            self._tasks.create_task(self._follow_releases())

    async def _follow(self, kind: DeviceType) -> None:
        root = backends(self._context.platform.domid, kind)
        async with await self._context.store.watch(root) as watch:
            async for path in watch:
                await self._look(kind, path.removeprefix(root).strip("/").split("/"))
                self._unscanned.discard(kind)
                if not self._unscanned:
                    self.scanned.set()

    async def _follow_releases(self) -> None:
        """A domain ended: whose it was is for its devices to see."""
        async with await self._context.store.watch("@releaseDomain") as watch:
            async for _ in watch:
                for device in self.devices.values():
                    device.news.set()

    async def _look(self, kind: DeviceType, parts: list[str]) -> None:
        """Something changed at or below backend/<type>/<parts>."""
        if len(parts) >= 2:
            self._poke(kind, parts[0], parts[1])
            return
        for device in self.devices.values():
            device.news.set()
        root = backends(self._context.platform.domid, kind)
        for domid in [parts[0]] if parts[0] else await self._children(root):
            for number in await self._children(f"{root}/{domid}"):
                self._poke(kind, domid, number)

    async def _children(self, path: str) -> list[str]:
        try:
            return await self._context.store.directory(path)
        except StoreError as error:
            if error.errno != "ENOENT":
                raise
            return []

    def _poke(self, kind: DeviceType, domid: str, number: str) -> None:
        fe = decimal(domid, DOMID_FIRST_RESERVED)
        if fe is None:
            return
        name = DeviceName(kind, self._context.platform.domid, fe, number)
        if name not in self.devices:
            self.devices[name] = Device(name, self._context)
            self._tasks.create_task(self._live(self.devices[name]))
        self.devices[name].news.set()

    async def _live(self, device: Device) -> None:
        """A device's whole life; news that came at its very end are for a new one."""
        device_news = device.news
        await device.run()
        del self.devices[device.name]
        if device_news.is_set():
            self._poke(device.name.kind, str(device.name.domid), device.name.number)
