# SPDX-License-Identifier: Apache-2.0
"""Devices that fail, one at a time: each closes with a reason, and the others are not affected."""

import logging
import random
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from msgspec.structs import replace

from netback.abi.netif import TX_RESPONSE, TX_SLOT, Status
from netback.abi.xenbus import XenbusState as State
from netback.control.schema import DeviceStatus
from netback.daemon import Backend, BackendConfig
from netback.errors import ConfigError
from netback.net.null import NullNetwork
from netback.net.python import PythonNetwork
from netback.platforms.emulated import EmulatedPlatform
from netback.xenbus.names import DeviceName
from netback.xenstore.aio import Store, StoreError
from tests.vif.guest import FRAME, Guest, exchange, join, serving, until, until_state
from tests.xenbus.toolstack import add, gone, looked, passing, take_away

T = TypeVar("T")

JOURNAL_BODIES = 64
"""Offset of the responses in a ring's page of a journal (dataplane/journal.pxd)."""

WRONG = [
    ({"tx_ring_ref": None}, "the frontend's tx-ring-ref is missing"),
    ({"rx_ring_ref": None}, "the frontend's rx-ring-ref is missing"),
    ({"event_channel": None}, "the frontend's event-channel is missing"),
    ({"request_rx_copy": None}, "the frontend's request-rx-copy is missing or 0"),
    ({"request_rx_copy": "0"}, "the frontend's request-rx-copy is missing or 0"),
    ({"tx_ring_ref": "-1"}, "the frontend's tx-ring-ref is '"),
    ({"rx_ring_ref": "8 8"}, "the frontend's rx-ring-ref is '"),
    ({"feature_sg": "yes"}, "the frontend's feature-sg is 'yes'"),
    ({"tx_ring_ref": "4000000000"}, "the frontend's tx-ring-ref 4000000000 cannot be mapped: "),
    ({"rx_ring_ref": "0"}, "the frontend's rx-ring-ref 0 cannot be mapped: "),
    ({"event_channel": "4000"}, "the frontend's event-channel 4000 cannot be bound: "),
]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def error_of(backend: Backend, name: DeviceName) -> str:
    return str(await until(backend.store, f"{name.errors}/error", bool))


@pytest.mark.parametrize(("keys", "reason"), WRONG, ids=[f"{keys}" for keys, _ in WRONG])
async def test_wrong_keys(
    backend: Backend, guest: Guest, network: PythonNetwork, caplog: pytest.LogCaptureFixture,
    keys: dict[str, str | None], reason: str,
) -> None:  # fmt: skip
    """The reason is in the error node and the log, nothing stays mapped, and valid keys connect the next time."""
    name = await add(backend.store, guest.domid)
    await guest.connect(wait=False, **keys)
    await until_state(guest.store, name.backend, State.CLOSING)
    assert (await error_of(backend, name)).startswith(reason)
    assert [line for line in lines(caplog) if line.startswith(f"{name}: {reason}")]
    assert not guest.domain.still_in_use(guest.tx.gref)
    await guest.set_state(State.CLOSED)
    await until_state(guest.store, name.backend, State.CLOSED)
    await guest.set_state(State.INITIALISING)
    await guest.connect()
    assert await backend.store.read_or(name.errors) is None
    await exchange(guest, network)


async def test_a_refused_frontend_is_not_asked_again(backend: Backend, guest: Guest) -> None:
    """The frontend stays in Connected; its other writes cause no reconnection."""
    name = await add(backend.store, guest.domid)
    await guest.connect(wait=False, tx_ring_ref=None)
    await until_state(guest.store, name.backend, State.CLOSING)
    await guest.say()
    await backend.store.write(f"{name.backend}/hotplug-status", "connected")
    await looked(backend, backend.devices[name], State.CONNECTED)
    assert await backend.store.read(f"{name.backend}/state") == "5"


async def test_one_breaks_the_other_goes_on(xen: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An impossible TX index closes this vif with the reason; the other vif keeps passing frames."""
    networks = {"python:bad": PythonNetwork(), "python:good": PythonNetwork()}
    with EmulatedPlatform(xen) as platform:
        config = BackendConfig(xen, networks=networks, workers=1)
        async with Backend(platform, config) as backend, join(xen) as bad, join(xen) as good:
            name = await backend.attach(bad.domid, "python:bad")
            await backend.attach(good.domid, "python:good")
            await bad.connect()
            await good.connect()
            await exchange(bad, networks["python:bad"])
            await exchange(good, networks["python:good"])
            bad.tx.index(0, bad.tx.index(0) + 1000)
            bad.kick()
            await exchange(good, networks["python:good"])
            await until_state(bad.store, name.backend, State.CLOSING)
            assert await error_of(backend, name) == "TX req_prod is impossible"
            assert f"{name}: TX req_prod is impossible" in lines(caplog)
            assert not bad.domain.still_in_use(bad.tx.gref)
            await exchange(good, networks["python:good"])
    for network in networks.values():
        network.remove()


async def test_a_ring_that_is_broken_from_the_start(backend: Backend, guest: Guest) -> None:
    name = await add(backend.store, guest.domid)
    guest.rx.index(0, 5000)
    await guest.connect(wait=False)
    await until_state(guest.store, name.backend, State.CLOSING)
    assert await error_of(backend, name) == "RX req_prod is impossible"


async def test_a_guest_that_flaps_cannot_fill_the_log(
    backend: Backend, guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    name = await add(backend.store, guest.domid)
    for _ in range(40):
        await guest.connect(wait=False, tx_ring_ref="0")
        await until_state(guest.store, name.backend, State.CLOSING)
        await guest.set_state(State.CLOSED)
        await until_state(guest.store, name.backend, State.CLOSED)
        await guest.set_state(State.INITIALISING)
    assert 1 <= len(lines(caplog)) <= 20


@pytest.mark.parametrize("seed", range(3))
async def test_a_hostile_walk(
    backend: Backend, guest: Guest, network: PythonNetwork, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    """Random states and keys in any order while another guest works; at the end this guest can connect as well."""
    rng = random.Random(seed)
    name = await add(backend.store, guest.domid)
    await until_state(guest.store, name.backend, State.INIT_WAIT)
    guest.port = guest.domain.events.alloc_unbound(0)
    keys = ["state", *guest.keys, "feature-gso-tcpv4", "multi-queue-num-queues", "mac"]
    for _ in range(300):
        key = rng.choice(keys)
        value = rng.choice(
            ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "", "\udcff\udc80", "x" * 500, str(guest.port)]
        )
        if rng.random() < 0.05:
            await guest.store.rm(f"{guest.path}/{key}", missing_ok=True)
        else:
            await guest.store.write(f"{guest.path}/{key}", rng.choice([value, guest.keys.get(key, value)]))
    await guest.set_state(State.CLOSED)
    await until_state(guest.store, name.backend, State.CLOSED)
    await guest.set_state(State.INITIALISING)
    await guest.connect(feature_gso_tcpv4="0", multi_queue_num_queues="1", mac=None)
    await exchange(guest, network)
    assert not [record for record in caplog.records if record.exc_info]


async def test_keys_of_an_earlier_backend_do_not_count(
    backend: Backend, guest: Guest, network: PythonNetwork
) -> None:
    """The fault: a guest that had split event channels on another backend connects without them, or was connected by a
    netback that did not offer them, and netback binds ports that are gone.
    """
    name = await add(backend.store, guest.domid)
    await until_state(guest.store, name.backend, State.INIT_WAIT)
    await backend.store.write(f"{name.backend}/feature-split-event-channels", "0")
    await guest.connect(event_channel_tx="77", event_channel_rx="78")
    await exchange(guest, network)


async def test_names_and_addresses(backend: Backend, guest: Guest, caplog: pytest.LogCaptureFixture) -> None:
    """A toolstack's mistakes, reported in QEMU's words. The valid device beside them connects, and so does one that is
    corrected.
    """
    wrong = [
        (await add(backend.store, guest.domid, kind="qnic", number="x7"), "failed to parse name 'x7'"),
        (await add(backend.store, guest.domid, kind="vif", number="007"), "failed to parse name '007'"),
        (
            await add(backend.store, guest.domid, kind="qnic", number="2147483647"),
            "failed to parse name '2147483647'",
        ),
        (
            await add(backend.store, guest.domid, kind="qnic", number="7", mac=None, net="null"),
            "no MAC address found",
        ),
        (
            await add(backend.store, guest.domid, kind="qnic", number="8", mac="1:2"),
            "failed to parse MAC address",
        ),
        (
            await add(backend.store, guest.domid, number="10", mac="01:00:5e:00:00:01"),
            "a NIC cannot have a multicast or broadcast MAC address",
        ),
        (
            await add(backend.store, guest.domid, number="11", mac="00:00:00:00:00:00"),
            "a NIC cannot have the MAC address of zeros",
        ),
        (
            await add(backend.store, guest.domid, kind="qnic", number="9", net="wire:0"),
            "realization of net device 9 failed: network 'wire:0': unknown kind 'wire'",
        ),
    ]
    good = await add(backend.store, guest.domid, number="2147483646")
    await until_state(guest.store, good.backend, State.INIT_WAIT)
    for name, reason in wrong:
        assert (await error_of(backend, name)).startswith(reason)
        assert await backend.store.read(f"{name.backend}/state") == "1"
        await backend.store.write(f"{name.backend}/looked-at", "again")
    mended = wrong[3][0]
    await backend.store.write(f"{mended.backend}/mac", "00:16:3e:00:00:09")
    await until_state(guest.store, mended.backend, State.INIT_WAIT)
    assert await backend.store.read_or(mended.errors) is None
    for name, reason in wrong:
        assert len([line for line in lines(caplog) if line.startswith(f"{name}: {reason}")]) == 1


async def test_a_vif_needs_no_mac_on_our_side(backend: Backend, guest: Guest) -> None:
    """The toolstack wrote `mac` in the frontend's directory."""
    name = await add(backend.store, guest.domid, mac=None)
    await until_state(guest.store, name.backend, State.INIT_WAIT)


async def test_a_frontend_has_its_address_before_it_may_connect(backend: Backend, guest: Guest) -> None:
    """Linux's netfront gives up permanently if InitWait comes before `mac`."""
    name, seen = DeviceName("qnic", 0, guest.domid, "0"), []
    async with await backend.store.watch("/local/domain") as watch:
        await add(backend.store, guest.domid, kind="qnic", mac_written=False)
        async for path in watch:
            seen.append(path)
            if seen.count(f"{name.backend}/state") == 2:
                break
    assert f"{name.frontend}/mac" in seen


async def test_a_network_that_comes_later(backend: Backend, guest: Guest) -> None:
    """An error that is tried again; no state changes."""
    name = await add(backend.store, guest.domid, net="packet:nb-not-here")
    assert "realization of net device 0 failed: " in await error_of(backend, name)
    await backend.store.write(f"{name.backend}/net", "null")
    await until_state(guest.store, name.backend, State.INIT_WAIT)
    assert await backend.store.read_or(name.errors) is None


async def test_nothing_is_left_behind(backend: Backend, xen: Path, guest: Guest) -> None:
    """A device that never worked leaves no error node, no features and no journal."""
    name = await add(backend.store, guest.domid, net="wire:0")
    await error_of(backend, name)
    await take_away(backend.store, name)
    await until_state(guest.store, name.backend, State.CLOSED)
    await gone(backend, name)
    assert await backend.store.read_or("/local/domain/0/error/backend") is not None
    assert await backend.store.directory("/local/domain/0/error/backend") == []


async def test_journals_are_private_and_go_with_the_device(backend: Backend, xen: Path, guest: Guest) -> None:
    name = await add(backend.store, guest.domid, kind="qnic", number="3")
    frontend = Guest(guest.domain, guest.store, 3)
    await frontend.connect()
    files = sorted((xen / "journal").iterdir())
    assert [file.name for file in files] == [f"qnic-{guest.domid}-3", f"qnic-{guest.domid}-3-settings"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    await backend.store.rm(name.backend)
    await gone(backend, name)
    assert not any(file.exists() for file in files)


async def test_journals_of_devices_that_are_no_more(xen: Path, network: PythonNetwork, guest: Guest) -> None:
    """The devices were removed while no backend ran."""
    async with serving(xen, network) as backend:
        names = [await backend.attach(guest.domid, net) for net in ("python:lan", "null")]
        await guest.connect()
        await Guest(guest.domain, guest.store, 1).connect()
    assert len(list((xen / "journal").iterdir())) == 4
    async with await Store.connect(xen / "xenstored.sock") as store:
        await store.rm(names[1].backend)
    async with serving(xen, network):
        left = sorted(path.name for path in (xen / "journal").iterdir())
        assert left == [f"vif-{guest.domid}-0", f"vif-{guest.domid}-0-settings"]
        await exchange(guest, network)


async def test_a_journal_of_other_rings_is_void(
    backend: Backend, xen: Path, guest: Guest, network: PythonNetwork
) -> None:
    """New rings may reuse the indices of old ones, so a device that is not adopted starts with an empty journal."""
    name = DeviceName("vif", 0, guest.domid, "0")
    journal = xen / "journal" / f"vif-{guest.domid}-0"
    guest.port = guest.domain.events.alloc_unbound(0)
    committed = struct.pack("<IIQII", 1, TX_SLOT, guest.tx.gref << 32 | guest.port, 0, 3)
    journal.write_bytes(committed.ljust(8192, b"\xff"))
    await add(backend.store, guest.domid)
    await guest.connect()
    assert guest.tx.index(2) == 0
    await exchange(guest, network)
    assert backend.devices[name].error == ""


async def test_a_predecessors_journal_is_completed(xen: Path, network: PythonNetwork, guest: Guest) -> None:
    """Killed between the journal and the ring: the successor first publishes what was committed."""
    async with serving(xen, network) as backend:
        name = await add(backend.store, guest.domid)
        await guest.connect()
    guest.tx.index(0, 3)
    committed = struct.pack("<IIQII", 1, TX_SLOT, guest.tx.gref << 32 | guest.port, 0, 3)
    bodies = b"".join(TX_RESPONSE.pack(number, Status.DROPPED) for number in range(3))
    journal = xen / "journal" / f"vif-{guest.domid}-0"
    with journal.open("r+b") as file:
        file.write(committed.ljust(JOURNAL_BODIES, b"\0") + bodies)
    async with serving(xen, network):
        await guest.responses(guest.tx, 2)
        assert guest.tx.index(2) == 3
        assert b"".join(bytes(guest.tx.slot(index, TX_SLOT)) for index in range(3)) == bodies
        assert await guest.store.read(f"{name.backend}/state") == "4"
        await exchange(guest, network)


class InterferedStore(Store):
    """A store that runs a callback just before a transaction."""

    before: Callable[[], Awaitable[None]] | None = None

    async def transact(self, body: Callable[[int], Awaitable[T]]) -> T:
        if self.before is not None:
            before, self.before = self.before, None
            await before()
        return await super().transact(body)


class InterferedPlatform(EmulatedPlatform):
    """A platform with such a store."""

    async def open_store(self) -> Store:
        return await InterferedStore.connect(self.directory / "xenstored.sock")


@pytest.mark.parametrize("what", ["removes", "closes"])
async def test_somebody_interferes(xen: Path, guest: Guest, network: PythonNetwork, what: str) -> None:
    """Changes between connecting and writing the state: a removed directory must not reappear, a state must not be
    lost.
    """
    networks = {"python:lan": network}
    with InterferedPlatform(xen) as platform:
        async with Backend(platform, BackendConfig(xen, networks=networks, workers=1)) as backend:
            store = backend.store
            assert isinstance(store, InterferedStore)
            name = await add(store, guest.domid)
            await until_state(guest.store, name.backend, State.INIT_WAIT)

            async def interfere() -> None:
                if what == "removes":
                    await store.rm(name.backend)
                else:
                    await store.write(f"{name.backend}/state", "5")

            store.before = interfere
            await guest.say()
            if what == "removes":
                await gone(backend, name)
                assert await store.read_or(name.backend) is None
            else:
                await looked(backend, backend.devices[name], State.CONNECTED)
                assert await store.read(f"{name.backend}/state") == "5"
            assert not guest.domain.still_in_use(guest.tx.gref)


async def test_the_trace(
    xen: Path, network: PythonNetwork, guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    """Every trace point of QEMU's NIC, selected by name or glob, also while it runs."""
    caplog.set_level(logging.INFO, "netback.trace")
    async with serving(xen, network, trace=("xen_netdev_*",)) as backend:
        name = await add(backend.store, guest.domid, net="python:lan")
        await guest.connect()
        await exchange(guest, network)
        await backend.trace("-xen_netdev_tx")
        assert await guest.answer(guest.send(FRAME)) == 0
        await backend.trace("*_tx")
        assert await guest.answer(guest.send(FRAME, page=1)) == 0
        await take_away(backend.store, name)
        await guest.set_state(State.CLOSED)
        await gone(backend, name)
    traced = [record.getMessage() for record in caplog.records if record.name == "netback.trace"]
    gref = guest.grefs
    for line in (
        f"xen_netdev_create dev={name}",
        f"xen_netdev_frontend_changed dev={name} state=1",
        f"xen_netdev_frontend_changed dev={name} state=4",
        f"xen_netdev_disconnect dev={name}",
        f"xen_netdev_connect dev={name} tx={guest.tx.gref} rx={guest.rx.gref} port={guest.port}",
        f"xen_netdev_rx dev={name} index=0 status=60 flags=0",
        f"xen_netdev_unrealize dev={name}",
        f"xen_netdev_destroy dev={name}",
    ):
        assert line in traced
    assert [
        line
        for line in traced
        if line.startswith(f"xen_netdev_realize dev={name} info=") and "peer=python" in line
    ]
    assert [line for line in traced if line.startswith("xen_netdev_tx")] == [
        f"xen_netdev_tx dev={name} gref={gref[page]} offset=0 size=60 flags=0" for page in (0, 1)
    ]


def test_trace_points_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no trace point matches 'tx'"):
        Backend(NoPlatform(), BackendConfig(tmp_path, trace=("tx",)))  # type: ignore[arg-type]


class NoPlatform:
    """A platform that is never used."""


async def test_the_status(backend: Backend, guest: Guest, network: PythonNetwork) -> None:
    name = await add(backend.store, guest.domid)
    await guest.connect()
    await exchange(guest, network)
    await backend.respond()  # a burst updates the counters after it delivered
    (status,) = backend.status()
    assert status.queue_counters == [status.counters]
    assert replace(status, counters=None, queue_counters=None, rings=None) == DeviceStatus(
        device=str(name), type="vif", domid=guest.domid, index="0", backend="Connected", frontend="Connected",
        network="python", queues=1, link=True, filters=[], record="off",
    )  # fmt: skip
    assert status.counters is not None
    assert status.rings is not None
    assert status.counters["tx_frames"] == status.counters["rx_frames"] == 1
    assert status.rings["tx"]["rsp_prod"] == 1


async def test_one_backend_for_each_domain(backend: Backend, xen: Path) -> None:
    with (
        EmulatedPlatform(xen) as platform,
        pytest.raises(ConfigError, match="another netback serves domain 0"),
    ):
        await Backend(platform, BackendConfig(xen)).__aenter__()


async def test_the_stores_end_is_told(xen: Path, network: PythonNetwork) -> None:
    async with serving(xen, network) as backend, join(xen) as guest:
        await add(backend.store, guest.domid)
        await guest.connect()
        await backend.store.close()
        with pytest.raises(StoreError, match="EIO"):
            await backend.wait()


async def test_the_default_network(xen: Path) -> None:
    """A device without `net` gets the default; a network object is closed by its owner."""
    lan = NullNetwork()
    with EmulatedPlatform(xen) as platform:
        config = BackendConfig(xen, net="python:lan", networks={"python:lan": lan}, workers=1)
        async with Backend(platform, config) as backend, join(xen) as guest:
            name = await add(backend.store, guest.domid, net=None)
            await guest.connect()
            vif = backend.devices[name].vif
            assert vif is not None
            assert vif.network is lan


async def test_a_mended_configuration_is_used_at_once(xen: Path) -> None:
    """The device had no network by the earlier one; none of its nodes changes."""
    with EmulatedPlatform(xen) as platform:
        config = BackendConfig(xen, net="packet:nothere", workers=1)
        async with Backend(platform, config) as backend, join(xen) as guest:
            name = await add(backend.store, guest.domid, net=None)
            await until(backend.store, f"{name.errors}/error", bool)
            await looked(backend, backend.devices[name], State.INITIALISING)
            await backend.reconfigure(BackendConfig(xen, net="null", workers=1))
            await guest.connect()
            await until(backend.store, f"{name.errors}/error", lambda text: text is None)


async def test_a_script_that_fails_is_told_once(
    backend: Backend, guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    name = await add(backend.store, guest.domid, script="vif-bridge", hotplug_status="")
    await until_state(backend.store, name.backend, State.INIT_WAIT)
    await backend.store.write(f"{name.backend}/hotplug-error", "bridge br9 does not exist")
    await backend.store.write(f"{name.backend}/hotplug-status", "error")
    assert await error_of(backend, name) == "the hotplug script failed: bridge br9 does not exist"
    await backend.store.write(f"{name.backend}/anything", "else")
    await passing(backend, lambda: backend.devices[name].state is State.INIT_WAIT)
    await take_away(backend.store, name)
    await gone(backend, name)
    assert await backend.store.read_or(f"{name.errors}/error") is None
    for node in ("anything", "hotplug-status"):  # a toolstack removes its nodes after the backend is done
        await backend.store.write(f"{name.backend}/{node}", "error")
        for _ in range(20):
            await backend.store.read("/local/domain/0/name")
    assert await backend.store.read_or(f"{name.errors}/error") is None
    assert len([line for line in lines(caplog) if "hotplug script" in line]) == 1


async def test_a_device_of_qemu_itself(
    backend: Backend, guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    """QEMU's default NIC in dom0: its nodes have no MAC address, and are not written at once. It is left alone."""
    caplog.set_level(logging.INFO)
    name = await add(backend.store, guest.domid, kind="qnic", mac=None)
    await error_of(backend, name)
    device = backend.devices[name]
    await guest.set_state(State.CONNECTED)
    await backend.store.write(f"{name.backend}/state", str(int(State.CONNECTED)))
    await looked(backend, device, State.CONNECTED)
    assert await backend.store.read_or(f"{name.errors}/error") is None
    assert (device.error, device.vif) == ("", None)
    assert await backend.store.read(f"{name.backend}/state") == str(int(State.CONNECTED))
    assert f"{name}: QEMU made this device and serves it" in caplog.text
    (status,) = backend.status()
    assert (status.backend, status.error, status.network) == ("Connected", None, None)


async def test_a_fault_that_stays_is_told_once(
    backend: Backend, guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    name = await add(backend.store, guest.domid, kind="qnic", mac=None)
    reason = f"{name}: no MAC address found"
    await error_of(backend, name)
    for _ in range(3):
        await backend.store.write(f"{name.backend}/online", "1")
        await looked(backend, backend.devices[name], State.INITIALISING)
    assert lines(caplog).count(reason) == 1
