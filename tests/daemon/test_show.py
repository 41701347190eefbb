# SPDX-License-Identifier: Apache-2.0
"""Everything of a device: what both ends said of each feature, and the nodes of both, whatever a guest wrote there."""

import re
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState as State
from netback.cli.show import _lines
from netback.control import Refused
from netback.control.schema import Details, Feature
from netback.daemon import Backend
from netback.daemon.status import MAX_NODES, MAX_VALUE
from netback.xenbus.names import DeviceName
from tests.daemon.talk import client
from tests.vif.guest import Guest, until_state


@pytest.fixture
async def name(backend: Backend, guest: Guest) -> DeviceName:
    made = await backend.attach(guest.domid, "python:lan", mac="00:16:3e:00:00:01")
    await until_state(guest.store, made.backend, State.INIT_WAIT)
    return made


async def show(xen: Path, name: DeviceName) -> tuple[Details, dict[str, Feature]]:
    details = await client(xen, lambda made: made.show(str(name)))
    return details, {feature.feature: feature for feature in details.features}


async def test_a_device_before_and_after_it_connects(xen: Path, guest: Guest, name: DeviceName) -> None:
    details, features = await show(xen, name)
    assert (details.device.backend, details.fault) == ("InitWait", None)
    assert {feature.agreed for feature in features.values()} == {None}
    assert features["control ring"].offered == "1"
    await guest.connect()
    details, features = await show(xen, name)
    assert details.device.counters is not None
    assert (features["frames of several pages"].asked, features["frames of several pages"].agreed) == (
        "1",
        True,
    )
    assert features["control ring"].reason == "the guest does not ask for it"
    assert (details.backend_path, details.frontend_path) == (name.backend, guest.path)
    assert details.backend_nodes["mac"] == "00:16:3e:00:00:01"
    assert details.frontend_nodes["tx-ring-ref"].isdecimal()
    text = "\n".join(_lines(details))
    assert re.search(r"^states +backend Connected, frontend Connected$", text, re.M)
    assert re.search(r"^control ring +1 +- +no: the guest does not ask for it$", text, re.M)
    assert re.search(r"^IPv4 checksums +- +- +yes$", text, re.M)


async def test_what_a_guest_writes_is_bounded_and_printable(
    xen: Path, backend: Backend, guest: Guest, name: DeviceName
) -> None:
    await guest.store.write(f"{guest.path}/feature-sg", "yes\x1b[2J")
    await guest.store.write(f"{guest.path}/long", "x" * 2000)
    for number in range(MAX_NODES):
        await backend.store.write(f"{guest.path}/node-{number}", "1")
    await guest.set_state(State.CONNECTED)
    await until_state(guest.store, name.backend, State.CLOSING)
    details, features = await show(xen, name)
    assert details.fault is not None
    assert details.device.error is not None
    assert {feature.agreed for feature in features.values()} == {None}
    assert features["frames of several pages"].asked == r"yes\x1b[2J"
    assert len(details.frontend_nodes) <= MAX_NODES
    assert max(map(len, details.frontend_nodes.values())) <= MAX_VALUE
    text = "\n".join(_lines(details))
    assert "no feature is agreed: the frontend's" in text
    assert "\x1b" not in text


async def test_a_frontend_that_is_no_path(xen: Path, backend: Backend, name: DeviceName) -> None:
    await backend.store.write(f"{name.backend}/frontend", "no path")
    details, _ = await show(xen, name)
    assert (details.frontend_path, details.frontend_nodes) == ("no path", {})
    assert "  no node" in [*_lines(details)]


async def test_a_device_that_does_not_exist(xen: Path, backend: Backend) -> None:
    with pytest.raises(Refused, match=r"there is no device vif77\.0"):
        await client(xen, lambda made: made.show("vif77.0"))
