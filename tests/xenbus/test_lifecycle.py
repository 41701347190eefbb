# SPDX-License-Identifier: Apache-2.0
"""The lifecycle table row by row, on a real store, with a frontend and a toolstack that the test drives."""

import logging
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState as State
from netback.daemon import Backend, BackendConfig
from netback.daemon.backend import default_queues
from netback.net.python import PythonNetwork
from netback.platforms.emulated import EmulatedPlatform
from netback.vif.features import DeviceType, Limits, offer
from netback.xenbus.attach import attach
from netback.xenbus.names import DeviceName, backends
from netback.xenstore.aio import Store
from tests.vif.guest import FRAME, Guest, exchange, join, serving, until, until_state
from tests.xenbus.toolstack import add, gone, looked, passing, take_away


@pytest.fixture(autouse=True)
def walk(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "netback.xenbus")
    return caplog


def states(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Every change of our state so far."""
    return [
        record.getMessage().partition(": ")[2] for record in caplog.records if record.levelno == logging.DEBUG
    ]


async def state_of(backend: Backend, name: DeviceName) -> State:
    return State.parse(await backend.store.read(f"{name.backend}/state"))


@pytest.mark.parametrize("kind", ["vif", "qnic"])
@pytest.mark.parametrize("theirs", list(State))
async def test_a_new_device_is_offered(
    backend: Backend, guest: Guest, kind: DeviceType, theirs: State
) -> None:
    """InitWait follows whatever the frontend's state is; all features are written by then, and no script has to run."""
    name = await add(backend.store, guest.domid, kind=kind, script="vif-bridge", state="0")
    await guest.set_state(theirs)
    await backend.store.write(f"{name.backend}/state", "1")
    seen = await until(guest.store, f"{name.backend}/state", lambda value: value in {"2", "5", "6"})
    offered = offer(Limits(queues=default_queues()))
    assert {key: await guest.store.read(f"{name.backend}/{key}") for key in offered} == offered
    assert seen == "2" or theirs in (State.CLOSED, State.CLOSING, State.UNKNOWN)


@pytest.mark.parametrize("theirs", [State.INIT_WAIT, State.INITIALISED])
async def test_a_frontend_that_prepares_changes_nothing(
    backend: Backend, guest: Guest, theirs: State
) -> None:
    name = await add(backend.store, guest.domid)
    await guest.connect()
    await guest.set_state(theirs)
    await looked(backend, backend.devices[name], theirs)
    assert await state_of(backend, name) is State.CONNECTED


async def test_it_connects_when_the_script_is_done(
    backend: Backend, guest: Guest, network: PythonNetwork
) -> None:
    name = await add(backend.store, guest.domid, script="vif-bridge", hotplug_status="")
    await guest.connect(wait=False)
    await looked(backend, backend.devices[name], State.CONNECTED)
    assert await state_of(backend, name) is State.INIT_WAIT
    await backend.store.write(f"{name.backend}/hotplug-status", "connected")
    await until_state(guest.store, name.backend, State.CONNECTED)
    await exchange(guest, network)


async def test_closing(backend: Backend, guest: Guest) -> None:
    """The rings are disconnected before the guest sees Closing: it then revokes its grants."""
    name = await add(backend.store, guest.domid)
    await guest.connect()
    await guest.set_state(State.CLOSING)
    await until_state(guest.store, name.backend, State.CLOSING)
    assert not guest.domain.still_in_use(guest.tx.gref)
    assert not guest.domain.still_in_use(guest.rx.gref)


async def test_closed_goes_through_closing(
    backend: Backend, guest: Guest, walk: pytest.LogCaptureFixture
) -> None:
    name = await add(backend.store, guest.domid)
    await guest.connect()
    await guest.set_state(State.CLOSED)
    await until_state(guest.store, name.backend, State.CLOSED)
    assert states(walk)[-2:] == ["Connected to Closing", "Closing to Closed"]


async def test_a_frontend_that_vanishes(
    backend: Backend, guest: Guest, walk: pytest.LogCaptureFixture
) -> None:
    name = await add(backend.store, guest.domid)
    await guest.connect()
    await backend.store.rm(guest.path)
    await until_state(backend.store, name.backend, State.CLOSED)
    assert states(walk)[-1] == "Connected to Closed"
    assert not guest.domain.still_in_use(guest.tx.gref)


@pytest.mark.parametrize("text", ["", "9", "04", "4\n", "99999999999", "x" * 2000, "-4", "²"])
async def test_a_state_that_is_none(backend: Backend, guest: Guest, text: str) -> None:
    """An unreadable frontend counts as gone."""
    name = await add(backend.store, guest.domid)
    await guest.connect()
    await guest.store.write(f"{guest.path}/state", text)
    await until_state(guest.store, name.backend, State.CLOSED)


async def test_reload(backend: Backend, guest: Guest, network: PythonNetwork) -> None:
    """A reloaded driver: Closed, Initialising, Connected."""
    name = await add(backend.store, guest.domid)
    for _ in range(3):
        await guest.connect()
        await exchange(guest, network)
        await guest.set_state(State.CLOSED)
        await until_state(guest.store, name.backend, State.CLOSED)
        await guest.set_state(State.INITIALISING)
        await until_state(guest.store, name.backend, State.INIT_WAIT)


async def test_a_frontend_that_begins_anew_without_a_word(
    backend: Backend, guest: Guest, network: PythonNetwork
) -> None:
    """Connected, then Initialising, as after a crash or reset of the guest: it gets the InitWait that it waits for."""
    name = await add(backend.store, guest.domid)
    for before in (State.CONNECTED, State.RECONFIGURING):
        await guest.connect()
        await guest.set_state(before)
        await until_state(
            guest.store, name.backend, State.RECONFIGURED if before is State.RECONFIGURING else before
        )
        await guest.set_state(State.INITIALISING)
        await until_state(guest.store, name.backend, State.INIT_WAIT)
        vif = backend.devices[name].vif
        assert vif is not None
        assert not vif.connected
    await guest.connect()
    await exchange(guest, network)


async def test_a_frontend_that_changes_its_mind(
    backend: Backend, guest: Guest, network: PythonNetwork
) -> None:
    """Closing, then Connected again without Closed in between."""
    name = await add(backend.store, guest.domid)
    await guest.connect()
    await guest.set_state(State.CLOSING)
    await until_state(guest.store, name.backend, State.CLOSING)
    await guest.say()
    await until_state(guest.store, name.backend, State.CONNECTED)
    await exchange(guest, network)


async def test_reconfiguring(backend: Backend, guest: Guest, network: PythonNetwork) -> None:
    """The rings stay; keys that are not for a connected frontend to change count from its next connection on."""
    name = await add(backend.store, guest.domid)
    await guest.connect()
    await guest.store.write(f"{guest.path}/feature-sg", "0")
    await guest.set_state(State.RECONFIGURING)
    await until_state(guest.store, name.backend, State.RECONFIGURED)
    config = backend.devices[name].config
    assert config is not None
    assert config.sg
    await exchange(guest, network)
    await guest.set_state(State.CONNECTED)
    await until_state(guest.store, name.backend, State.CONNECTED)
    await exchange(guest, network)


async def test_the_toolstack_takes_a_device(
    backend: Backend, guest: Guest, network: PythonNetwork, walk: pytest.LogCaptureFixture
) -> None:
    """Until the guest changes its state RX is refused and TX served; afterwards only the toolstack's nodes are left."""
    name = await add(backend.store, guest.domid)
    await guest.connect()
    await exchange(guest, network)
    device = backend.devices[name]
    await take_away(backend.store, name)
    await passing(backend, lambda: device.state is State.CLOSING)
    await looked(backend, device, State.CONNECTED)
    received = guest.post()
    await network.send(FRAME)
    slot = guest.send(FRAME)
    assert await guest.answer(slot) == 0
    assert await network.recv() == FRAME
    assert guest.rx.index(2) == received
    await guest.set_state(State.CLOSED)
    await until_state(guest.store, name.backend, State.CLOSED)
    await gone(backend, name)
    assert states(walk)[-1] == "Closing to Closed"
    assert set(await backend.store.directory(name.backend)) == {
        "frontend", "frontend-id", "online", "state", "mac", "net",
    }  # fmt: skip
    assert "state" in await backend.store.directory(guest.path)


async def test_closing_that_another_process_wrote(backend: Backend, guest: Guest) -> None:
    """No frontend is connected, so Closed follows at once."""
    name = await add(backend.store, guest.domid)
    await until_state(guest.store, name.backend, State.INIT_WAIT)
    await backend.store.write(f"{name.backend}/state", "5")
    await until_state(guest.store, name.backend, State.CLOSED)


@pytest.mark.parametrize("theirs", [State.INITIALISING, State.INIT_WAIT, State.CLOSED, State.UNKNOWN])
@pytest.mark.parametrize("ours", [State.INITIALISING, State.INIT_WAIT, State.CLOSED])
async def test_offline_devices_are_destroyed(
    backend: Backend, guest: Guest, theirs: State, ours: State
) -> None:
    name = await add(backend.store, guest.domid)
    await until_state(guest.store, name.backend, State.INIT_WAIT)
    await guest.set_state(theirs)

    async def body(tx: int) -> None:
        await backend.store.write(f"{name.backend}/state", str(int(ours)), tx)
        await backend.store.write(f"{name.backend}/online", "0", tx)

    await backend.store.transact(body)
    await until_state(guest.store, name.backend, State.CLOSED)
    await gone(backend, name)


async def test_offline_while_connected_walks_down(
    backend: Backend, guest: Guest, walk: pytest.LogCaptureFixture
) -> None:
    name = await add(backend.store, guest.domid)
    await guest.connect()
    await backend.store.write(f"{name.backend}/online", "0")
    await guest.set_state(State.INITIALISING)
    await gone(backend, name)
    assert states(walk)[-2:] == ["Connected to Closing", "Closing to Closed"]


async def test_a_backend_directory_that_goes_does_not_come_back(backend: Backend, guest: Guest) -> None:
    name = await add(backend.store, guest.domid)
    await guest.connect()
    await backend.store.rm(name.backend)
    await gone(backend, name)
    await guest.set_state(State.CLOSED)
    assert not guest.domain.still_in_use(guest.tx.gref)
    assert await backend.store.read_or(name.backend) is None


async def test_a_frontend_that_vanishes_before_it_connects(backend: Backend, guest: Guest) -> None:
    name = await add(backend.store, guest.domid)
    await until_state(guest.store, name.backend, State.INIT_WAIT)
    await looked(backend, backend.devices[name], State.INITIALISING)
    await backend.store.rm(guest.path)
    await until_state(backend.store, name.backend, State.CLOSED)


async def test_all_devices_of_a_guest_go_at_once(backend: Backend, guest: Guest) -> None:
    """The toolstack removes the directory above them."""
    names = [await add(backend.store, guest.domid, number=number) for number in ("0", "1")]
    await guest.connect()
    await backend.store.rm(f"/local/domain/0/backend/vif/{guest.domid}")
    for name in names:
        await gone(backend, name)
    assert not guest.domain.still_in_use(guest.tx.gref)


async def test_a_domain_whose_nodes_outlive_it(xen: Path, backend: Backend) -> None:
    """A toolstack removes the nodes later; the end of the domain decides."""
    async with join(xen) as guest:
        name = await add(backend.store, guest.domid, frontend="/tool/frontend")
        await backend.store.write("/tool/frontend/state", "3")
        await until_state(backend.store, name.backend, State.INIT_WAIT)
        await looked(backend, backend.devices[name], State.INITIALISED)
    await until_state(backend.store, name.backend, State.CLOSED)


async def test_a_domain_that_ends(xen: Path, backend: Backend) -> None:
    """A toolstack's device is closed; a device that `attach` made is removed."""
    async with join(xen) as guest:
        theirs = await add(backend.store, guest.domid)
        await guest.connect()
        ours = await backend.attach(guest.domid, "null")
    await until_state(backend.store, theirs.backend, State.CLOSED)
    await gone(backend, ours)
    assert await backend.store.read_or(ours.backend) is None


async def test_a_dead_domain_s_device_opens_no_network_again(xen: Path, backend: Backend) -> None:
    """Its nodes are seen again whenever one of them changes, until the toolstack removes them."""
    async with join(xen) as guest:
        name = await add(backend.store, guest.domid)
        await guest.connect()
        ended = backend.devices[name]
    await until_state(backend.store, name.backend, State.CLOSED)
    await passing(backend, lambda: backend.devices.get(name) is not ended)
    for value in ("1", "2", "3"):
        await backend.store.write(f"{name.backend}/handle", value)
        await passing(backend, lambda: name in backend.devices and backend.devices[name].rounds > 0)
        await looked(backend, backend.devices[name], State.UNKNOWN)
        assert backend.devices[name].vif is None
    await take_away(backend.store, name)
    await gone(backend, name)


async def test_an_operators_device_of_a_domain_that_ended_while_nobody_looked(
    xen: Path, network: PythonNetwork
) -> None:
    async with join(xen) as guest, serving(xen, network) as backend:
        name = await backend.attach(guest.domid, "null")
        await guest.connect()
    async with serving(xen, network) as backend:
        await gone(backend, name)
        assert await backend.store.read_or(name.backend) is None


async def test_every_order_of_writing_by_hand_works(backend: Backend, guest: Guest) -> None:
    """The nodes appear one by one, and the state is not the last: the device exists once all do."""
    name = DeviceName("qnic", 0, guest.domid, "4")
    for path, key, value in (
        (name.backend, "state", "1"),
        (name.backend, "online", "1"),
        (name.backend, "net", "python:lan"),
        (name.backend, "frontend", name.frontend),
        (name.backend, "mac", "00:16:3e:00:00:01"),
    ):
        await backend.store.write(f"{path}/{key}", value)
    await until_state(backend.store, name.backend, State.INIT_WAIT)
    await backend.store.write(f"{name.frontend}/state", "1")
    assert await until(backend.store, f"{name.frontend}/mac", bool) == "00:16:3e:00:00:01"
    await looked(backend, backend.devices[name], State.INITIALISING)
    assert await state_of(backend, name) is State.INIT_WAIT


async def test_a_driver_domain(xen: Path, network: PythonNetwork) -> None:
    """A backend outside domain 0 has only its own domain's rights, which a guest may revoke."""
    networks = {"python:lan": network}
    async with join(xen) as driver, join(xen, backend=driver.domid) as guest:
        with EmulatedPlatform(xen, driver.domid) as platform:
            async with Backend(platform, BackendConfig(xen, networks=networks, workers=1)):
                async with await Store.connect(xen / "xenstored.sock") as dom0:
                    await dom0.mkdir(backends(driver.domid, "vif"))
                    await dom0.set_perms(backends(driver.domid, "vif"), [f"n{driver.domid}"])
                    name = await attach(dom0, guest.domid, "python:lan", backend_domid=driver.domid)
                await guest.connect()
                await exchange(guest, network)
                await guest.store.set_perms(f"{guest.path}/state", [f"n{guest.domid}"])
                await driver.store.write(f"{name.backend}/hotplug-status", "connected")
                await until_state(guest.store, name.backend, State.CLOSED)


@pytest.mark.parametrize("closing", [False, True])
async def test_a_restart_changes_no_state(xen: Path, network: PythonNetwork, closing: bool) -> None:
    """A Closing that a predecessor wrote stays until the guest answers it."""
    async with join(xen) as guest:
        async with serving(xen, network) as backend:
            name = await add(backend.store, guest.domid)
            await guest.connect()
            if closing:
                await backend.store.write(f"{name.backend}/state", "5")
        async with serving(xen, network) as backend:
            await looked(backend, backend.devices[name], State.CONNECTED)
            assert await state_of(backend, name) is (State.CLOSING if closing else State.CONNECTED)
            if not closing:
                await exchange(guest, network)
