# SPDX-License-Identifier: Apache-2.0
"""`record` of a device: by its node, by the configuration, live, over a restart, and without harm to the device."""

from dataclasses import replace
from pathlib import Path

import pytest

from netback.abi.ring import SRING
from netback.control.schema import RecordMode
from netback.daemon import Backend
from netback.net.python import PythonNetwork
from netback.observe.recording import decode
from netback.observe.replay import Step, play
from netback.xenbus.names import DeviceName
from tests.crash.respawn import until
from tests.daemon.talk import client
from tests.vif.guest import Guest, exchange, serving


async def settle(xen: Path, name: DeviceName, record: RecordMode) -> RecordMode:
    return (await client(xen, lambda made: made.set(str(name), record=record))).record


@pytest.fixture
async def name(backend: Backend, guest: Guest) -> DeviceName:
    made = await backend.attach(guest.domid, "python:lan")
    await guest.connect()
    return made


async def steps(backend: Backend, name: DeviceName) -> list[Step]:
    """What is recorded now, which a replay must do again."""
    vif = backend.devices[name].vif
    assert vif is not None
    found = [each for each in play(decode(await vif.recording())) if isinstance(each, Step)]
    assert [step.differs for step in found if step.differs] == []
    return found


def served(found: list[Step]) -> list[str]:
    return [step.poll.ring for step in found if any(step.poll.find("responses"))]


async def test_on_and_off(
    xen: Path, backend: Backend, name: DeviceName, guest: Guest, network: PythonNetwork
) -> None:
    await exchange(guest, network)
    assert await settle(xen, name, "on") == "on"
    await exchange(guest, network)
    assert served(await steps(backend, name)) == ["tx", "rx"]
    assert await settle(xen, name, "payload") == "payload"
    await exchange(guest, network)
    await exchange(guest, network)
    assert served(await steps(backend, name)) == ["tx", "rx"] * 2
    assert await settle(xen, name, "off") == "off"
    await exchange(guest, network)
    assert await steps(backend, name) == []


async def test_a_new_connection_begins_again(
    xen: Path, backend: Backend, name: DeviceName, guest: Guest, network: PythonNetwork
) -> None:
    await settle(xen, name, "on")
    await exchange(guest, network)
    vif = backend.devices[name].vif
    assert vif is not None
    await vif.disconnect()
    assert served(await steps(backend, name)) == ["tx", "rx"], "until then the last one's are there"
    SRING.pack_into(guest.tx.view, 0, 0, 1, 0, 1)
    SRING.pack_into(guest.rx.view, 0, 0, 1, 0, 1)
    assert backend.devices[name].config is not None
    await vif.connect(backend.devices[name].config, adopt=False)  # type: ignore[arg-type]
    await vif.serve()
    await exchange(guest, network)
    found = await steps(backend, name)
    assert served(found) == ["tx", "rx"]
    assert found[0].poll.rsp_prod == 0


async def test_over_a_restart(xen: Path, guest: Guest, network: PythonNetwork) -> None:
    async with serving(xen, network) as backend:
        name = await backend.attach(guest.domid, "python:lan")
        await guest.connect()
        await settle(xen, name, "on")
        await exchange(guest, network)
    async with serving(xen, network) as backend:
        await exchange(guest, network)
        assert backend.devices[name].recorder.mode == "on"
        assert served(await steps(backend, name)) == ["tx", "rx"]


async def test_by_the_configuration(xen: Path, guest: Guest, network: PythonNetwork) -> None:
    """A reload applies it to devices that no node decides for."""
    async with serving(xen, network, record="on") as backend:
        name = await backend.attach(guest.domid, "python:lan")
        await guest.connect()
        device = backend.devices[name]
        await exchange(guest, network)
        assert served(await steps(backend, name)) == ["tx", "rx"]
        notes = [note.what for note in decode(await device.vif.recording()).header.notes]  # type: ignore[union-attr]
        assert f"the guest's tx-ring-ref is '{guest.tx.gref}'" in notes
        assert "frontend Connected, backend Connected" in notes
        await backend.reconfigure(replace(backend.config, record="off"))
        await until(lambda: device.recorder.mode == "off")
        await settle(xen, name, "payload")
        await backend.reconfigure(replace(backend.config, record="on"))
        await exchange(guest, network)
        assert device.recorder.mode == "payload"


async def test_a_node_that_is_no_mode(
    xen: Path,
    backend: Backend,
    name: DeviceName,
    guest: Guest,
    network: PythonNetwork,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await settle(xen, name, "on")
    await backend.store.write(f"{name.backend}/record", "every\nthing")
    device = backend.devices[name]
    await device.apply_settings()
    await device.apply_settings()
    assert device.recorder.mode == "off"
    said = [record.getMessage() for record in caplog.records if "record:" in record.getMessage()]
    assert said == [f"{name}: record: 'every\\nthing' is none of off, on, payload"]
    await exchange(guest, network)
