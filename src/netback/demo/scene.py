# SPDX-License-Identifier: Apache-2.0
"""The processes of a demo on their places: emulated Xen, two stacks, a backend beside one, a netfront beside the other.

Knows who is where. What happens between them is in story.py.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from netback.demo.processes import Child
from netback.demo.report import Step
from netback.demo.tiers import DOMID, GUEST_MAC, Side, Stage
from netback.demo.toolstack import Timeline, plug
from netback.platforms.emulated.protocol import STORE_SOCKET
from netback.xenbus.names import DeviceName
from netback.xenstore.aio import Store

DEVICE = DeviceName("vif", 0, DOMID, "0")


@dataclass(slots=True)
class Scene:
    """Everything that runs."""

    stage: Stage
    directory: Path
    undo: ExitStack
    store: Store
    backend: Child
    netfront: Child
    timeline: Timeline = field(init=False)

    @property
    def host(self) -> Side:
        return self.stage.host

    @property
    def guest(self) -> Side:
        return self.stage.guest

    def start_backend(self) -> None:
        """One that knows nothing but the directory and its configuration."""
        self.backend = start_backend(self.stage.host, self.directory, self.undo)


def start_xen(directory: Path, undo: ExitStack) -> Child:
    """An emulated Xen in `directory`/xen."""
    xen = Child("xen", {"directory": str(directory / "xen")}, log=directory / "xen.log")
    undo.callback(xen.kill)
    return xen


def start_backend(host: Side, directory: Path, undo: ExitStack) -> Child:
    backend = Child(
        "backend",
        {"directory": str(directory / "xen"), "net": host.net},
        log=directory / "backend.log",
        place=host.place,
        fds=host.fds,
    )
    undo.callback(backend.kill)
    return backend


def start_netfront(guest: Side, directory: Path, undo: ExitStack, *, cable: bool) -> Child:
    netfront = Child(
        "netfront",
        {"directory": str(directory / "xen"), "net": guest.net, "domid": DOMID, "cable": cable},
        log=directory / "netfront.log",
        place=guest.place,
        fds=guest.fds,
    )
    undo.callback(netfront.kill)
    return netfront


@asynccontextmanager
async def set_scene(
    stage: Stage, xen: Child, directory: Path, undo: ExitStack, *, cable: bool, told: Callable[[Step], None]
) -> AsyncIterator[Scene]:
    """From two stacks that cannot reach each other to two that can; `told` of each step of the handshake.

    With `cable` the guest's frames go by a LossyCable.
    """
    await xen.ready()
    async with AsyncExitStack() as after:
        store = await Store.connect(directory / "xen" / STORE_SOCKET)
        after.push_async_callback(store.close)
        backend = start_backend(stage.host, directory, undo)
        netfront = start_netfront(stage.guest, directory, undo, cable=cable)
        scene = Scene(stage, directory, undo, store, backend, netfront)
        scene.timeline = Timeline(store, DEVICE, told)
        after.push_async_callback(_end, asyncio.create_task(scene.timeline.follow()))
        await backend.ready()
        await netfront.ready()
        await plug(store, DEVICE, stage.host.net, GUEST_MAC)
        await netfront.call("connected")
        yield scene


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(
        task, return_exceptions=True
    )  # a store that is gone is told by whoever else needs it
