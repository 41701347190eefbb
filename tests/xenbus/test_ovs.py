# SPDX-License-Identifier: Apache-2.0
"""Devices whose tap is a port of Open vSwitch: what the database is told of the guest, a database that is lost, and the
frames of each datapath. Guests see nothing of it.
"""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState as State
from netback.daemon import Backend
from netback.frontend import Frontend
from netback.net import connected, ovs, ovs_switch, ovsdb
from netback.net.python import PythonNetwork
from netback.net.rtnetlink import get_link
from netback.xenbus.names import DeviceName
from tests.net.contract import asks, big_tcp
from tests.net.far import PLAIN, FarLink
from tests.net.ovsdb_peer import BRIDGE, OvsdbPeer, honest
from tests.vif.guest import SECONDS, Guest, exchange, join, serving
from tests.xenbus.test_links import connect, fault, mac_frame, mended, unchanged
from tests.xenbus.toolstack import MAC, add, gone, passing, take_away

pytestmark = pytest.mark.usefixtures("namespace")
UUID = "d0a1b2c3-0000-0000-0000-000000000001"


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ovs_switch, "AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(connected, "PAUSES", (0.05,))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db.sock"


@pytest.fixture
def peer(path: Path) -> Iterator[OvsdbPeer]:
    with OvsdbPeer(path) as peer:
        yield peer


async def pass_frame(guest: Guest, link: str, number: int) -> None:
    """Pass a frame from the guest to the tap."""
    with closing(FarLink(link)) as far:
        assert await guest.answer(guest.send(mac_frame(number))) == 0
        assert await asyncio.to_thread(far.recv) == PLAIN + mac_frame(number)


async def detach(backend: Backend, guest: Guest, name: DeviceName) -> None:
    """The guest closes, and the toolstack removes the device."""
    await guest.set_state(State.CLOSED)
    await take_away(backend.store, name)


async def test_what_the_switch_is_told_of_the_guest(backend: Backend, guest: Guest, peer: OvsdbPeer) -> None:
    home = f"/local/domain/{guest.domid}"
    await backend.store.write(f"{home}/vm", f"/vm/{UUID}")
    await backend.store.write(f"{home}/name", "web--incoming")
    name = await add(backend.store, guest.domid, net=f"ovs:br0,tag=10,db=unix:{peer.path}")
    await guest.connect()
    port = peer.port(name.link)
    assert port is not None
    assert port["tag"] == ["set", [10]]
    assert dict(port["interface"]["external_ids"][1]) == {
        "iface-id": f"{UUID}-0",
        "iface-status": "active",
        "attached-mac": MAC,
        "vm-id": UUID,
        "xen-vm-uuid": UUID,
        "xen-vm-name": "web",
    }
    await detach(backend, guest, name)
    await gone(backend, name)
    assert peer.port(name.link) is None
    assert get_link(name.link) is None


async def test_a_fact_that_the_store_does_not_have(backend: Backend, guest: Guest, peer: OvsdbPeer) -> None:
    await backend.store.rm(f"/local/domain/{guest.domid}/vm")
    name = await add(backend.store, guest.domid, net=f"ovs:br0,iface-id={{uuid}},db=unix:{peer.path}")
    await fault(backend, name, "ovs:br0: iface-id={uuid} needs the guest's uuid, which is not known here")


async def test_a_database_that_is_lost(
    backend: Backend, guest: Guest, path: Path, network: PythonNetwork, xen: Path
) -> None:
    """Frames pass, the guest and its neighbour see nothing, and the port is there again with the next database."""
    with OvsdbPeer(path) as peer:
        name = await connect(backend, guest, f"ovs:br0,db=unix:{path}")
        await pass_frame(guest, name.link, 1)
    await fault(backend, name, "frames pass as before")
    await pass_frame(guest, name.link, 2)
    async with join(xen) as other:
        await connect(backend, other, "python:lan")
        await exchange(other, network)
    peer.path.unlink()
    with OvsdbPeer(path) as peer:
        await mended(backend, name)
        assert peer.port(name.link) is not None
        await unchanged(guest, name, 2)
        await detach(backend, guest, name)
        await gone(backend, name)
        assert peer.port(name.link) is None


async def test_netback_restarts(xen: Path, guest: Guest, network: PythonNetwork, peer: OvsdbPeer) -> None:
    """The port is the same one. A device that is removed meanwhile leaves no port."""
    async with serving(xen, network) as backend:
        name = await connect(backend, guest, f"ovs:br0,db=unix:{peer.path}")
        ports = peer.rows["Bridge"][BRIDGE]["ports"]
    async with serving(xen, network) as backend:
        await passing(backend, lambda: name in backend.devices and backend.devices[name].vif is not None)
        await pass_frame(guest, name.link, 1)
        assert peer.rows["Bridge"][BRIDGE]["ports"] == ports
        store = backend.store
        await store.write(f"{name.backend}/online", "0")
        await store.rm(f"{name.frontend}/state")
        await gone(backend, name)
        assert peer.port(name.link) is None


async def test_a_device_that_is_removed_while_no_netback_runs(
    xen: Path, guest: Guest, network: PythonNetwork, peer: OvsdbPeer
) -> None:
    async with serving(xen, network) as backend:
        name = await connect(backend, guest, f"ovs:br0,db=unix:{peer.path}")
    await guest.store.rm(f"{guest.path}/state")
    async with serving(xen, network) as backend:
        await backend.store.write(f"{name.backend}/online", "0")
        await gone(backend, name)
        assert peer.port(name.link) is None
        assert get_link(name.link) is None


async def test_a_database_that_hangs_delays_no_other_device(
    backend: Backend,
    guest: Guest,
    peer: OvsdbPeer,
    network: PythonNetwork,
    xen: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A port that cannot be deleted now keeps its device, and nothing else."""
    monkeypatch.setattr(ovs, "REMOVE_SECONDS", 10 * SECONDS)
    monkeypatch.setattr(ovsdb, "ANSWER_SECONDS", 10 * SECONDS)
    name = await connect(backend, guest, f"ovs:br0,db=unix:{peer.path}")
    peer.lie = lambda request: b" "
    await detach(backend, guest, name)
    await passing(backend, lambda: peer.requests[-1].get("method") == "transact" and len(peer.requests) > 2)
    async with join(xen) as other:
        await connect(backend, other, "python:lan")
        await exchange(other, network)
    assert name in backend.devices
    peer.lie = honest
    peer.drop()
    await gone(backend, name)
    assert peer.port(name.link) is None


def checksum(frame: bytes) -> int:
    """What the 16-bit words of a TCP segment over IPv4 and of its pseudo header add up to; 0xffff if it is right."""
    segment = frame[34:]
    data = (
        frame[26:34] + bytes([0, 6]) + len(segment).to_bytes(2, "big") + segment + b"\0" * (len(segment) % 2)
    )
    total = sum(int.from_bytes(data[n : n + 2], "big") for n in range(0, len(data), 2))
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return total


async def test_frames_of_each_datapath(backend: Backend, peer: OvsdbPeer, xen: Path) -> None:
    """The kernel's datapath gets large segments without a checksum. The userspace datapath gets complete frames, from
    the moment at which the bridge has it.
    """
    sent = big_tcp(4)
    async with Frontend(xen) as guest:
        name = await add(backend.store, guest.guest.domid, net=f"ovs:br0,db=unix:{peer.path}")
        async with asyncio.timeout(SECONDS):
            await guest.connected()
        assert isinstance(guest.network, PythonNetwork)
        vif = backend.devices[name].vif
        assert vif is not None
        for datapath, whole in (("system", True), ("netdev", False), ("system", True)):
            peer.change("Bridge", BRIDGE, datapath_type=datapath)
            await passing(backend, lambda: (vif.network.path is None) is whole)  # noqa: B023 (awaited at once)
            with closing(FarLink(name.link)) as far:
                await guest.network.send(sent)
                first = await asyncio.to_thread(far.recv)
                if whole:
                    assert asks(first) == asks(sent)
                    continue
                payload = len(sent) - len(PLAIN) - 54
                frames = [first] + [await asyncio.to_thread(far.recv) for _ in range(-(-payload // 1400) - 1)]
                assert sum(len(frame) - len(PLAIN) - 54 for frame in frames) == payload
                assert {frame[: len(PLAIN)] for frame in frames} == {PLAIN}
                assert {checksum(frame[len(PLAIN) :]) for frame in frames} == {0xFFFF}
