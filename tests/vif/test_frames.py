# SPDX-License-Identifier: Apache-2.0
"""A device's whole life on emulated Xen: attached, connected, frames both ways, detached; and adopted by a successor."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState as State
from netback.daemon import Backend, BackendConfig
from netback.net.python import PythonNetwork
from netback.platforms.emulated import EmulatedPlatform, Emulator
from netback.vif.features import DeviceType
from tests.vif.guest import Guest, join, until_state

FRAME = bytes(range(60))


@pytest.fixture
def network() -> Iterator[PythonNetwork]:
    made = PythonNetwork()
    yield made
    made.remove()


@asynccontextmanager
async def serving(directory: Path, network: PythonNetwork, **config: object) -> AsyncIterator[Backend]:
    """A backend whose vifs are joined to `network`."""
    settings = BackendConfig(directory, networks={"python:lan": network}, workers=1, **config)  # type: ignore[arg-type]
    with EmulatedPlatform(directory) as platform:
        async with Backend(platform, settings) as backend:
            yield backend


async def exchange(guest: Guest, network: PythonNetwork, offset: int = 0) -> None:
    """A frame each way."""
    slot = guest.send(FRAME)
    assert await network.recv() == FRAME
    assert await guest.answer(slot) == 0
    slot = guest.post()
    await network.send(FRAME[::-1])
    assert await guest.receive(slot) == (offset, FRAME[::-1])


@pytest.mark.parametrize(("kind", "offset"), [("vif", 0), ("qnic", 2)])
async def test_life(tmp_path: Path, network: PythonNetwork, kind: DeviceType, offset: int) -> None:
    with Emulator(tmp_path):
        async with serving(tmp_path, network) as backend, join(tmp_path) as guest:
            name = await backend.attach(guest.domid, "python:lan", kind=kind)
            await guest.connect()
            await exchange(guest, network, offset)
            assert backend.devices[name].vif is not None
            assert not await backend.detach(name, seconds=0.1)
            assert not guest.domain.still_in_use(guest.tx.gref)
            assert await backend.store.read_or(name.backend) is None
            assert await backend.store.read_or(name.frontend) is None
            assert not list((tmp_path / "journal").iterdir())


async def test_successor_goes_on(tmp_path: Path, network: PythonNetwork) -> None:
    """The end of a backend changes nothing, and the next one takes the rings up where they stand."""
    with Emulator(tmp_path):
        async with join(tmp_path) as guest:
            async with serving(tmp_path, network) as backend:
                name = await backend.attach(guest.domid, "python:lan")
                await guest.connect()
                await exchange(guest, network)
            waiting = guest.send(FRAME)
            assert await guest.store.read(f"{name.backend}/state") == "4"
            async with serving(tmp_path, network) as backend:
                assert await guest.answer(waiting) == 0
                assert await network.recv() == FRAME
                await exchange(guest, network)
                await until_state(backend.store, name.backend, State.CONNECTED)
