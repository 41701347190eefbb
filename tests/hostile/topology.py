# SPDX-License-Identifier: Apache-2.0
"""A backend with two guests: a hostile one that a test drives, and an honest one whose frames must pass.

One worker thread serves both. At the end of every test the honest guest still passes frames both ways, the log is short
and has no traceback, and no descriptor or mapping is left.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from netback.abi.netif import TX_REQUEST, Status
from netback.abi.xenbus import XenbusState as State
from netback.daemon import Backend, BackendConfig
from netback.dataplane.front.queue import RingPage
from netback.frontend import Frontend, GrantedPage, Guest, Script
from netback.net.python import PythonNetwork
from netback.observe.choice import RecordMode
from netback.platforms.emulated import EmulatedPlatform
from netback.platforms.emulated.protocol import STORE_SOCKET
from netback.vif.features import WaitTimes
from netback.vif.vif import Vif
from netback.xenbus.names import DeviceName
from netback.xenstore.aio import Store

QUEUES = 4
"""As many as each vif is offered, whatever the machine has."""
PATIENT = WaitTimes(drain=3600, stall=3600)
"""No frame expires because the machine is slow."""
SECONDS = 60.0
"""Seconds that a required event may take."""
LINES = 20
"""Lines that one topology may log: a vif's budget of ten, and a few more."""


BUDGET = 10
"""Log lines of one vif in ten seconds; further ones are only counted."""


def frame(seed: int, length: int = 60) -> bytes:
    """An Ethernet frame of a protocol that netback does not parse."""
    body = b"".join(((seed + i) & 0xFFFFFFFF).to_bytes(4, "big") for i in range(length // 4))
    return (bytes.fromhex("00163e00000200163e00000188b5") + body)[:length]


@dataclass
class Topology:
    """Backend, guests and networks."""

    directory: Path
    backend: Backend
    far: PythonNetwork
    """The network behind the hostile guest's vif."""
    good: Frontend
    good_far: PythonNetwork
    caplog: pytest.LogCaptureFixture
    sent: int = 0
    bad: Script = field(init=False)
    name: DeviceName = field(init=False)
    """The hostile guest's device."""

    @asynccontextmanager
    async def bad_life(self) -> AsyncIterator[None]:
        """Create a hostile guest with a device; end it at the exit."""
        async with Guest(self.directory, name="bad") as guest, Script(guest) as self.bad:
            self.name = await self.backend.attach(guest.domid, "python:bad")
            yield
        del self.bad, guest

    @property
    def vif(self) -> Vif:
        """The backend's vif of the hostile guest."""
        vif = self.backend.devices[self.name].vif
        assert vif is not None
        return vif

    async def counters(self) -> dict[str, int]:
        """The hostile guest's counters after the worker's burst: a burst updates them after it delivered."""
        await self.backend.respond()
        return self.vif.counters

    @property
    def warnings(self) -> list[str]:
        return [record.getMessage() for record in self.caplog.records if record.levelno >= logging.WARNING]

    # ---- the honest guest

    async def others_pass(self, count: int = 8) -> None:
        """Pass the honest guest's frames both ways; they must arrive in order and unchanged."""
        async with asyncio.timeout(SECONDS):
            for _ in range(count):
                self.sent += 1
                message = frame(self.sent, 60 + self.sent % 1400)
                await near(self.good).send(message)
                assert await self.good_far.recv() == message
                await self.good_far.send(message)
                assert await near(self.good).recv() == message

    # ---- the hostile guest

    async def connect(self, **keys: str) -> None:
        """Connect as an honest frontend does."""
        async with asyncio.timeout(SECONDS):
            await self.bad.offered()
            await self.bad.connect(**keys)

    async def say(self, **keys: str | None) -> None:
        """Write an honest frontend's keys, some replaced or left out, and Connected; wait for nothing."""
        nodes: dict[str, str | None] = {**self.bad.nodes}
        nodes |= {key.replace("_", "-"): value for key, value in keys.items()}
        for key, value in nodes.items():
            await (self.bad.remove(key) if value is None else self.bad.write(key, value))
        await self.bad.set_state(State.CONNECTED)

    async def state(self, state: State) -> None:
        """Wait until the backend's state is this one."""
        async with asyncio.timeout(SECONDS):
            await self.bad.backend(state)

    async def closes(self, reason: str | tuple[str, ...]) -> None:
        """Check that this vif ended, with a reason in the error node and in the log, and that its guest has its rings
        back.
        """
        await self.state(State.CLOSING)
        error = await self.backend.store.read(f"{self.name.errors}/error")
        assert error.startswith(reason)
        assert f"{self.name}: {error}" in self.warnings or len(self.warnings) >= BUDGET
        domain = self.bad.guest.domain
        assert not any(domain.still_in_use(ring.gref) for ring in (self.bad.rings.tx, self.bad.rings.rx))

    async def comes_back(self) -> None:
        """Restart a frontend that closed, and check that it works: its earlier actions had no lasting effect."""
        for state, answer in ((State.CLOSED, State.CLOSED), (State.INITIALISING, State.INIT_WAIT)):
            await self.bad.set_state(state)
            await self.state(answer)
        await self.bad.open_rings()
        async with asyncio.timeout(SECONDS):
            await self.bad.connect()
        await self.works()

    async def works(self) -> None:
        """Check that a valid frame of the hostile guest is answered OKAY and arrives."""
        message = frame(self.sent)
        at = self.bad.tx.req_prod
        page = self.bad.grant(message)
        self.bad.post(self.bad.tx, tx(page, len(message), number=at))
        assert await self.answers(at, 1) == [(at & 0xFFFF, Status.OKAY)]
        async with asyncio.timeout(SECONDS):
            assert await self.far.recv() == message

    async def answers(self, first: int, count: int, ring: RingPage | None = None) -> list[tuple[int, ...]]:
        """Wait for the responses from slot `first` on and return them."""
        ring = ring or self.bad.tx
        async with asyncio.timeout(SECONDS):
            await self.bad.answered(ring, first + count)
        return self.bad.answers(ring, first, count)

    # ---- waiting

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `true` holds; each request to the store lets the backend run."""
        assert await until(self.backend.store, condition)


async def until(store: Store, condition: Callable[[], bool]) -> bool:
    """Test a condition between requests to the store, which let the other tasks of this process run."""
    end = asyncio.get_running_loop().time() + SECONDS
    while not (holds := condition()) and asyncio.get_running_loop().time() < end:
        await store.read("/local/domain/0/name")
    return holds


def tx(
    page: GrantedPage, size: int, *, offset: int = 0, flags: int = 0, number: int = 0, gref: int | None = None
) -> bytes:
    """One TX request."""
    return TX_REQUEST.pack(page.gref if gref is None else gref, offset, flags, number & 0xFFFF, size)


def near(vif: Frontend) -> PythonNetwork:
    """The guest's end of its vif."""
    assert isinstance(vif.network, PythonNetwork)
    return vif.network


def holdings() -> Counter[str]:
    """Descriptors and mappings of this process, by kind, including the emulated hypervisor's thread and every guest.

    Of mappings only guests' memory counts: the allocator's vary.
    """
    held = Counter[str]()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor that reads this directory
            held["open " + str(entry.readlink()).partition(":[")[0]] += 1
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "memfd:" in line:
            held["mapped " + line.split(maxsplit=5)[5]] += 1
    return held


def resident() -> int:
    """Resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@asynccontextmanager
async def nothing_left(directory: Path) -> AsyncIterator[None]:
    """Wait until everything opened and mapped since is released; the hypervisor and the backend get time to do so."""
    async with await Store.connect(directory / STORE_SOCKET) as store:
        await store.read("/local/domain/0/name")  # the far end has accepted the connection
        gc.collect()
        before = holdings()
        yield
        gc.collect()  # a guest's worker closes its descriptors when its last reference is dropped
        await until(store, lambda: holdings() == before)
        assert holdings() == before


@asynccontextmanager
async def hostile(
    directory: Path, caplog: pytest.LogCaptureFixture, record: RecordMode = "off"
) -> AsyncIterator[Topology]:
    """Both guests attached, the honest one connected, the hostile one idle; `record`: whether they are recorded."""
    caplog.set_level(logging.INFO)
    networks = {name: PythonNetwork(name) for name in ("python:bad", "python:good", "guest")}
    config = BackendConfig(
        directory, networks=networks, workers=1, queues=QUEUES, times=PATIENT, record=record
    )
    with ExitStack() as undo:
        for network in networks.values():
            undo.callback(network.remove)
        platform = undo.enter_context(EmulatedPlatform(directory))
        async with (
            Backend(platform, config) as backend,
            Frontend(directory, networks["guest"], name="good") as good,
        ):
            await backend.attach(good.guest.domid, "python:good")
            async with asyncio.timeout(SECONDS):
                await good.connected()
            topology = Topology(
                directory, backend, networks["python:bad"], good, networks["python:good"], caplog
            )
            await topology.others_pass()
            async with nothing_left(directory), topology.bad_life():
                yield topology
                await topology.others_pass()
            await topology.others_pass()
            calm(caplog)


def calm(caplog: pytest.LogCaptureFixture, lines: int = LINES) -> None:
    """Check that the log has no traceback, nothing above a warning, and few warnings."""
    assert not [record for record in caplog.records if record.exc_info or record.levelno > logging.WARNING]
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) <= lines
