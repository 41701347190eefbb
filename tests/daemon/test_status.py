# SPDX-License-Identifier: Apache-2.0
"""DeviceStatus from the store alone: it shows all that can be read, and no text in it can control a terminal."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from netback.control.schema import DeviceStatus
from netback.daemon.status import merge, read_devices
from netback.errors import printable
from netback.platforms.emulated import EmulatedDomain
from netback.xenbus.attach import attach, list_devices
from netback.xenstore.aio import Store
from tests.vif.guest import Guest, join

BACKEND = "/local/domain/0/backend/vif"


@pytest.fixture
async def dom0(xen: Path) -> AsyncIterator[Store]:
    async with await Store.connect(xen / "xenstored.sock") as store:
        yield store


@pytest.fixture
async def guest(xen: Path) -> AsyncIterator[Guest]:
    async with join(xen) as guest:
        yield guest


async def read(store: Store, backend: int = 0) -> dict[str, DeviceStatus]:
    return {status.device: status for status in await read_devices(store, backend)}


@pytest.mark.parametrize(
    ("path", "value", "shown"),
    [
        ("foo/0/state", "1", "vif/foo/0"),
        ("99999/0/state", "1", "vif/99999/0"),
        ("{domid}/x@y/state", "1", "vif{domid}.x@y"),
        ("{domid}/5/frontend", "no path", "vif{domid}.5"),
        ("{domid}/5/frontend", "", "vif{domid}.5"),
        ("{domid}/5/frontend", "/", "vif{domid}.5"),
        ("{domid}/5/frontend", "/local/domain/9/" + "x" * 3000, "vif{domid}.5"),
        ("{domid}/5/state", "4\n", "vif{domid}.5"),
        ("foo", "a value", "vif{domid}.0"),
    ],
)
async def test_an_odd_node_hides_no_device(
    dom0: Store, guest: Guest, path: str, value: str, shown: str
) -> None:
    name = await attach(dom0, guest.domid, "null")
    await dom0.write(f"{BACKEND}/{path.format(domid=guest.domid)}", value)
    found = await read(dom0)
    assert found[str(name)].backend == "InitWait"
    assert shown.format(domid=guest.domid) in found
    assert name in await list_devices(dom0)


async def test_texts_cannot_steer_a_terminal(dom0: Store, guest: Guest) -> None:
    name = await attach(dom0, guest.domid, "null")
    await guest.store.write(f"{guest.path}/feature-sg", "\x1b]0;title\x07\n\u202e")
    await dom0.write(f"/local/domain/{guest.domid}/name", "g\udce4st\x9b31m")
    await dom0.write(f"{name.errors}/error", "one\nother\r\x1b[2J")
    status = (await read(dom0))[str(name)]
    assert status.features["feature-sg"] == r"\x1b]0;title\x07\n\u202e"
    assert status.guest == r"g\xe4st\x9b31m"
    assert status.error == r"one\nother\r\x1b[2J"


async def test_what_a_driver_domain_may_not_read_is_left_out(xen: Path, dom0: Store) -> None:
    """libxl lets only the guest itself read its name; a stray directory that may not be listed hides no other."""
    with EmulatedDomain.join(xen, name="driver") as driver, EmulatedDomain.join(xen, name="g") as guest:
        for domid in (driver.domid, guest.domid):
            for node in ("", "/name", "/domid"):
                await dom0.set_perms(f"/local/domain/{domid}{node}", ["n0", f"r{domid}"])
        name = await attach(dom0, guest.domid, "null", backend_domid=driver.domid)
        root = f"/local/domain/{driver.domid}/backend"
        await dom0.mkdir(f"{root}/vif/77/0")
        for node in ("", "/vif"):
            await dom0.set_perms(f"{root}{node}", [f"n{driver.domid}"])
        await dom0.set_perms(f"{root}/vif/77", ["n0"])
        async with await driver.open_store() as store:
            found = await read(store, driver.domid)
        assert found[str(name)].guest is None
        assert found[str(name)].backend == "InitWait"
        assert found["vif77.-"].backend is None


def test_a_backend_adds_what_only_it_knows() -> None:
    stored = [
        DeviceStatus(device="vif3.0", type="vif", domid=3, index="0", backend="Connected", error="stored"),
        DeviceStatus(device="vif/foo/0", type="vif", domid=None, index="0"),
    ]
    served = [
        DeviceStatus(device="vif3.0", type="vif", domid=3, index="0", network="renamed0", counters={"tx": 1}),
        DeviceStatus(device="vif9.0", type="vif", domid=9, index="0"),
    ]
    merged = merge(stored, served)
    assert merged[0].network == "renamed0"
    assert merged[0].counters == {"tx": 1}
    assert (merged[0].backend, merged[0].error) == ("Connected", "stored")
    assert merged[1:] == stored[1:]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain g\u00e4st", "plain g\u00e4st"),
        ("a\tb\x00\x7f", r"a\tb\x00\x7f"),
        ("\u2028\u200b\ufeff", r"\u2028\u200b\ufeff"),
        ("\udcff\ud800", r"\xff\ud800"),
        ("\U000e0001", r"\U000e0001"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert "\n" not in printable(text + "\n")
