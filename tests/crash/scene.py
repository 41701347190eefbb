# SPDX-License-Identifier: Apache-2.0
"""Guests whose backend is killed: real frontends in this process, sockets as their hosts, backends from launcher.py."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from netback.abi.xenbus import XenbusState
from netback.frontend import FrontConfig, Frontend
from netback.net.buffers import BURSTS, make_room
from netback.net.python import PythonNetwork
from netback.platforms.emulated.protocol import PortState
from netback.vif.features import DeviceType
from netback.xenbus.attach import attach as attach_nic
from netback.xenstore.aio import Store
from tests.crash.launcher import INHERITED
from tests.crash.lives import SECONDS, Lives, launcher, until
from tests.crash.load import Flow

LINUX = FrontConfig()
KINDS: tuple[DeviceType, ...] = ("vif", "qnic")
"""Of the first guest's device, the second's, and so on: frames begin at another offset."""


@dataclass
class GuestVif:
    """A guest's vif, and what goes through it each way."""

    frontend: Frontend
    tx: Flow
    rx: Flow
    states: list[tuple[str, XenbusState]]

    def is_bound(self) -> bool:
        """Whether a backend is at the other end of its port."""
        assert self.frontend.rings is not None
        status = self.frontend.guest.domain.events.status(self.frontend.rings.port)
        return status is PortState.INTERDOMAIN

    @property
    def blocked(self) -> tuple[bool, bool]:
        """As its queue has it: the guest takes no more, slots lack."""
        assert self.frontend.queue is not None
        return self.frontend.queue.blocked

    async def answered(self) -> None:
        """Wait until every TX request has its response; a backend that dies before it sends the frame again."""
        await until(self.has_answers)

    def has_answers(self) -> bool:
        """Whether the backend's rsp_prod has reached the guest's req_prod."""
        assert self.frontend.queue is not None
        ring = self.frontend.queue.rings["tx"]
        return ring["rsp_prod"] == ring["req_prod"]

    def check(self) -> None:
        """Nothing wrong was received, no response was wrong, no state was left."""
        self.tx.check()
        self.rx.check()
        assert self.frontend.broken is None, self.frontend.broken
        assert self.states == [], "a state was left"


@dataclass
class Scene:
    """Guests and their backend's lives."""

    directory: Path
    lives: Lives
    vifs: list[GuestVif] = field(default_factory=list)

    @property
    def flows(self) -> list[Flow]:
        return [flow for vif in self.vifs for flow in (vif.tx, vif.rx)]

    def check(self) -> None:
        for vif in self.vifs:
            vif.check()

    async def goes_on(self, frames: int = 20) -> None:
        """Until so many more frames came each way: no vif stands still."""
        targets = [(flow, flow.received + frames) for flow in self.flows]
        await asyncio.gather(*(flow.arrived(target, SECONDS) for flow, target in targets))

    async def adopted(self) -> None:
        """Until a backend has every guest's port: from then on nothing is between them but rings."""
        for vif in self.vifs:
            await until(vif.is_bound)

    async def stop_sending(self) -> None:
        """No more load, and what is under way arrives: the last frame of each flow is on its way without a kill."""
        for flow in self.flows:
            flow.run(False)
        for flow in self.flows:
            flow.send(1)
            await flow.caught_up(SECONDS)


def host_socket() -> tuple[socket.socket, socket.socket]:
    """A host's end, and the one that backends inherit."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
        make_room(end, BURSTS, BURSTS)
    return ends


async def attach(directory: Path, domid: int, net: str, kind: DeviceType = "vif") -> None:
    """The operator gives a guest its device."""
    async with await Store.connect(directory / "xenstored.sock") as store:
        await attach_nic(store, domid, net, kind=kind)


@asynccontextmanager
async def scene(directory: Path, configs: Sequence[FrontConfig] = (LINUX,)) -> AsyncIterator[Scene]:
    """A connected guest for each config, and a backend that has never been killed yet."""
    async with AsyncExitStack() as undo:
        hosts = [host_socket() for _ in configs]
        for end in (end for pair in hosts for end in pair):
            undo.enter_context(end)
        lives = undo.enter_context(launcher(directory, [near.fileno() for _, near in hosts]))
        made = Scene(directory, lives)
        lives.start()
        for number, (config, (far, near)) in enumerate(zip(configs, hosts, strict=True)):
            made.vifs.append(
                await _connect(directory, config, number, far, f"{INHERITED}{near.fileno()}", undo)
            )
        for flow in made.flows:
            lives.on_kill.append(flow.killed)
            undo.callback(flow.close)
        yield made
        made.check()


async def _connect(
    directory: Path, config: FrontConfig, number: int, far: socket.socket, net: str, undo: AsyncExitStack
) -> GuestVif:
    states: list[tuple[str, XenbusState]] = []
    frontend = Frontend(directory, config=config, on_state=lambda side, state: states.append((side, state)))
    await undo.enter_async_context(frontend)
    await attach(directory, frontend.guest.domid, net, KINDS[number % 2])
    async with asyncio.timeout(SECONDS):
        await frontend.connected()
    assert isinstance(frontend.network, PythonNetwork)
    near = frontend.network.socket
    states.clear()
    tx = Flow(2 * number, config, near, far, repeats=True)
    rx = Flow(2 * number + 1, config, far, near, repeats=False)
    return GuestVif(frontend, tx, rx, states)
