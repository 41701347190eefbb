# SPDX-License-Identifier: Apache-2.0
"""A device's whole life on emulated Xen: attached, connected, frames both ways, detached; adopted by a successor."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState as State
from netback.daemon import Backend, BackendConfig
from netback.net.python import PythonNetwork
from netback.platforms.emulated import EmulatedPlatform
from netback.vif.features import DeviceType
from tests.vif.guest import FRAME, exchange, join, serving, until_state


@pytest.mark.parametrize(("kind", "offset"), [("vif", 0), ("qnic", 2)])
async def test_life(xen: Path, network: PythonNetwork, kind: DeviceType, offset: int) -> None:
    async with serving(xen, network) as backend, join(xen) as guest:
        name = await backend.attach(guest.domid, "python:lan", kind=kind)
        await guest.connect()
        await exchange(guest, network, offset)
        assert backend.devices[name].vif is not None
        assert not await backend.detach(name, seconds=0.1)
        assert not guest.domain.still_in_use(guest.tx.gref)
        assert await backend.store.read_or(name.backend) is None
        assert await backend.store.read_or(name.frontend) is None
        assert not list((xen / "journal").iterdir())


async def test_successor_goes_on(xen: Path, network: PythonNetwork) -> None:
    """The end of a backend changes nothing, and the next one resumes the rings at their indices."""
    async with join(xen) as guest:
        async with serving(xen, network) as backend:
            name = await backend.attach(guest.domid, "python:lan")
            await guest.connect()
            await exchange(guest, network)
        waiting = guest.send(FRAME)
        assert await guest.store.read(f"{name.backend}/state") == "4"
        async with serving(xen, network) as backend:
            assert await guest.answer(waiting) == 0
            assert await network.recv() == FRAME
            await exchange(guest, network)
            await until_state(backend.store, name.backend, State.CONNECTED)


async def test_stale_frames_are_thrown_away(xen: Path, network: PythonNetwork) -> None:
    """Frames sent before the guest connected are discarded; frames sent between two backends are not."""
    async with join(xen) as guest:
        async with serving(xen, network) as backend:
            await network.send(b"stale" * 12)
            name = await backend.attach(guest.domid, "python:lan")
            await guest.connect()
            await exchange(guest, network)
        await network.send(FRAME)
        slot = guest.post()
        async with serving(xen, network) as backend:
            assert await guest.receive(slot) == (0, FRAME)
            assert await backend.store.read(f"{name.backend}/state") == "4"


async def test_many_guests_on_few_workers(xen: Path) -> None:
    """Queues are spread; each guest's frames reach its own network alone."""
    networks = {f"python:{number}": PythonNetwork() for number in range(6)}
    with EmulatedPlatform(xen) as platform:
        async with AsyncExitStack() as stack:
            backend = Backend(platform, BackendConfig(xen, networks=networks, workers=2))
            await stack.enter_async_context(backend)
            guests = [await stack.enter_async_context(join(xen)) for _ in networks]
            for guest, net in zip(guests, networks, strict=True):
                await backend.attach(guest.domid, net)
            await asyncio.gather(*(guest.connect() for guest in guests))
            assert backend.load == [3, 3]
            for _ in range(3):
                await asyncio.gather(*map(exchange, guests, networks.values()))
    for network in networks.values():
        network.remove()
