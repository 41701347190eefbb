# SPDX-License-Identifier: Apache-2.0
"""A simple frontend: a domain of emulated Xen whose nodes, rings and slots a test writes itself."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from netback.abi.netif import RX_REQUEST, RX_RESPONSE, RX_SLOT, TX_REQUEST, TX_RESPONSE, TX_SLOT
from netback.abi.ring import HEADER_SIZE, PAGE_SIZE, SRING
from netback.abi.xenbus import XenbusState as State
from netback.daemon import Backend, BackendConfig
from netback.net.base import Network, NetworkFactory
from netback.net.python import PythonNetwork
from netback.platforms.emulated import EmulatedDomain, EmulatedPlatform
from netback.xenstore.aio import Store, StoreError

FRAME = bytes(range(60))

SECONDS = 60.0
"""Seconds that bound every wait of a test."""


async def until(store: Store, path: str, true: Callable[[str | None], bool]) -> str | None:
    """Wait for a node's value."""
    value: str | None = None
    try:
        async with asyncio.timeout(SECONDS), await store.watch(path) as watch:
            async for _ in watch:
                value = await store.read_or(path)
                if true(value):
                    return value
    except TimeoutError:
        raise AssertionError(f"{path} stays {value!r}") from None
    return None


async def until_state(store: Store, path: str, state: State) -> None:
    await until(store, f"{path}/state", lambda value: value == str(int(state)))


async def readable(fd: int) -> None:
    """Wait until a descriptor can be read."""
    loop = asyncio.get_running_loop()
    news = asyncio.Event()
    loop.add_reader(fd, news.set)
    try:
        await news.wait()
    finally:
        loop.remove_reader(fd)


class Ring:
    """One shared ring as its frontend sees it."""

    def __init__(self, guest: EmulatedDomain, backend: int) -> None:
        self.page = guest.alloc_page()
        self.view = guest.view(self.page.frame)
        SRING.pack_into(self.view, 0, 0, 1, 0, 1)
        self.gref = guest.grant(self.page, backend)

    def index(self, at: int, value: int | None = None) -> int:
        """req_prod, req_event, rsp_prod, rsp_event by number; set where a value is given."""
        word = self.view[4 * at : 4 * at + 4]
        if value is not None:
            word[:] = (value % 2**32).to_bytes(4, "little")
        return int.from_bytes(word, "little")

    def slot(self, index: int, size: int) -> memoryview:
        at = HEADER_SIZE + (index % 256) * size
        return self.view[at : at + size]


class Guest:
    """A guest with one NIC."""

    def __init__(self, domain: EmulatedDomain, store: Store, index: int = 0, backend: int = 0) -> None:
        self.domain, self.store = domain, store
        self.domid, self.backend_domid = domain.domid, backend
        self.path = f"/local/domain/{self.domid}/device/vif/{index}"
        self.tx, self.rx = Ring(domain, backend), Ring(domain, backend)
        self.port = 0
        self.scratch = domain.alloc_page().frame * PAGE_SIZE
        self.pages = [domain.alloc_page() for _ in range(8)]
        self.grefs = [domain.grant(page, backend) for page in self.pages]

    @property
    def keys(self) -> dict[str, str]:
        return {
            "tx-ring-ref": str(self.tx.gref),
            "rx-ring-ref": str(self.rx.gref),
            "event-channel": str(self.port),
            "request-rx-copy": "1",
            "feature-rx-notify": "1",
            "feature-sg": "1",
        }

    async def backend(self) -> str:
        """The backend's path, once it is written."""
        path = await until(self.store, f"{self.path}/backend", bool)
        assert path
        return path

    async def connect(self, *, wait: bool = True, **changes: str | None) -> None:
        """The frontend's half of the handshake; `changes` replace keys, None leaves one out."""
        backend = await self.backend()
        await until_state(self.store, backend, State.INIT_WAIT)
        await self.say(**changes)
        if wait:
            await until_state(self.store, backend, State.CONNECTED)

    async def say(self, state: State = State.CONNECTED, **changes: str | None) -> None:
        """Write keys, then the state."""
        if not self.port:
            self.port = self.domain.events.alloc_unbound(self.backend_domid)
        keys = self.keys | {name.replace("_", "-"): value for name, value in changes.items()}

        async def body(tx: int) -> None:
            for name, value in keys.items():
                if value is not None:
                    await self.store.write(f"{self.path}/{name}", value, tx)
                else:
                    await self.store.rm(f"{self.path}/{name}", tx, missing_ok=True)
            await self.store.write(f"{self.path}/state", str(int(state)), tx)

        await self.store.transact(body)

    async def set_state(self, state: State) -> None:
        await self.store.write(f"{self.path}/state", str(int(state)))

    # ---- frames

    def kick(self) -> None:
        self.domain.events.native.notify(self.port)

    def send(self, frame: bytes, page: int = 0) -> int:
        """Put a one-slot frame on the TX ring; returns its slot's index."""
        view = self.domain.view(self.pages[page].frame)
        view[: len(frame)] = frame
        index = self.tx.index(0)
        TX_REQUEST.pack_into(self.tx.slot(index, TX_SLOT), 0, self.grefs[page], 0, 0, index % 256, len(frame))
        self.tx.index(0, index + 1)
        self.kick()
        return index

    async def responses(self, ring: Ring, index: int) -> None:
        """Wait until the slot of `index` is answered, after asking for a notification of just that."""
        async with asyncio.timeout(SECONDS):
            while True:
                ring.index(3, index + 1)
                self.domain.memory.words.set64(self.scratch, 0)  # a full fence: an atomic read-modify-write
                if (ring.index(2) - index - 1) % 2**32 < 2**31:
                    return
                await readable(self.domain.events.native.fd)
                for port in self.domain.events.native.take():
                    self.domain.events.native.unmask(port)

    async def answer(self, index: int) -> int:
        """The status of a TX response."""
        await self.responses(self.tx, index)
        _, status = TX_RESPONSE.unpack(self.tx.slot(index, TX_SLOT))
        return int(status)

    def post(self, page: int = 4) -> int:
        """Offer a page for RX; returns its slot's index."""
        index = self.rx.index(0)
        RX_REQUEST.pack_into(self.rx.slot(index, RX_SLOT), 0, index % 256, 0, self.grefs[page])
        self.rx.index(0, index + 1)
        self.kick()
        return index

    async def receive(self, index: int, page: int = 4) -> tuple[int, bytes]:
        """Offset and bytes of the frame in an RX slot."""
        await self.responses(self.rx, index)
        _, offset, _, status = RX_RESPONSE.unpack(self.rx.slot(index, RX_SLOT))
        return offset, bytes(self.domain.view(self.pages[page].frame)[offset : offset + max(status, 0)])


@asynccontextmanager
async def join(
    directory: Path, *, index: int = 0, backend: int = 0, domid: int | None = None
) -> AsyncIterator[Guest]:
    """A guest that exists as long as the context."""
    with EmulatedDomain.join(directory, domid=domid, pages=64, grant_pages=1) as domain:
        store = await domain.open_store()
        try:
            yield Guest(domain, store, index, backend)
        finally:
            with suppress(StoreError):
                await store.close()


@asynccontextmanager
async def serving(
    directory: Path,
    network: PythonNetwork,
    networks: Mapping[str, Network | NetworkFactory] | None = None,
    **config: Any,
) -> AsyncIterator[Backend]:
    """A backend whose devices may name `network` as "python:lan", and `networks` by their specs."""
    known = {"python:lan": network, **(networks or {})}
    settings = BackendConfig(directory, networks=known, workers=1, **config)
    with EmulatedPlatform(directory) as platform:
        async with Backend(platform, settings) as backend:
            yield backend


async def exchange(guest: Guest, network: PythonNetwork, offset: int = 0) -> None:
    """Pass a frame each way."""
    slot = guest.send(FRAME)
    assert await network.recv() == FRAME
    assert await guest.answer(slot) == 0
    slot = guest.post()
    await network.send(FRAME[::-1])
    assert await guest.receive(slot) == (offset, FRAME[::-1])
