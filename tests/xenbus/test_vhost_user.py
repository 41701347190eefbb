# SPDX-License-Identifier: Apache-2.0
"""Devices joined to vhost-user: the other program restarts, lies, comes late; netback restarts. Guests see a pause."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState as State
from netback.daemon import Backend
from netback.frontend import FrontConfig, Frontend
from netback.net.python import PythonNetwork
from netback.xenbus.names import DeviceName
from tests.net.far import PLAIN
from tests.net.test_vhost_user import jump
from tests.net.vhost_device import Device
from tests.vif.guest import FRAME, SECONDS, Guest, join, serving
from tests.xenbus.test_links import connect, fault, mac_frame, mended, unchanged
from tests.xenbus.toolstack import add, gone, take_away


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device.sock"


@pytest.fixture
def device(path: Path) -> Iterator[Device]:
    with Device(path) as device:
        yield device


async def pass_frames(device: Device, guest: Guest, slot: int) -> int:
    """Pass one frame each way between the guest and the device; `slot` is the one that the guest has posted. Returns
    the next one: a worker waits for frames only if the guest can take them.
    """
    assert await guest.answer(guest.send(mac_frame(1))) == 0
    assert await asyncio.to_thread(device.recv) == PLAIN + mac_frame(1)
    await asyncio.to_thread(device.send, PLAIN + mac_frame(2))
    assert (await guest.receive(slot))[1] == mac_frame(2)
    return guest.post()


async def pass_again(
    backend: Backend, name: DeviceName, device: Device, guest: Guest, slot: int, connection: int
) -> int:
    """Wait for the device's connection of that number, and pass frames."""
    await asyncio.to_thread(device.await_ready, connection)
    await mended(backend, name)
    return await pass_frames(device, guest, slot)


async def test_a_device_that_restarts(backend: Backend, guest: Guest, device: Device) -> None:
    name = await connect(backend, guest, f"vhost-user:{device.path}")
    slot = await pass_frames(device, guest, guest.post())
    for connection in (2, 3):
        device.drop()
        await fault(backend, name, f"vhost-user:{device.path}: it closed the connection")
        slot = await pass_again(backend, name, device, guest, slot, connection)
    await unchanged(guest, name, 3)


async def test_a_device_that_lies_and_the_neighbour(
    backend: Backend, guest: Guest, device: Device, network: PythonNetwork, xen: Path
) -> None:
    name = await connect(backend, guest, f"vhost-user:{device.path}")
    slot = await pass_frames(device, guest, guest.post())
    async with join(xen) as other:
        await connect(backend, other, "python:lan")
        jump(device.rx)
        device.rx.notify()
        assert await other.answer(other.send(FRAME)) == 0
        assert await network.recv() == FRAME
        await fault(backend, name, "it broke the protocol: an impossible index in a used ring")
        await pass_again(backend, name, device, guest, slot, 2)
    await unchanged(guest, name, 2)


async def test_a_device_that_ends_and_is_started_again(backend: Backend, guest: Guest, path: Path) -> None:
    with Device(path) as device:
        name = await connect(backend, guest, f"vhost-user:{path}")
        slot = await pass_frames(device, guest, guest.post())
    await fault(backend, name, "cannot connect: No such file or directory")
    assert await guest.answer(guest.send(FRAME)) == 0  # as on a cable without a carrier
    with Device(path) as device:
        await pass_again(backend, name, device, guest, slot, 1)
    await unchanged(guest, name, 3)


async def test_a_device_that_comes_late(backend: Backend, guest: Guest, path: Path) -> None:
    name = await add(backend.store, guest.domid, net=f"vhost-user:{path}")
    await fault(backend, name, "cannot connect: No such file or directory")
    with Device(path) as device:
        await guest.connect()
        await pass_again(backend, name, device, guest, guest.post(), 1)


async def test_a_program_that_connects_to_netback(backend: Backend, guest: Guest, path: Path) -> None:
    name = await connect(backend, guest, f"vhost-user:{path},server")
    slot = guest.post()
    await fault(backend, name, "it has not connected yet")
    with Device(path, client=True) as device:
        await pass_again(backend, name, device, guest, slot, 1)
        await take_away(backend.store, name)
        await guest.set_state(State.CLOSED)
        await gone(backend, name)
    assert not await asyncio.to_thread(path.exists)


async def test_netback_restarts(xen: Path, guest: Guest, network: PythonNetwork, device: Device) -> None:
    """The next process goes on with the rings, over a new connection."""
    async with serving(xen, network) as backend:
        name = await connect(backend, guest, f"vhost-user:{device.path}")
        slot = await pass_frames(device, guest, guest.post())
    sent = guest.send(mac_frame(3))
    async with serving(xen, network):
        assert await guest.answer(sent) == 0
        await asyncio.to_thread(device.await_ready, 2)
        assert await asyncio.to_thread(device.recv) == PLAIN + mac_frame(3)
        await pass_frames(device, guest, slot)
        await unchanged(guest, name, 2)


async def test_a_guest_of_two_queues(xen: Path, network: PythonNetwork, path: Path) -> None:
    """A pair of virtqueues for each, over a new connection; frames of either reach the guest."""
    with Device(path, pairs=4) as device:
        async with (
            serving(xen, network, queues=2) as backend,
            Frontend(xen, config=FrontConfig(queues=2)) as guest,
        ):
            name = await add(backend.store, guest.guest.domid, net=f"vhost-user:{path}")
            async with asyncio.timeout(SECONDS):
                await guest.connected()
            await asyncio.to_thread(device.await_ready, 2)
            vif = backend.devices[name].vif
            assert vif is not None
            assert len(vif.network.peers) == 2
            assert isinstance(guest.network, PythonNetwork)
            for pair in (0, 1):
                await asyncio.to_thread(device.send, PLAIN + mac_frame(pair), pair)
                assert await guest.network.recv() == PLAIN + mac_frame(pair)
