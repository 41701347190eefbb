# SPDX-License-Identifier: Apache-2.0
"""Frontends that come back: after a kexec, a suspend, a migration, half torn down, or by way of Closed alone."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import AsyncExitStack
from itertools import chain, combinations
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState as State
from netback.daemon import Backend
from netback.daemon.config import DeviceRule
from netback.net.python import PythonNetwork
from netback.xenbus.names import DeviceName
from netback.xenstore.aio import Store
from tests.vif.guest import SECONDS, Guest, exchange, join, serving, until, until_state
from tests.xenbus.toolstack import MAC, add, gone, looked, passing, take_away

KEYS = ("tx-ring-ref", "rx-ring-ref", "event-channel", "request-rx-copy")
"""The keys without which no frontend can be served."""
FEATURES = ("feature-rx-notify", "feature-sg")
SUBSETS = tuple(chain.from_iterable(combinations(KEYS, count) for count in range(1, len(KEYS) + 1)))


def another_kernel(guest: Guest) -> Guest:
    """The same domain after a kexec: other rings, and Xen has closed every port."""
    guest.domain.events.unbind(guest.port)
    return Guest(guest.domain, guest.store)


async def walk(guest: Guest, name: DeviceName, *steps: tuple[State, State]) -> None:
    """Write each of the frontend's states and wait for the backend's that answers it."""
    for ours, theirs in steps:
        await guest.set_state(ours)
        await until_state(guest.store, name.backend, theirs)


def unmapped(guest: Guest) -> bool:
    return not any(guest.domain.still_in_use(ring.gref) for ring in (guest.tx, guest.rx))


DOWN = ((State.CLOSING, State.CLOSING), (State.CLOSED, State.CLOSED))
AGAIN = (State.INITIALISING, State.INIT_WAIT)


# ---- kexec


@pytest.mark.parametrize(
    "steps",
    [(*DOWN, AGAIN), (DOWN[1], AGAIN), (AGAIN,)],
    ids=["kdump of Linux", "iPXE", "a driver that only begins"],
)
async def test_a_new_kernel_resets_the_device(
    backend: Backend, guest: Guest, network: PythonNetwork, steps: tuple[tuple[State, State], ...]
) -> None:
    """Linux's xenbus_reset_frontend walks a device that it finds Connected through Closing and Closed."""
    name = await add(backend.store, guest.domid)
    await guest.connect()
    await exchange(guest, network)
    new = another_kernel(guest)
    await walk(new, name, *steps)
    assert unmapped(guest)
    await new.connect()
    await exchange(new, network)


async def test_a_new_kernel_that_looks_at_no_state(
    backend: Backend, guest: Guest, network: PythonNetwork
) -> None:
    """It finds the backend Connected, writes its own rings and Connected, and goes on: MirageOS, mini-os, Unikraft and
    OpenBSD do not wait for InitWait.
    """
    name = await add(backend.store, guest.domid)
    await guest.connect()
    await exchange(guest, network)
    new = another_kernel(guest)
    await new.say()
    await passing(backend, lambda: unmapped(guest) and backend.devices[name].state is State.CONNECTED)
    await exchange(new, network)
    assert await backend.store.read(f"{name.backend}/state") == str(int(State.CONNECTED))


async def test_rings_that_are_named_again_stay(
    backend: Backend, guest: Guest, network: PythonNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    """Connected with the same keys, or with keys that name no rings: the connection is not touched."""
    name = await add(backend.store, guest.domid)
    await guest.connect()
    device = backend.devices[name]
    config = device.config
    for changes in ({}, {"tx_ring_ref": None}, {"event_channel": "x"}):
        rounds = device.rounds
        await guest.say(**changes)
        await passing(backend, lambda seen=rounds: device.rounds > seen)
        await looked(backend, device, State.CONNECTED)
        assert device.config is config
        await exchange(guest, network)
    assert device.error == ""


async def test_rings_that_cannot_be_used_close_the_device(
    backend: Backend, guest: Guest, network: PythonNetwork
) -> None:
    name = await add(backend.store, guest.domid)
    await guest.connect()
    await guest.say(tx_ring_ref="4000000")
    await until_state(guest.store, name.backend, State.CLOSING)
    assert backend.devices[name].error.startswith("the frontend's tx-ring-ref 4000000 cannot be mapped")
    assert unmapped(guest)
    await walk(guest, name, DOWN[1], AGAIN)
    new = another_kernel(guest)
    await new.connect()
    await exchange(new, network)


# ---- suspend and migration


async def test_a_suspend_that_was_cancelled(backend: Backend, guest: Guest, network: PythonNetwork) -> None:
    """Linux then touches neither keys nor rings; what came meanwhile is delivered."""
    await add(backend.store, guest.domid)
    await guest.connect()
    await network.send(b"while the guest was suspended".ljust(60, b"."))
    slot = guest.post()
    assert (await guest.receive(slot))[1].startswith(b"while the guest")
    await exchange(guest, network)


async def test_a_resume_in_the_same_domain(backend: Backend, guest: Guest, network: PythonNetwork) -> None:
    """The toolstack makes the device again under its former path; the guest has new rings for it."""
    name = await add(backend.store, guest.domid)
    await guest.connect()
    for _ in range(2):
        await take_away(backend.store, name)
        await walk(guest, name, DOWN[1])
        for path in (name.frontend, name.backend):
            await backend.store.rm(path)
        await gone(backend, name)
        guest = another_kernel(guest)
        assert await add(backend.store, guest.domid) == name
        await guest.connect()
        await exchange(guest, network)


@pytest.mark.parametrize("running", [False, True], ids=["saved", "migrated on one host"])
async def test_a_guest_returns_with_another_domid(
    xen: Path, network: PythonNetwork, monkeypatch: pytest.MonkeyPatch, running: bool
) -> None:
    """The configuration names the guest: its network follows it. A guest that migrates on one host exists twice, the
    second one as NAME--incoming; it gets the network when the first one gives it up.
    """
    monkeypatch.setattr("netback.xenbus.pace.RETRY_SECONDS", (3600.0,))
    rule, networks = DeviceRule(net="tap:web", guest="web"), {"tap:web": network}
    async with AsyncExitStack() as undo:
        backend = await undo.enter_async_context(serving(xen, network, networks, rules=(rule,)))
        store = await undo.enter_async_context(await Store.connect(xen / "xenstored.sock"))
        first = await undo.enter_async_context(AsyncExitStack())
        old = await first.enter_async_context(join(xen, domid=1))
        await store.write("/local/domain/1/name", "web")
        left = await add(store, 1, net=None)
        await old.connect()
        await exchange(old, network)
        if not running:
            await first.aclose()
            await until_state(store, left.backend, State.CLOSED)
        new = await undo.enter_async_context(join(xen, domid=2))
        await store.write("/local/domain/2/name", "web--incoming" if running else "web")
        come = await add(store, 2, net=None)
        if running:
            await until(store, f"{come.errors}/error", bool)
            await exchange(old, network)
            await store.write("/local/domain/2/name", "web")
            await first.aclose()
            await until_state(store, left.backend, State.CLOSED)
        await take_away(store, left)
        async with asyncio.timeout(SECONDS):
            await new.connect()
            await exchange(new, network)
        assert backend.devices[come].error == ""


# ---- half torn


@pytest.mark.parametrize("missing", SUBSETS, ids=",".join)
async def test_a_frontend_that_lacks_keys(
    backend: Backend, guest: Guest, network: PythonNetwork, missing: tuple[str, ...]
) -> None:
    """The reason names one of them; with all keys it connects."""
    name = await add(backend.store, guest.domid)
    await guest.connect(wait=False, **dict.fromkeys(key.replace("-", "_") for key in missing))
    await until_state(guest.store, name.backend, State.CLOSING)
    assert any(f"the frontend's {key} is missing" in backend.devices[name].error for key in missing)
    await walk(guest, name, DOWN[1], AGAIN)
    await guest.connect()
    await exchange(guest, network)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("seed", range(4))
async def test_keys_that_vanish_from_a_connected_frontend(
    xen: Path, guest: Guest, network: PythonNetwork, restart: bool, seed: int
) -> None:
    """They were read at the connect: nothing happens. The next backend needs them, and says which is missing."""
    rng = random.Random(seed)
    removed = rng.sample(KEYS + FEATURES, rng.randint(1, len(KEYS + FEATURES)))
    async with serving(xen, network) as backend:
        name = await add(backend.store, guest.domid)
        await guest.connect()
        for key in removed:
            await guest.store.rm(f"{guest.path}/{key}")
            await exchange(guest, network)
        if not restart:
            await guest.set_state(State.CONNECTED)
            await looked(backend, backend.devices[name], State.CONNECTED)
            await exchange(guest, network)
            await walk(guest, name, *DOWN, AGAIN)
            await guest.connect()
            await exchange(guest, network)
            return
    async with serving(xen, network) as backend:
        if lacking := [key for key in removed if key in KEYS]:
            await until_state(guest.store, name.backend, State.CLOSING)
            assert any(key in backend.devices[name].error for key in lacking)
            await walk(guest, name, DOWN[1], AGAIN)
            await guest.connect()
        await exchange(guest, network)


@pytest.mark.parametrize("seed", range(6))
async def test_a_frontend_directory_that_goes_node_by_node(
    backend: Backend,
    guest: Guest,
    network: PythonNetwork,
    seed: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In any order, states in between: the device ends Closed without a traceback, and a new one works."""
    rng = random.Random(seed)
    caplog.set_level(logging.WARNING)
    name = await add(backend.store, guest.domid)
    await guest.connect()
    nodes = await guest.store.directory(guest.path)
    rng.shuffle(nodes)
    for node in nodes:
        await backend.store.rm(f"{guest.path}/{node}", missing_ok=True)
        if rng.random() < 0.3:
            await backend.store.write(f"{guest.path}/state", str(rng.choice((1, 4, 5, 6))))
    await backend.store.rm(guest.path)
    await until_state(backend.store, name.backend, State.CLOSED)
    assert unmapped(guest)
    await take_away(backend.store, name)
    await gone(backend, name)
    await backend.store.rm(name.backend)
    assert await add(backend.store, guest.domid) == name
    new = another_kernel(guest)
    await new.connect()
    await exchange(new, network)
    assert not [record for record in caplog.records if record.exc_info]


# ---- ways to close


async def test_windows_close_cycle(backend: Backend, guest: Guest, network: PythonNetwork) -> None:
    """Its xenvif reacts to the backend's state: Connected or InitWait gets Closing, Closing gets Closed, Closed gets
    Initialising. It closes a device that it finds Connected before it connects, and one that is only offered as well.
    """
    name = await add(backend.store, guest.domid)
    await guest.backend()
    await until_state(guest.store, name.backend, State.INIT_WAIT)
    await walk(guest, name, *DOWN, AGAIN)
    for _ in range(2):
        await guest.connect()
        await exchange(guest, network)
        await walk(guest, name, DOWN[0])
        assert unmapped(guest)
        await walk(guest, name, DOWN[1], AGAIN)
    await walk(guest, name, *DOWN)
    assert await backend.store.read(f"{name.backend}/online") == "1"
    assert await backend.store.read(f"{name.backend}/feature-rx-copy") == "1"


@pytest.mark.parametrize("offline", [False, True])
async def test_straight_to_closed_and_back(
    backend: Backend, guest: Guest, network: PythonNetwork, offline: bool
) -> None:
    """Qubes detaches so: without Closing. The toolstack may take the device in the same moment."""
    name = await add(backend.store, guest.domid)
    for _ in range(2):
        await guest.connect()
        await exchange(guest, network)
        await walk(guest, name, DOWN[1])
        assert unmapped(guest)
        await walk(guest, name, AGAIN)
    await guest.connect()
    if offline:
        await backend.store.write(f"{name.backend}/online", "0")
        await guest.set_state(State.CLOSED)
        await until_state(guest.store, name.backend, State.CLOSED)
        await gone(backend, name)
    else:
        await exchange(guest, network)
    assert await backend.store.read(f"{name.frontend}/mac") == MAC
