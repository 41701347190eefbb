# SPDX-License-Identifier: Apache-2.0
"""`carrier` in the backend's directory follows the network's link and the operator; the frontend's link follows it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from netback.daemon import Backend
from netback.frontend import Frontend
from netback.net.python import PythonNetwork
from netback.xenbus.names import DeviceName
from netback.xenbus.nodes import CARRIER_OFF
from netback.xenstore.aio import Store
from tests.net.namespace import ip
from tests.vif.guest import SECONDS, Guest, join, serving, until
from tests.xenbus.toolstack import add, gone, passing, take_away


async def carrier(store: Store, name: DeviceName, value: str | None) -> None:
    """Wait until the node has this value."""
    await until(store, f"{name.backend}/carrier", lambda text: text == value)


@pytest.mark.usefixtures("namespace")
async def test_a_packet_link_that_loses_its_cable(xen: Path, network: PythonNetwork) -> None:
    ip("link add eth1 type veth peer name far1")
    ip("link set eth1 up")
    async with serving(xen, network) as backend, join(xen) as guest:
        name = await add(backend.store, guest.domid, net="packet:eth1")
        await carrier(guest.store, name, "0")  # the far end is down
        await guest.connect()
        for words, value in (
            ("link set far1 up", "1"),
            ("link set eth1 down", "0"),
            ("link set eth1 up", "1"),
            ("link set far1 down", "0"),
            ("link set far1 up", "1"),
            ("link del eth1", "0"),
        ):
            ip(words)
            await carrier(guest.store, name, value)
        ip("link add eth1 type veth peer name far1")
        ip("link set eth1 up")
        ip("link set far1 up")
        await carrier(guest.store, name, "1")
        await take_away(backend.store, name)
        await guest.store.write(f"{name.frontend}/state", "6")
        await carrier(guest.store, name, None)


@pytest.mark.usefixtures("namespace")
async def test_a_tap_is_up_when_the_host_set_it_up(backend: Backend, guest: Guest) -> None:
    """The tap's own carrier, which shows whether a guest is connected, has no part in it."""
    name = await add(backend.store, guest.domid, net="tap:c0")
    await carrier(guest.store, name, "0")
    ip("link set c0 up")
    await carrier(guest.store, name, "1")
    await guest.connect()
    ip("link set c0 down")
    await carrier(guest.store, name, "0")


async def test_an_operator_turns_it_off(xen: Path, network: PythonNetwork) -> None:
    """The node outlives the backend. The guest's link follows; frames are not stopped."""
    async with Frontend(xen) as vif:
        seen: list[bool] = []
        vif.network.carrier = seen.append  # type: ignore[method-assign]
        async with serving(xen, network) as backend:
            name = await backend.attach(vif.guest.domid, "python:lan")
            async with asyncio.timeout(SECONDS):
                await vif.connected()
            await carrier(vif.store, name, "1")
            await backend.store.write(f"{name.backend}/{CARRIER_OFF}", "1")
            await carrier(vif.store, name, "0")
            async with asyncio.timeout(SECONDS):
                await vif.until(lambda: not vif.carrier)
        far = PythonNetwork()
        async with serving(xen, far) as backend:
            await passing(backend, lambda: name in backend.devices and backend.devices[name].vif is not None)
            served = backend.devices[name].vif
            assert served is not None
            await passing(backend, lambda: served.connected)
            assert await backend.store.read(f"{name.backend}/carrier") == "0"
            await backend.store.rm(f"{name.backend}/{CARRIER_OFF}")
            async with asyncio.timeout(SECONDS):
                await vif.until(lambda: vif.carrier)
            assert seen == [True, False, True]
        far.remove()


async def test_a_far_end_that_ends(xen: Path) -> None:
    far = PythonNetwork()
    async with serving(xen, far) as backend, join(xen) as guest:
        name = await add(backend.store, guest.domid)
        await guest.connect()
        await carrier(guest.store, name, "1")
        far.socket.close()
        await carrier(guest.store, name, "0")
    far.remove()


async def test_a_directory_that_goes_is_not_made_again(backend: Backend, guest: Guest) -> None:
    """The toolstack removes it while the network changes."""
    name = await add(backend.store, guest.domid)
    await carrier(guest.store, name, "1")
    device = backend.devices[name]
    assert device.vif is not None
    await backend.store.write(f"{name.backend}/{CARRIER_OFF}", "1")
    await backend.store.rm(name.backend)
    await gone(backend, name)
    assert await backend.store.read_or(f"{name.backend}/carrier") is None
