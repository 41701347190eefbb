# SPDX-License-Identifier: Apache-2.0
"""The processes of a demo: emulated Xen, a backend beside the host's stack, a netfront beside the guest's.

Starts them, writes the device's nodes as a toolstack does, and follows the states of its two ends.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netback.abi.xenbus import XenbusState as State
from netback.demo.child import Child
from netback.demo.processes import BACKEND
from netback.demo.report import Step
from netback.demo.tiers import GUEST, Side, Stage
from netback.platforms.emulated.protocol import STORE_SOCKET
from netback.xenbus.names import DeviceName
from netback.xenbus.nodes import write_device
from netback.xenstore.aio import Store

DOMID = 1
DEVICE = DeviceName("vif", 0, DOMID, "0")
TITLES = {str(int(state)): state.title for state in State}


@dataclass(slots=True)
class Topology:
    """Every running process. `timeline` grows with each change of a state."""

    stage: Stage
    directory: Path
    undo: ExitStack
    backend: Child
    netfront: Child
    timeline: list[Step]

    @property
    def host(self) -> Side:
        return self.stage.host

    @property
    def guest(self) -> Side:
        return self.stage.guest

    @property
    def backend_directory(self) -> Path:
        """The backend's runtime directory."""
        return self.directory / "xen" / BACKEND

    def start_backend(self) -> None:
        """Start another backend in place of the killed one."""
        self.backend = start_backend(self.stage, self.directory, self.undo)


def start(
    role: str, directory: Path, undo: ExitStack, side: Side | None = None, **arguments: object
) -> Child:
    """Start a process that uses the emulated Xen in `directory`/xen, beside the stack of `side`."""
    arguments |= {"directory": str(directory / "xen"), **({"net": side.net} if side else {})}
    place, fds = (side.place, side.fds) if side else ({}, ())
    child = Child(role, arguments, log=directory / f"{role}.log", place=place, fds=fds)
    undo.callback(child.kill)
    return child


def start_backend(stage: Stage, directory: Path, undo: ExitStack) -> Child:
    """The backend gets the directory and its network, and nothing of an earlier backend."""
    return start("backend", directory, undo, stage.host)


@asynccontextmanager
async def build(
    stage: Stage, xen: Child, directory: Path, undo: ExitStack, *, cable: bool, show: Callable[[Step], None]
) -> AsyncIterator[Topology]:
    """Join the two stacks by a vif; `show` is called with each step of the handshake.

    With `cable` the guest's frames pass a LossyCable.
    """
    await xen.ready()
    async with AsyncExitStack() as after:
        store = await Store.connect(directory / "xen" / STORE_SOCKET)
        after.push_async_callback(store.close)
        backend = start_backend(stage, directory, undo)
        netfront = start("netfront", directory, undo, stage.guest, domid=DOMID, cable=cable)
        timeline = Timeline(show)
        topology = Topology(stage, directory, undo, backend, netfront, timeline.steps)
        following = asyncio.create_task(follow_states(store, timeline))
        after.push_async_callback(end_task, following)
        await backend.ready()
        await netfront.ready()
        timeline.add(State.INITIALISING.title, State.INITIALISING.title)  # as `attach` writes them
        await attach(store, stage.host.net)
        await netfront.call("connected")
        yield topology


async def end_task(task: "asyncio.Future[Any]") -> None:
    """Cancel it and retrieve its exception, which asyncio would log: a store that is gone also fails everything else
    that needs it.
    """
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def attach(store: Store, net: str) -> None:
    """Write both directories as `xl` does, in one transaction; each end starts in Initialising."""
    common = {"mac": GUEST.mac, "state": str(int(State.INITIALISING))}
    frontend = {"backend": DEVICE.backend, "backend-id": str(DEVICE.backend_domid), **common}
    backend = {"frontend": DEVICE.frontend, "frontend-id": str(DOMID), "online": "1", "net": net, **common}
    await store.transact(lambda tx: write_device(store, DEVICE, frontend, backend, tx))


class Timeline:
    """The states of both ends, one step for each change; `show` is called with it."""

    def __init__(self, show: Callable[[Step], None]) -> None:
        self.steps: list[Step] = []
        self._show = show
        self._began = 0.0

    def add(self, backend: str, frontend: str) -> None:
        """Append a step, unless it repeats the last one."""
        if self.steps and (self.steps[-1].backend, self.steps[-1].frontend) == (backend, frontend):
            return
        self._began = self._began or time.monotonic()
        self.steps.append(Step((time.monotonic() - self._began) * 1000, backend, frontend))
        self._show(self.steps[-1])


async def follow_states(store: Store, timeline: Timeline) -> None:
    """Add both ends' states to the timeline whenever one of them changes, until cancelled.

    Each event reads both states at once, without waiting for earlier reads: this misses the fewest short states and
    never records a pair that did not exist.
    """
    paths = (f"{DEVICE.backend}/state", f"{DEVICE.frontend}/state")
    reads: asyncio.Queue[asyncio.Future[list[str | None]]] = asyncio.Queue()

    async def watch(path: str) -> None:
        async with await store.watch(path) as events:
            async for _ in events:
                read = asyncio.gather(*map(store.read_or, paths))
                read.add_done_callback(lambda read: read.cancelled() or read.exception())
                reads.put_nowait(read)

    async with asyncio.TaskGroup() as tasks:
        for path in paths:
            tasks.create_task(watch(path))
        while True:
            backend, frontend = (TITLES.get(state or "", "") for state in await (await reads.get()))
            if backend and frontend:
                timeline.add(backend, frontend)
