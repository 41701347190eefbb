# SPDX-License-Identifier: Apache-2.0
"""A guest's control ring and its backend: the hash of frames, and what survives a backend's end."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from netback.abi.netif_control import CtrlStatus, CtrlType, HashAlgorithm, HashType
from netback.daemon import Backend
from netback.frontend import FrontConfig, Frontend
from netback.frontend.control import ControlError, FrontControl
from netback.net.python import PythonNetwork
from tests.frontend.pair import counters
from tests.vif.guest import SECONDS, serving

KEY = bytes(range(1, 41))
ALL = HashType.IPV4 | HashType.IPV4_TCP | HashType.IPV6 | HashType.IPV6_TCP

UDP = struct.pack(">BBHHHBBH8s", 0x45, 0, 40, 0, 0, 64, 17, 0, bytes(8))
IPV4 = bytes(12) + b"\x08\x00" + UDP + bytes(26)


@pytest.fixture
def far(network: PythonNetwork) -> PythonNetwork:
    return network


@asynccontextmanager
async def guest_with_control(xen: Path, far: PythonNetwork) -> AsyncIterator[tuple[Frontend, FrontControl]]:
    async with serving(xen, far) as backend, Frontend(xen, config=FrontConfig(control=True)) as vif:
        await backend.attach(vif.guest.domid, "python:lan")
        async with asyncio.timeout(SECONDS):
            await vif.connected()
        assert vif.control is not None
        yield vif, vif.control


async def test_a_guest_asks_for_hashes_and_gets_them(xen: Path, far: PythonNetwork) -> None:
    async with guest_with_control(xen, far) as (vif, control), asyncio.timeout(SECONDS):
        assert await control.request(CtrlType.GET_HASH_FLAGS) == (CtrlStatus.NOT_SUPPORTED, 0)
        await control.set_hash(ALL, KEY, [0] * 128)
        assert await control.request(CtrlType.GET_HASH_FLAGS) == (CtrlStatus.SUCCESS, ALL)
        await far.send(IPV4)
        assert await vif.network.recv() == bytes(10) + IPV4
        assert (await counters(vif))["rx_hashed"] == 1
        await control.require(CtrlType.SET_HASH_ALGORITHM, HashAlgorithm.NONE)
        await far.send(IPV4)
        await vif.network.recv()
        assert (await counters(vif))["rx_hashed"] == 1
        with pytest.raises(ControlError, match="SET_HASH_FLAGS"):
            await control.require(CtrlType.SET_HASH_FLAGS, 1)


async def test_what_a_guest_set_outlives_the_backend(xen: Path, far: PythonNetwork) -> None:
    """A guest never sends it again (netif.h): the next backend has algorithm, types, key and mapping, and hashes."""
    async with Frontend(xen, config=FrontConfig(control=True)) as vif, asyncio.timeout(SECONDS):
        async with serving(xen, far) as backend:
            await backend.attach(vif.guest.domid, "python:lan")
            await vif.connected()
            assert vif.control is not None
            await vif.control.set_hash(HashType.IPV4, KEY, [0] * 8)
        control = vif.control
        async with serving(xen, far):
            assert await control.request(CtrlType.GET_HASH_FLAGS) == (CtrlStatus.SUCCESS, ALL)
            entries = control.grant(struct.pack("<I", 0), readonly=True).gref
            assert await control.request(CtrlType.SET_HASH_MAPPING, entries, 1, 7) == (CtrlStatus.SUCCESS, 0)
            await far.send(IPV4)
            await vif.network.recv()
            assert (await counters(vif))["rx_hashed"] == 1


async def test_a_new_connection_begins_with_nothing(xen: Path, far: PythonNetwork) -> None:
    async with guest_with_control(xen, far) as (vif, control), asyncio.timeout(SECONDS):
        await control.set_hash(ALL, KEY)
        await vif.reload()
        await vif.connected()
        assert vif.control is not None
        assert await vif.control.request(CtrlType.GET_HASH_FLAGS) == (CtrlStatus.NOT_SUPPORTED, 0)
        await far.send(IPV4)
        await vif.network.recv()
        assert (await counters(vif))["rx_hashed"] == 0


async def test_a_guest_that_wants_no_control_ring(xen: Path, far: PythonNetwork) -> None:
    async with serving(xen, far) as backend, Frontend(xen) as vif, asyncio.timeout(SECONDS):
        await backend.attach(vif.guest.domid, "python:lan")
        await vif.connected()
        assert vif.control is None
        assert "ctrl" not in next(iter(backend.devices.values())).vif.rings


async def grants(vif: Frontend, backend: Backend) -> tuple[int, int]:
    """(grant operations, copies without one) of the backend's only vif, both ways."""
    await backend.respond()
    counted = next(iter(backend.devices.values())).vif.counters
    return counted["tx_copies"] + counted["rx_copies"], counted["tx_staged"] + counted["rx_staged"]


async def exchange(vif: Frontend, far: PythonNetwork, frames: int) -> None:
    """Pass frames both ways; one in three takes two slots."""
    for number in range(frames):
        frame = bytes(12) + b"\x88\xb5" + bytes([number]) * (6000 if number % 3 == 0 else 60)
        await vif.network.send(bytes(10) + frame)
        assert await far.recv() == frame
        await far.send(frame)
        assert await vif.network.recv() == bytes(10) + frame


async def test_staged_buffers_take_no_grant_operation(xen: Path, far: PythonNetwork) -> None:
    """Counted: none for frames in staged pages, one for each copy once they are staged no more."""
    async with serving(xen, far) as backend, Frontend(xen, config=FrontConfig(control=True)) as vif:
        await backend.attach(vif.guest.domid, "python:lan")
        async with asyncio.timeout(SECONDS):
            await vif.connected()
            await exchange(vif, far, 6)
            before, staged = await grants(vif, backend)
            assert before > 0
            assert staged == 0
            await vif.stage()
            domain = vif.guest.domain
            assert vif.rings is not None
            assert all(domain.still_in_use(page.gref) for page in vif.rings.tx_buffers + vif.rings.rx_buffers)
            await exchange(vif, far, 12)
            copies, staged = await grants(vif, backend)
            assert (copies, staged) == (before, 2 * (8 + 4 * 2))
            assert vif.control is not None
            grefs = [page.gref for page in vif.rings.rx_buffers]
            assert await vif.control.unstage(0, [grefs[0], grefs[0], 7]) == [0, 2, 2]
            assert await vif.control.unstage(0, grefs) == [2] + [0] * 255
            assert not any(domain.still_in_use(gref) for gref in grefs)
            await exchange(vif, far, 1)
            assert await grants(vif, backend) == (before + 2, staged + 2)


async def test_staged_pages_outlive_the_backend(xen: Path, far: PythonNetwork) -> None:
    async with Frontend(xen, config=FrontConfig(control=True)) as vif, asyncio.timeout(SECONDS):
        async with serving(xen, far) as backend:
            await backend.attach(vif.guest.domid, "python:lan")
            await vif.connected()
            await vif.stage()
        async with serving(xen, far) as backend:
            await exchange(vif, far, 3)
            copies, staged = await grants(vif, backend)
            assert (copies, staged) == (0, 2 * (2 + 2))
        assert vif.rings is not None
        rings = vif.rings
        async with serving(xen, far):
            await vif.reload()
            await vif.connected()
        assert not any(vif.guest.domain.still_in_use(page.gref) for page in rings.tx_buffers)
