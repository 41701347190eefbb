# SPDX-License-Identifier: Apache-2.0
"""Ends in every order: guests killed during a burst, repeated connections, a broken vif that is then removed."""

import asyncio
from pathlib import Path

import pytest

from netback.abi.netif import RX_REQUEST, TxFlag
from netback.abi.xenbus import XenbusState as State
from netback.daemon import Backend, BackendConfig
from netback.frontend import Guest, Script
from netback.net.python import PythonNetwork
from netback.platforms.emulated import EmulatedPlatform
from tests.hostile.topology import SECONDS, Topology, calm, frame, nothing_left, resident, tx, until

CYCLES = 50
GROWTH = 24 << 20


async def busy(script: Script, far: PythonNetwork) -> None:
    """A burst in both directions, under way."""
    page, into = script.grant(frame(1)), script.grant()
    script.post(script.rx, *[RX_REQUEST.pack(i, 0, into.gref) for i in range(16)])
    script.post(script.tx, *[tx(page, 60, number=i) for i in range(200)], notify=True)
    for number in range(40):
        try:
            far.socket.send(frame(number, 1000))
        except BlockingIOError:
            return


async def life(backend: Backend, far: PythonNetwork, directory: Path, number: int) -> None:
    """A guest joins, connects, and ends in the middle of a burst; every second one broke its ring before."""
    async with Guest(directory, name="brief") as guest, Script(guest) as script:
        name = await backend.attach(guest.domid, "python:bad")
        async with asyncio.timeout(SECONDS):
            await script.offered()
            await script.connect()
        await busy(script, far)
        if number % 2:
            script.tx.push(script.tx.rsp_prod + 1000)
            script.notify()
    assert await until(backend.store, lambda: name not in backend.devices)


async def test_guests_killed_in_a_burst(xen: Path, caplog: pytest.LogCaptureFixture) -> None:
    """XSA-350, -371, -374: descriptors, mappings and memory are the same after fifty of them."""
    far = PythonNetwork("python:bad")
    with EmulatedPlatform(xen) as platform:
        config = BackendConfig(xen, networks={"python:bad": far}, workers=1)
        async with Backend(platform, config) as backend:
            for number in range(4):
                await life(backend, far, xen, number)
            before = resident()
            async with nothing_left(xen):
                for number in range(CYCLES):
                    await life(backend, far, xen, number)
            assert resident() - before < GROWTH
            assert await backend.store.read_or("/local/domain/0/error/backend/vif") is None
    far.remove()
    calm(caplog, lines=2 * CYCLES)


async def test_connections_again_and_again(topology: Topology) -> None:
    """XSA-465, -371: closing and connecting again is idempotent; the guest gets its rings back each time."""
    await topology.connect()
    before = resident()
    for _ in range(CYCLES):
        await busy(topology.bad, topology.far)
        await topology.answers(0, 200)
        for _ in range(200):
            await topology.far.recv()
        await topology.bad.set_state(State.CLOSED)
        await topology.state(State.CLOSED)
        rings = topology.bad.rings
        assert not topology.bad.guest.domain.still_in_use(rings.tx.gref)
        assert not topology.bad.guest.domain.still_in_use(rings.rx.gref)
        rings.close()
        await topology.bad.set_state(State.INITIALISING)
        await topology.state(State.INIT_WAIT)
        await topology.bad.open_rings()
        async with asyncio.timeout(SECONDS):
            await topology.bad.connect()
    assert resident() - before < GROWTH
    await topology.works()


@pytest.mark.parametrize("goes", ["closed", "gone", "detached", "killed"])
async def test_a_broken_vif_goes(topology: Topology, goes: str) -> None:
    """XSA-90, -374, -424: the worker only reports that the vif broke; the event loop takes it down."""
    await topology.connect()
    page = topology.bad.grant(frame(1))
    topology.bad.post(topology.bad.tx, *[tx(page, 60)] * 100, tx(page, 60, flags=TxFlag.MORE_DATA))
    await topology.closes("TX chain runs past req_prod")
    await topology.others_pass()
    if goes == "closed":
        await topology.bad.set_state(State.CLOSED)
        await topology.state(State.CLOSED)
    elif goes == "gone":
        await topology.bad.guest.store.rm(topology.bad.path)
        await topology.state(State.CLOSED)
    elif goes == "detached":
        assert not await topology.backend.detach(topology.name, seconds=0.1)
        assert (
            topology.name not in topology.backend.devices
            or topology.backend.devices[topology.name].vif is None
        )
    await topology.others_pass()


async def test_both_ends_at_once(topology: Topology) -> None:
    """The guest breaks its ring, closes and is removed at the same moment; its device ends once and no other does."""
    await topology.connect()
    topology.bad.tx.push(1000)
    topology.bad.notify()
    await asyncio.gather(
        topology.bad.set_state(State.CLOSED),
        topology.backend.detach(topology.name, seconds=5),
        topology.others_pass(20),
    )
    await topology.until(lambda: topology.name not in topology.backend.devices)
    assert not topology.bad.guest.domain.still_in_use(topology.bad.rings.tx.gref)
