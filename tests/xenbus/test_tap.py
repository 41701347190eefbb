# SPDX-License-Identifier: Apache-2.0
"""Devices on taps in the test's network namespace: names, carrier, and what a restart leaves unchanged."""

import asyncio
import json
import logging
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from netback.abi.xenbus import XenbusState as State
from netback.daemon import Backend
from netback.net import macvtap
from netback.net.python import PythonNetwork
from netback.net.tap import TapNetwork
from netback.xenstore.aio import Store
from tests.net.far import PLAIN, FarLink
from tests.net.namespace import ip, own_sysfs, veth
from tests.vif.guest import FRAME, SECONDS, Guest, readable, serving, until, until_state
from tests.xenbus.toolstack import add, gone, looked, passing, take_away

pytestmark = pytest.mark.usefixtures("namespace")


def links() -> dict[str, dict[str, Any]]:
    """The links that ip(8) lists, by name."""
    return {link["ifname"]: link for link in json.loads(ip("-j -s link show"))}


def carrier(name: str) -> bool:
    ip(f"link set {name} up")
    return "NO-CARRIER" not in links()[name]["flags"]


async def test_the_tap_is_there_before_init_wait(backend: Backend, guest: Guest) -> None:
    """The tap has the name that scripts and xentop look for; its carrier shows whether the guest is connected."""
    name = await add(backend.store, guest.domid, net=None, script="vif-bridge", hotplug_status="connected")
    await until_state(guest.store, name.backend, State.INIT_WAIT)
    assert not carrier(name.link)
    await guest.connect()
    assert await guest.answer(guest.send(FRAME)) == 0
    await passing(backend, lambda: carrier(name.link))
    assert links()[name.link]["stats64"]["rx"]["packets"] == 1
    await guest.set_state(State.CLOSED)
    await until_state(guest.store, name.backend, State.CLOSED)
    assert not carrier(name.link)
    await take_away(backend.store, name)
    await gone(backend, name)
    assert name.link not in links()


async def test_an_hvm_guest_s_other_vif_is_qemu_s(backend: Backend, guest: Guest) -> None:
    """`type=vif_ioemu` says that QEMU owns the tap `-emu` of an emulated NIC; the PV vif has the plain name."""
    emulated = f"vif{guest.domid}.0-emu"
    ip(f"tuntap add {emulated} mode tap")
    name = await add(
        backend.store,
        guest.domid,
        net=None,
        type="vif_ioemu",
        script="vif-bridge",
        hotplug_status="connected",
    )
    await guest.connect()
    ip(f"link set {name.link} up")
    assert await guest.answer(guest.send(FRAME)) == 0
    assert links()[name.link]["stats64"]["rx"]["packets"] == 1
    await take_away(backend.store, name)
    await guest.set_state(State.CLOSED)
    await gone(backend, name)
    assert set(links()) & {name.link, emulated} == {emulated}


async def test_a_tap_in_the_bridge_of_its_spec(xen: Path, network: PythonNetwork, guest: Guest) -> None:
    """The device waits for a bridge that is missing; a restart leaves the tap where it is."""
    async with serving(xen, network) as backend:
        name = await add(backend.store, guest.domid, net="bridge:br0")
        await until(
            backend.store, f"{name.errors}/error", lambda text: "there is no bridge br0" in (text or "")
        )
        ip("link add br0 type bridge")
        await until_state(guest.store, name.backend, State.INIT_WAIT)
        await guest.connect()
    index = links()[name.link]["ifindex"]
    async with serving(xen, network) as backend:
        await passing(backend, lambda: carrier(name.link))
        assert await guest.answer(guest.send(FRAME)) == 0
        assert (links()[name.link]["ifindex"], links()[name.link]["master"]) == (index, "br0")
        await take_away(backend.store, name)
        await guest.set_state(State.CLOSED)
        await gone(backend, name)
        assert set(links()) == {"lo", "br0"}


async def test_a_macvtap_on_a_link_that_goes_and_comes_back(
    xen: Path, network: PythonNetwork, guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the vif's address, is found by the next backend, and the worker reads the next link's descriptor."""
    with own_sysfs(tmp_path / "sys") as at:
        monkeypatch.setattr(macvtap, "SYSFS", at)
        veth("eth1", "far1")
        async with serving(xen, network) as backend:
            name = await add(backend.store, guest.domid, net="macvtap:eth1")
            await guest.connect()
            mac = await backend.store.read_or(f"{name.backend}/mac")
        index = links()[name.link]["ifindex"]
        async with serving(xen, network) as backend:
            await passing(backend, lambda: "UP" in links()[name.link]["flags"])
            assert (links()[name.link]["ifindex"], links()[name.link]["address"]) == (index, mac)
            for comes_back in (True, False):
                with closing(FarLink("far1")) as far:
                    assert await guest.answer(guest.send(FRAME)) == 0
                    async with asyncio.timeout(SECONDS):
                        await readable(far.socket.fileno())
                    assert far.recv()[len(PLAIN) :] == FRAME
                    slot = guest.post()
                    far.send(PLAIN + b"\xff" * 6 + FRAME[6:])
                    assert (await guest.receive(slot))[1] == b"\xff" * 6 + FRAME[6:]
                if comes_back:
                    ip("link del eth1")
                    await passing(backend, lambda: "no link of that name" in backend.devices[name].error)
                    assert await guest.answer(guest.send(FRAME)) == 0
                    veth("eth1", "far1")
                    await passing(backend, lambda: not backend.devices[name].error)
                    await passing(backend, lambda: "LOWER_UP" in links()[name.link]["flags"])
            await take_away(backend.store, name)
            await guest.set_state(State.CLOSED)
            await gone(backend, name)
        assert set(links()) == {"lo", "eth1", "far1"}


async def test_af_xdp_on_a_link_that_goes_and_comes_back(
    xen: Path, network: PythonNetwork, guest: Guest
) -> None:
    """The next backend attaches its own program; its worker takes new sockets while it serves."""
    veth("eth1", "far1")
    async with serving(xen, network) as backend:
        name = await add(backend.store, guest.domid, net="af_xdp:eth1")
        await guest.connect()
    async with serving(xen, network) as backend:
        for comes_back in (True, True, False):
            await passing(backend, lambda: "LOWER_UP" in links()["eth1"]["flags"])
            with closing(FarLink("far1")) as far:
                for _ in range(3):
                    assert await guest.answer(guest.send(FRAME)) == 0
                    async with asyncio.timeout(SECONDS):
                        await readable(far.socket.fileno())
                    assert far.recv()[len(PLAIN) :] == FRAME
                    slot = guest.post()
                    far.send(PLAIN + FRAME)
                    assert (await guest.receive(slot))[1] == FRAME
            if comes_back:
                ip("link del eth1")
                await passing(backend, lambda: "no link of that name" in backend.devices[name].error)
                veth("eth1", "far1")
                await passing(backend, lambda: not backend.devices[name].error)
        await take_away(backend.store, name)
        await guest.set_state(State.CLOSED)
        await gone(backend, name)
    assert "xdp" not in ip("link show eth1")


@pytest.mark.parametrize("net", [None, "tap:web0"])
async def test_a_vif_that_goes_while_nobody_serves(
    xen: Path, network: PythonNetwork, guest: Guest, net: str | None
) -> None:
    """The next backend never opens the tap, and still removes it."""
    async with serving(xen, network) as backend:
        name = await add(backend.store, guest.domid, net=net, script="vif-bridge", hotplug_status="connected")
        await until_state(guest.store, name.backend, State.INIT_WAIT)
    async with await Store.connect(xen / "xenstored.sock") as store:
        await take_away(store, name)
    made = "web0" if net else name.link
    assert made in links()
    async with serving(xen, network) as backend:
        await gone(backend, name)
    assert made not in links()


@pytest.mark.parametrize("key", ["vifname", "net"])
async def test_a_name_that_the_toolstack_chose(backend: Backend, guest: Guest, key: str) -> None:
    chosen = {"vifname": "web0", "net": "tap"} if key == "vifname" else {"net": "tap:web0"}
    name = await add(backend.store, guest.domid, **chosen)
    await until_state(guest.store, name.backend, State.INIT_WAIT)
    assert "web0" in links()


async def test_a_script_renames_the_tap(backend: Backend, guest: Guest) -> None:
    """Renamed to `vifname`: stock scripts fail if that name exists, and use the new name in the path for the MTU."""
    name = await add(
        backend.store, guest.domid, net=None, vifname="web0", script="vif-bridge", hotplug_status=""
    )
    await until_state(guest.store, name.backend, State.INIT_WAIT)
    assert set(links()) == {"lo", name.link}
    ip(f"link set {name.link} name web0 mtu 9000")
    await backend.store.write(f"{name.backend}/hotplug-status", "connected")
    await until(guest.store, f"{name.frontend}/mtu", lambda mtu: mtu == "9000")
    await guest.connect()
    assert await guest.answer(guest.send(FRAME)) == 0
    await take_away(backend.store, name)
    await guest.set_state(State.CLOSED)
    await gone(backend, name)
    assert set(links()) == {"lo"}


async def test_the_mtu_is_told_only_where_there_is_a_frontend(backend: Backend, guest: Guest) -> None:
    """A directory that a toolstack removed must not reappear."""
    name = await add(backend.store, guest.domid, net="tap")
    await guest.connect()
    assert await backend.store.read_or(f"{name.frontend}/mtu") is None
    ip(f"link set {name.link} mtu 9000")
    await backend.store.rm(name.frontend)
    await until_state(backend.store, name.backend, State.CLOSED)
    assert await backend.store.read_or(name.frontend) is None


async def test_a_restart_leaves_the_tap(xen: Path, network: PythonNetwork, guest: Guest) -> None:
    """The link stays while no backend runs, also under another name, and the next backend joins it."""
    async with serving(xen, network) as backend:
        name = await backend.attach(guest.domid, "tap")
        await guest.connect()
    index = links()[name.link]["ifindex"]
    ip(f"link set {name.link} name renamed")
    async with serving(xen, network) as backend:
        assert await guest.answer(guest.send(FRAME)) == 0
        assert set(links()) == {"lo", "renamed"}
        assert links()["renamed"]["ifindex"] == index
        assert await guest.store.read(f"{name.backend}/state") == "4"
        assert not await backend.detach(name, seconds=0.01)
        await gone(backend, name)
    assert set(links()) == {"lo"}


async def test_a_tap_that_somebody_removed(backend: Backend, guest: Guest) -> None:
    """The tap is made again for the next connection."""
    name = await backend.attach(guest.domid, "tap")
    await guest.connect()
    ip(f"link del {name.link}")
    await guest.set_state(State.CLOSED)
    await until_state(guest.store, name.backend, State.CLOSED)
    await guest.set_state(State.INITIALISING)
    await guest.connect()
    assert await guest.answer(guest.send(FRAME)) == 0
    assert name.link in links()


async def test_a_link_that_comes_later(backend: Backend, guest: Guest) -> None:
    """The backend notices without an event from the test."""
    name = await add(backend.store, guest.domid, net="packet:late0")
    await until(backend.store, f"{name.errors}/error", bool)
    veth("late0", "late1")
    await until_state(guest.store, name.backend, State.INIT_WAIT)


async def test_a_tap_driver_that_comes_later(
    backend: Backend, guest: Guest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No node and no link tells that the module was loaded."""
    with monkeypatch.context() as missing:
        missing.setattr("netback.net.tap.DEVICE", str(tmp_path / "tun"))
        name = await add(backend.store, guest.domid, net="tap")
        await until(backend.store, f"{name.errors}/error", bool)
        await looked(backend, backend.devices[name], State.INITIALISING)
    await until_state(guest.store, name.backend, State.INIT_WAIT)


async def test_the_log_tells_how_a_tap_s_frames_pass(
    backend: Backend, guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    """With the reason, where vhost-net is wanted and cannot be used; frames pass in any case."""
    with caplog.at_level(logging.INFO, "netback.xenbus"):
        await add(backend.store, guest.domid, net="tap:web0,vhost=on")
        await guest.connect()
    path = TapNetwork("other0", vhost="on").path
    assert f"network tap:web0,vhost=on by {path}" in caplog.text
    ip("link set web0 up")
    assert await guest.answer(guest.send(FRAME)) == 0
    assert links()["web0"]["stats64"]["rx"]["packets"] == 1
