# SPDX-License-Identifier: Apache-2.0
"""The toolstack's side: the nodes that libxl writes to create a device, and to remove it."""

import asyncio
from collections.abc import Callable

from netback.abi.xenbus import XenbusState as State
from netback.daemon import Backend
from netback.vif.features import DeviceType
from netback.xenbus.device import Device
from netback.xenbus.names import DeviceName
from netback.xenbus.nodes import write_device
from netback.xenstore.aio import Store
from tests.vif.guest import SECONDS

MAC = "00:16:3e:11:22:33"


async def add(
    store: Store,
    domid: int,
    *,
    kind: DeviceType = "vif",
    number: str = "0",
    backend: int = 0,
    mac_written: bool = True,
    **changes: str | None,
) -> DeviceName:
    """Write a new device's nodes in one transaction; `changes` replace backend keys, None leaves one out.

    `mac_written`: write the MAC address into the frontend's directory as well.
    """
    name = DeviceName(kind, backend, domid, number)
    ours: dict[str, str | None] = {
        "frontend": name.frontend,
        "frontend-id": str(domid),
        "online": "1",
        "state": "1",
        "mac": MAC,
        "net": "python:lan",
    }
    ours |= {key.replace("_", "-"): value for key, value in changes.items()}
    frontend = {"backend": name.backend, "backend-id": str(backend), "state": "1"} | (
        {"mac": MAC} if mac_written else {}
    )

    async def body(tx: int) -> None:
        await write_device(store, name, frontend, {k: v for k, v in ours.items() if v is not None}, tx)

    await store.transact(body)
    return name


async def take_away(store: Store, name: DeviceName) -> None:
    """Write what libxl writes to remove a device."""

    async def body(tx: int) -> None:
        await store.write(f"{name.backend}/online", "0", tx)
        await store.write(f"{name.backend}/state", str(int(State.CLOSING)), tx)

    await store.transact(body)


async def passing(backend: Backend, true: Callable[[], bool]) -> None:
    """Wait until `true` holds; each request to the store lets the backend run."""
    async with asyncio.timeout(SECONDS):
        while not true():
            await backend.store.read("/local/domain/0/name")


async def gone(backend: Backend, name: DeviceName) -> None:
    """Wait until the backend has forgotten a device."""
    await passing(backend, lambda: name not in backend.devices)


async def looked(backend: Backend, device: Device, theirs: State) -> None:
    """Wait until the device has seen this frontend state and has finished acting on it.

    Its own writes wake it again; their events come before the answer to a later request of its connection.
    """
    rounds = -1
    while rounds != device.rounds:
        await passing(backend, lambda: device.frontend_state is theirs and device.settled)
        rounds = device.rounds
        for _ in range(20):
            await backend.store.read("/local/domain/0/name")
