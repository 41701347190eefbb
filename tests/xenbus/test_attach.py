# SPDX-License-Identifier: Apache-2.0
"""`attach` and `detach` through the store alone: the nodes written, their owners, and what is refused."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState as State
from netback.errors import ConfigError, PlatformError
from netback.net.python import PythonNetwork
from netback.vif.features import Limits, offer
from netback.xenbus.attach import attach, detach, find_device, free_index, list_devices
from netback.xenbus.names import DeviceName
from netback.xenstore.aio import Store, StoreError
from tests.vif.guest import Guest, exchange, serving, until_state


@pytest.fixture
async def store(xen: Path) -> AsyncIterator[Store]:
    async with await Store.connect(xen / "xenstored.sock") as store:
        yield store


async def nodes(store: Store, path: str) -> dict[str, str]:
    return {name: await store.read(f"{path}/{name}") for name in await store.directory(path)}


async def test_what_is_written(store: Store, guest: Guest) -> None:
    name = await attach(store, guest.domid, "null", kind="qnic", mac="00:16:3E:AA:BB:CC")
    assert name == DeviceName("qnic", 0, guest.domid, "0")
    assert name.backend == f"/local/domain/0/backend/qnic/{guest.domid}/0"
    assert await nodes(store, name.backend) == offer(Limits()) | {
        "frontend": guest.path, "frontend-id": str(guest.domid), "online": "1", "hotplug-status": "connected",
        "mac": "00:16:3e:aa:bb:cc", "net": "null", "made-by": "netback", "state": "2",
    }  # fmt: skip
    assert await nodes(store, guest.path) == {
        "backend": name.backend, "backend-id": "0", "mac": "00:16:3e:aa:bb:cc", "state": "1",
    }  # fmt: skip
    for path, perms in ((name.backend, name.backend_perms), (guest.path, name.frontend_perms)):
        assert await store.get_perms(path) == await store.get_perms(f"{path}/state") == perms
    await guest.set_state(State.INIT_WAIT)
    with pytest.raises(StoreError, match="EACCES"):
        await guest.store.write(f"{name.backend}/state", "4")


async def test_nobody_sees_half_of_it(store: Store, guest: Guest) -> None:
    """One transaction: the guest sees either none of its device or all of it."""
    async with await guest.store.watch(guest.path) as watch:
        assert await anext(watch) == guest.path
        await attach(store, guest.domid, "null")
        await anext(watch)
        assert await guest.store.read(f"{guest.path}/state") == "1"
        backend = await guest.store.read(f"{guest.path}/backend")
        assert await guest.store.read(f"{backend}/state") == "2"


async def test_addresses_that_nobody_chose_are_xens(store: Store, guest: Guest) -> None:
    names = [await attach(store, guest.domid, "null") for _ in range(4)]
    addresses = {await store.read(f"{name.frontend}/mac") for name in names}
    assert len(addresses) == 4
    assert all(re.fullmatch("00:16:3e(:[0-9a-f]{2}){3}", address) for address in addresses)


async def test_the_first_free_index(store: Store, guest: Guest) -> None:
    """The first index whose frontend path does not exist; from 1 on real Xen, from 0 here."""
    await store.mkdir(f"/local/domain/{guest.domid}/device/vif/1")
    chosen = [(await attach(store, guest.domid, "null")).number for _ in range(2)]
    assert chosen == ["0", "2"]
    assert (await attach(store, guest.domid, "null", first_index=1)).number == "3"


async def test_concurrent_attaches_get_different_indices(xen: Path, guest: Guest) -> None:
    async def one() -> str:
        async with await Store.connect(xen / "xenstored.sock") as store:
            return (await attach(store, guest.domid, "null")).number

    assert sorted(await asyncio.gather(*(one() for _ in range(5)))) == list("01234")


async def test_no_index_is_left(store: Store, guest: Guest) -> None:
    for index in range(100):
        await store.mkdir(f"/local/domain/{guest.domid}/device/vif/{index}")
    with pytest.raises(PlatformError, match=r"^cannot find device index for netdev device$"):
        await attach(store, guest.domid, "null")
    assert (await attach(store, guest.domid, "null", index=100)).number == "100"


async def test_an_index_that_cannot_be_looked_at(guest: Guest) -> None:
    """A domain that may not read the path gets an error with the cause; the index does not count as free."""
    with pytest.raises(PlatformError, match=r"^cannot read /local/domain/0/device/vif/0: EACCES$"):
        await free_index(guest.store, 0, 0)


async def test_an_existing_frontend_directory_is_adopted(store: Store, guest: Guest) -> None:
    await store.write(f"{guest.path}/note", "kept")
    name = await attach(store, guest.domid, "null", index=0)
    assert await store.read(f"{guest.path}/note") == "kept"
    assert await store.get_perms(guest.path) == name.frontend_perms


async def test_what_is_refused(store: Store, guest: Guest) -> None:
    await attach(store, guest.domid, "null", index=3)
    for expected, domid, options in (
        ("there is no domain 77", 77, {}),
        ("failed to parse MAC address: 'x'", guest.domid, {"mac": "x"}),
        ("has a device 3 already", guest.domid, {"index": 3}),
        ("has a device 3 already", guest.domid, {"index": 3, "kind": "qnic"}),
        ("failed to parse name '2147483647'", guest.domid, {"index": 2**31 - 1}),
    ):
        with pytest.raises(ConfigError, match=expected):
            await attach(store, domid, "null", **options)  # type: ignore[arg-type]


async def test_finding_one(store: Store, guest: Guest) -> None:
    with pytest.raises(ConfigError, match="has no such device"):
        await find_device(store, guest.domid)
    names = [await attach(store, guest.domid, "null", kind=kind) for kind in ("vif", "qnic", "vif")]
    assert sorted(map(str, await list_devices(store))) == sorted(map(str, names))
    assert await find_device(store, guest.domid, kind="qnic") == names[1]
    assert await find_device(store, guest.domid, index=2) == names[2]
    with pytest.raises(ConfigError, match="choose one with --index"):
        await find_device(store, guest.domid, kind="vif")


async def removed(store: Store, name: DeviceName) -> bool:
    found = [await store.read_or(path) for path in (name.backend, name.frontend)]
    return found == [None, None] and str(name.domid) not in await store.directory(
        "/local/domain/0/backend/vif"
    )


async def test_detach_asks_first(xen: Path, store: Store, guest: Guest, network: PythonNetwork) -> None:
    """Runs in a process other than the backend's; the guest answers as netfront does."""
    async with serving(xen, network):
        name = await attach(store, guest.domid, "python:lan")
        await guest.connect()
        await exchange(guest, network)
        leaving = asyncio.create_task(detach(store, name))
        await until_state(guest.store, name.backend, State.CLOSING)
        await guest.set_state(State.CLOSED)
        assert await leaving
        assert await removed(store, name)
        assert not guest.domain.still_in_use(guest.tx.gref)


async def test_detach_forces_who_does_not_answer(
    xen: Path, store: Store, guest: Guest, network: PythonNetwork
) -> None:
    async with serving(xen, network):
        name = await attach(store, guest.domid, "python:lan")
        await guest.connect()
        assert not await detach(store, name, seconds=0.05)
        assert await removed(store, name)
        assert not guest.domain.still_in_use(guest.tx.gref)


async def test_detach_without_a_backend(store: Store, guest: Guest) -> None:
    name = await attach(store, guest.domid, "null")
    assert await detach(store, name)
    assert await removed(store, name)
    with pytest.raises(ConfigError, match=f"there is no device {name}"):
        await detach(store, name)


@pytest.mark.parametrize("frontend", ["no path", "//", "/"])
async def test_detach_of_a_device_whose_frontend_is_no_path(
    store: Store, guest: Guest, frontend: str
) -> None:
    """A device whose nodes a toolstack wrote wrongly can still be detached."""
    name = await attach(store, guest.domid, "null")
    await store.write(f"{name.backend}/frontend", frontend)
    assert await detach(store, name)
    assert await removed(store, name)


async def test_what_the_running_backend_offers_is_written(store: Store, guest: Guest) -> None:
    name = await attach(store, guest.domid, "null", offered={"feature-rx-copy": "1", "feature-new": "7"})
    assert await store.read(f"{name.backend}/feature-new") == "7"
    assert await store.read_or(f"{name.backend}/feature-sg") is None


async def test_attached_before_the_backend_runs(
    xen: Path, store: Store, guest: Guest, network: PythonNetwork
) -> None:
    await attach(store, guest.domid, "python:lan")
    async with serving(xen, network):
        await guest.connect()
        await exchange(guest, network)
