# SPDX-License-Identifier: Apache-2.0
"""Failures in one device: reported, retried and recovered; the other devices and the daemon continue."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState as State
from netback.abi.xs_wire import Op
from netback.daemon import Backend, BackendConfig
from netback.platforms.base import MappedPage
from netback.platforms.emulated import EmulatedPlatform, Emulator
from netback.xenbus.device import MAX_REASON
from netback.xenbus.names import DeviceName, backends
from netback.xenstore.aio import MAX_TRANSACTIONS, Store
from netback.xenstore.quota import GUEST
from netback.xenstore.server import Server
from tests.vif.guest import FRAME, Guest, join, until, until_state
from tests.xenbus.refusals import Refusal, RefusingStore, refusing
from tests.xenbus.toolstack import add, gone, looked, take_away

ERRNOS = ("EINVAL", "EACCES", "EPERM", "ENOSPC", "E2BIG", "EQUOTA", "ENOMEM")
"""Reasons for a store to refuse: bad path, missing right, a quota of xenstored or oxenstored, no memory."""


@pytest.fixture
async def backend(xen: Path) -> AsyncIterator[Backend]:
    async with refusing(xen) as backend:
        yield backend


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# ---- one device, in domain 0


@pytest.mark.parametrize("frontend", ["/local/domain/1/device/vif 7", "//", "/a\0b", "/" + "x" * 4000, "/"])
async def test_a_frontend_that_is_no_path(backend: Backend, guest: Guest, frontend: str) -> None:
    """The device beside it works, and the failed one does as soon as the node is corrected."""
    bad = await add(backend.store, guest.domid, number="7", net="null", frontend=frontend)
    good = await add(backend.store, guest.domid, net="null")
    await guest.connect()
    assert await backend.store.read(f"{good.backend}/state") == "4"
    await until(backend.store, f"{bad.errors}/error", bool)
    await backend.store.write(f"{bad.backend}/frontend", bad.frontend)
    await until_state(backend.store, bad.backend, State.INIT_WAIT)
    await until(backend.store, f"{bad.errors}/error", lambda text: text is None)
    assert backend.devices[bad].error == ""
    await backend.store.write(f"{bad.frontend}/state", "5")
    await until_state(backend.store, bad.backend, State.CLOSING)


@pytest.mark.parametrize("removed", [False, True])
async def test_a_bad_device_can_be_taken_away(backend: Backend, guest: Guest, removed: bool) -> None:
    """An unreadable node must not keep a device that is being removed."""
    name = await add(backend.store, guest.domid, net="null", frontend="no path")
    await until(backend.store, f"{name.errors}/error", bool)
    if removed:
        await backend.store.rm(name.backend)
    else:
        await take_away(backend.store, name)
        await until_state(backend.store, name.backend, State.CLOSED)
    await gone(backend, name)
    assert await backend.store.read_or(name.errors) is None


@pytest.mark.parametrize("errno", ERRNOS)
@pytest.mark.parametrize(
    ("op", "path"),
    [
        (Op.WATCH, "device/vif/0"),
        (Op.READ, "vif/0/state"),
        (Op.READ, "/net"),
        (Op.WRITE, "/0/state"),
        (Op.WRITE, "feature-sg"),
        (Op.READ, "/hotplug-status"),
        (Op.TRANSACTION_END, "commit"),
    ],
    ids=lambda value: value.name if isinstance(value, Op) else str(value),
)
async def test_what_the_store_refuses_is_tried_again(
    xen: Path, guest: Guest, op: Op, path: str, errno: str
) -> None:
    """Any refusal of any request: no state is skipped, the guest connects, no error remains."""
    refusal = Refusal(op, path, errno, times=2)
    async with await Store.connect(xen / "xenstored.sock") as store, refusing(xen, refusal):
        name = await add(store, guest.domid, net="null")
        await guest.connect()
        assert refusal.seen == 2
        await until(store, f"{name.errors}/error", lambda text: text is None)


@pytest.mark.parametrize("path", ["/backend/vif", "/backend/qnic", "@releaseDomain", "@introduceDomain"])
@pytest.mark.parametrize("errno", ["E2BIG", "EACCES"])
async def test_a_watch_of_the_backend_s_own_that_is_refused(
    xen: Path, guest: Guest, monkeypatch: pytest.MonkeyPatch, path: str, errno: str
) -> None:
    """Another program in the domain may have used up the quota."""
    monkeypatch.setattr("netback.xenbus.devices.AGAIN_SECONDS", 0.05)
    async with refusing(xen, Refusal(Op.WATCH, path, errno, times=2)) as backend:
        await add(backend.store, guest.domid, net="null")
        await guest.connect()


async def test_a_directory_that_cannot_be_listed(
    xen: Path, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netback.xenbus.devices.AGAIN_SECONDS", 0.05)
    async with await Store.connect(xen / "xenstored.sock") as store:
        await add(store, guest.domid, net="null")
    async with refusing(xen, Refusal(Op.DIRECTORY, "/backend/vif", "EACCES", times=2)):
        await guest.connect()


async def test_a_reason_is_short_and_printable(
    backend: Backend, guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    """A store message takes 4096 bytes, and a terminal executes the escapes that it is shown."""
    name = await add(backend.store, guest.domid, net="\x1b[31m\n" * 500)
    error = await until(backend.store, f"{name.errors}/error", bool)
    assert error is not None
    assert len(error) <= MAX_REASON
    assert error.isprintable()
    assert warnings(caplog) == [f"{name}: {error}"]


class OddPlatform(EmulatedPlatform):
    """A platform that raises an unexpected exception, a number of times."""

    failures = 0

    def map_grant(self, domid: int, gref: int, *, readonly: bool = False) -> MappedPage:
        if self.failures:
            self.failures -= 1
            raise ZeroDivisionError("not\nexpected")
        return super().map_grant(domid, gref, readonly=readonly)


async def test_the_unexpected(xen: Path, guest: Guest, caplog: pytest.LogCaptureFixture) -> None:
    """A bug in netback is that device's error, with a traceback in the log, and is retried."""
    with OddPlatform(xen) as platform:
        platform.failures = 3
        async with Backend(platform, BackendConfig(xen, workers=1)) as backend:
            name = await add(backend.store, guest.domid, net="null")
            await guest.connect()
            await until(backend.store, f"{name.errors}/error", lambda text: text is None)
    assert f"{name}: unexpected: ZeroDivisionError: not\\nexpected" in warnings(caplog)
    assert [record for record in caplog.records if record.exc_info]
    assert not guest.domain.still_in_use(guest.rx.gref) or platform.failures == 0


async def test_a_frontend_that_fails_from_closed_does_not_loop(backend: Backend, guest: Guest) -> None:
    """Connected without a required key, from Closed and from Closing: each gets one answer."""
    name = await add(backend.store, guest.domid, net="null")
    await guest.connect()
    for before in (State.CLOSED, State.CLOSING):
        await guest.set_state(before)
        await until_state(guest.store, name.backend, before)
        rounds = backend.devices[name].rounds
        await guest.say(tx_ring_ref=None)
        await until_state(guest.store, name.backend, State.CLOSING)
        error = await until(backend.store, f"{name.errors}/error", bool)
        assert error == "the frontend's tx-ring-ref is missing"
        for _ in range(200):
            await backend.store.read("/local/domain/0/name")
        assert backend.devices[name].rounds - rounds < 20
        await guest.set_state(State.CLOSED)
        await until_state(guest.store, name.backend, State.CLOSED)
        await guest.set_state(State.INITIALISING)
        await guest.connect()


# ---- left by a predecessor


async def test_error_nodes_of_devices_that_went_while_no_backend_ran(xen: Path, guest: Guest) -> None:
    async with refusing(xen) as backend:
        names = [await add(backend.store, guest.domid, number=n, net="nothing") for n in ("0", "1")]
        for name in names:
            await until(backend.store, f"{name.errors}/error", bool)
    async with await Store.connect(xen / "xenstored.sock") as store:
        await store.rm(names[0].backend)
        async with refusing(xen):
            await until(store, names[0].errors, lambda text: text is None)
            assert await store.read_or(f"{names[1].errors}/error")
            await store.rm(names[1].backend)
            await until(store, f"/local/domain/0/error/backend/vif/{guest.domid}", lambda text: text is None)


class SlowStore(RefusingStore):
    """Lists error nodes only once `go` is set."""

    go: asyncio.Event

    def _post(self, op: Op, what: str, payload: bytes, tx: int | None) -> asyncio.Future[bytes]:
        if op is Op.DIRECTORY and what.endswith("/error/backend/vif"):
            return asyncio.ensure_future(self._later(op, what, payload, tx))
        return super()._post(op, what, payload, tx)

    async def _later(self, op: Op, what: str, payload: bytes, tx: int | None) -> bytes:
        await self.go.wait()
        return await super()._post(op, what, payload, tx)


async def test_the_error_node_of_a_device_that_came_meanwhile(
    xen: Path, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no node of a device that went."""
    monkeypatch.setattr(SlowStore, "go", asyncio.Event(), raising=False)
    monkeypatch.setattr("tests.xenbus.refusals.RefusingStore", SlowStore)
    async with refusing(xen) as backend:
        name = await add(backend.store, guest.domid, net="nothing")
        await until(backend.store, f"{name.errors}/error", bool)
        await looked(backend, backend.devices[name], State.INITIALISING)
        SlowStore.go.set()
        await looked(backend, backend.devices[name], State.INITIALISING)
        assert await backend.store.read_or(f"{name.errors}/error")


async def test_a_device_of_an_earlier_life_of_a_domid(xen: Path) -> None:
    """`attach` made the device, its guest ended and another guest has the domid, all while no backend ran."""
    async with await Store.connect(xen / "xenstored.sock") as store:
        async with join(xen) as guest, refusing(xen) as backend:
            name = await backend.attach(guest.domid, "null")
            await guest.connect()
        async with join(xen, domid=name.domid) as guest:
            assert await store.read(f"{name.backend}/state") == "4"
            async with refusing(xen) as backend:
                await until(store, name.backend, lambda text: text is None)
                assert await backend.attach(guest.domid, "null") == name
                await guest.connect()


async def test_a_guest_s_own_removal_leaves_the_device(backend: Backend, guest: Guest) -> None:
    """A guest may remove its own directory: the nodes that attach made stay, closed, and work once it is back."""
    name = await backend.attach(guest.domid, "null")
    await guest.connect()
    await guest.store.rm(guest.path)
    await until_state(backend.store, name.backend, State.CLOSED)
    await guest.store.write(f"{guest.path}/backend", name.backend)
    await guest.set_state(State.INITIALISING)
    await guest.connect()


async def test_the_end_of_a_domain_wakes_its_devices_alone(xen: Path, backend: Backend, guest: Guest) -> None:
    name = await add(backend.store, guest.domid, net="null")
    await guest.connect()
    await until(backend.store, f"{name.errors}/error", lambda text: text is None)
    async with join(xen) as other:
        theirs = await backend.attach(other.domid, "null")
        await until_state(backend.store, theirs.backend, State.INIT_WAIT)
        await looked(backend, backend.devices[name], State.CONNECTED)
        rounds = backend.devices[name].rounds
    await gone(backend, theirs)
    assert backend.devices[name].rounds == rounds


# ---- two at once


async def test_a_second_backend_of_a_domain(
    xen: Path, guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    """The second process uses another directory, so no lock stops it. The guest sees no change of state, and the second
    process serves it once the first has ended."""
    writes: list[str] = []
    second = Backend(EmulatedPlatform(xen), BackendConfig(xen / "second", workers=1))
    async with AsyncExitStack() as undo:
        undo.callback(second.platform.close)
        store = await undo.enter_async_context(await Store.connect(xen / "xenstored.sock"))
        async with refusing(xen) as first:
            name = await add(store, guest.domid, net="null")
            await guest.connect()
            await store.watch(f"{name.backend}/state", writes.append)
            await undo.enter_async_context(second)
            await until_error(store, second, name, "another process serves this device")
            assert len(writes) == 1  # the watch's own
            await guest.set_state(State.CLOSED)
            await until_state(store, name.backend, State.CLOSED)
            await guest.set_state(State.INITIALISING)
            await guest.connect()
            assert len(writes) == 5  # Closing, Closed, InitWait, Connected
            assert await store.read_or(f"{name.errors}/error") is None
            assert not first.devices[name].error
        await until_error(store, second, name, "")
        assert second.devices[name].state is State.CONNECTED
        assert len(writes) == 5
    assert len([line for line in warnings(caplog) if "another process serves" in line]) == 1


async def test_two_backends_of_a_domain_from_the_start(xen: Path, guest: Guest) -> None:
    """Both see the guest connect, and one is first. The other takes nothing down, however often the guest reloads."""
    writes: list[str] = []
    other = Backend(EmulatedPlatform(xen), BackendConfig(xen / "second", workers=1))
    async with AsyncExitStack() as undo:
        undo.callback(other.platform.close)
        store = await undo.enter_async_context(await Store.connect(xen / "xenstored.sock"))
        both = [await undo.enter_async_context(refusing(xen)), await undo.enter_async_context(other)]
        name = await add(store, guest.domid, net="null")
        for _ in range(2):
            await guest.connect()
            writes.clear()
            watch = await store.watch(f"{name.backend}/state", writes.append)
            async with asyncio.timeout(20):
                while not any("another process serves" in backend.devices[name].error for backend in both):
                    await store.read("/local/domain/0/name")
            assert len(writes) == 1  # the watch's own
            await watch.close()
            assert await guest.answer(guest.send(FRAME)) == 0
            await guest.set_state(State.CLOSED)
            await until_state(store, name.backend, State.CLOSED)
            await guest.set_state(State.INITIALISING)


async def until_error(store: Store, backend: Backend, name: DeviceName, begin: str) -> None:
    """Wait until a device's error is this one, or none."""
    async with asyncio.timeout(20):
        while name not in backend.devices or not backend.devices[name].error.startswith(begin):
            await store.read("/local/domain/0/name")
        while not begin and backend.devices[name].error:
            await store.read("/local/domain/0/name")


async def test_a_port_that_is_taken_at_a_fresh_connect(backend: Backend, guest: Guest) -> None:
    """Without another process it is the guest's fault: error, Closing."""
    name = await add(backend.store, guest.domid, net="null")
    await until_state(guest.store, name.backend, State.INIT_WAIT)
    await guest.say(event_channel="4000")
    await until_state(guest.store, name.backend, State.CLOSING)
    assert (await backend.store.read(f"{name.errors}/error")).startswith(
        "the frontend's event-channel 4000 cannot"
    )


# ---- many devices, in a driver domain


@asynccontextmanager
async def driver_domain(directory: Path) -> AsyncIterator[tuple[Backend, Store]]:
    """A backend with its domain's own rights, and the toolstack's store."""
    async with join(directory) as driver, await Store.connect(directory / "xenstored.sock") as dom0:
        for kind in ("vif", "qnic"):
            await dom0.mkdir(backends(driver.domid, kind))  # type: ignore[arg-type]
            await dom0.set_perms(backends(driver.domid, kind), [f"n{driver.domid}"])  # type: ignore[arg-type]
        with EmulatedPlatform(directory, driver.domid) as platform:
            async with Backend(platform, BackendConfig(directory, workers=1)) as backend:
                yield backend, dom0


@pytest.mark.parametrize("count", [126, 1000])
async def test_many_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """More devices than the domain may have watches and transactions, in a store that grants enough nodes."""
    quota = replace(GUEST, nodes=100_000)
    monkeypatch.setattr("netback.platforms.emulated.emulator.Server", partial(Server, quota))
    with Emulator(tmp_path):
        async with (
            driver_domain(tmp_path) as (backend, dom0),
            join(tmp_path, backend=backend.platform.domid) as guest,
        ):
            names = [
                await add(dom0, guest.domid, number=str(number), backend=backend.platform.domid, net="null")
                for number in range(count)
            ]
            for name in names:
                await until_state(dom0, name.backend, State.INIT_WAIT)
            await guest.connect()
            await dom0.write(f"{names[-1].frontend}/state", "5")
            await until_state(dom0, names[-1].backend, State.CLOSING)


async def test_devices_beyond_the_quota(
    xen: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As many devices as the quota allows are served. Each further one has its own error, which names the quota, and is
    served once another is removed."""
    async with driver_domain(xen) as (backend, dom0), join(xen, backend=backend.platform.domid) as guest:
        domid = backend.platform.domid
        names = [await add(dom0, guest.domid, number=str(n), backend=domid, net="null") for n in range(100)]
        async with asyncio.timeout(20):
            while not all(name in backend.devices and served(backend, name) for name in names):
                await dom0.read("/local/domain/0/name")
        refused = [name for name in names if backend.devices[name].error]
        assert 20 < len(refused) < 80
        assert all("ENOSPC (the quota of nodes" in backend.devices[name].error for name in refused)
        await guest.connect()
        # The domain is beyond its quota of 1000: a device has 7 nodes that dom0 writes, which no quota stops, and 13 of
        # the offer. Up to 50 devices are served before dom0 writes the last 50, so 350 nodes and the errors' nodes are
        # too many, and a removal makes room for 20. Five further offers may take 26 removals.
        going = [name for name in names[1:] if not backend.devices[name].error][:40]
        for name in going:
            await take_away(dom0, name)
            await until_state(dom0, name.backend, State.CLOSED)
            await dom0.rm(name.backend)
        async with asyncio.timeout(20):
            while sum(bool(backend.devices[name].error) for name in refused) > len(refused) - 5:
                await dom0.read("/local/domain/0/name")


def served(backend: Backend, name: DeviceName) -> bool:
    device = backend.devices[name]
    return bool(device.error) or device.state is State.INIT_WAIT


async def test_guests_that_flap_leave_nobody_stuck(xen: Path, caplog: pytest.LogCaptureFixture) -> None:
    """24 vifs in a driver domain that flap without rest: each is answered eventually, and an honest one connects."""
    async with driver_domain(xen) as (backend, dom0), join(xen, backend=backend.platform.domid) as guest:
        domid = backend.platform.domid
        names = [await add(dom0, guest.domid, number=str(n), backend=domid, net="null") for n in range(25)]
        stop = asyncio.Event()

        async def flap(name: DeviceName) -> None:
            state = 0
            while not stop.is_set():
                state = state % 6 + 1
                await guest.store.write(f"{name.frontend}/state", str(state))
                await until_answered(guest.store, name)

        async def until_answered(store: Store, name: DeviceName) -> None:
            await store.read(f"{name.backend}/state")

        flapping = [asyncio.create_task(flap(name)) for name in names[1:]]
        for _ in range(3):
            await guest.connect()
            await guest.set_state(State.CLOSED)
            await until_state(guest.store, names[0].backend, State.CLOSED)
            await guest.set_state(State.INITIALISING)
        stop.set()
        await asyncio.gather(*flapping)
        for name in names[1:]:
            await guest.store.write(f"{name.frontend}/state", "6")
            await until_state(guest.store, name.backend, State.CLOSED)
            await guest.store.write(f"{name.frontend}/state", "1")
            await until_state(guest.store, name.backend, State.INIT_WAIT)
        assert not [line for line in warnings(caplog) if "ENOSPC" in line]
        assert GUEST.transactions > MAX_TRANSACTIONS
