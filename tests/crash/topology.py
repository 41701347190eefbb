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
from tests.crash.load import Flow
from tests.crash.respawn import SECONDS, Respawner, launcher, until

LINUX = FrontConfig()
KINDS: tuple[DeviceType, ...] = ("vif", "qnic")
"""Guests get these kinds in turn."""


@dataclass
class GuestVif:
    """A guest's vif, and the flow through it in each direction."""

    frontend: Frontend
    tx: Flow
    rx: Flow
    states: list[tuple[str, XenbusState]]

    def is_bound(self) -> bool:
        """Whether a backend has bound the guest's ports."""
        rings, events = self.frontend.rings, self.frontend.guest.domain.events
        assert rings is not None
        return all(events.status(port) is PortState.INTERDOMAIN for port in (rings.tx_port, rings.rx_port))

    @property
    def blocked(self) -> tuple[bool, bool]:
        """Whether each direction of the guest's queue waits: for its network, for slots."""
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
        """No wrong frame, no wrong response, no change of a state."""
        self.tx.check()
        self.rx.check()
        assert self.frontend.broken is None, self.frontend.broken
        assert self.states == [], "a state changed"


@dataclass
class Topology:
    """Guests and their backend's backends."""

    directory: Path
    backends: Respawner
    vifs: list[GuestVif] = field(default_factory=list)

    @property
    def flows(self) -> list[Flow]:
        return [flow for vif in self.vifs for flow in (vif.tx, vif.rx)]

    def check(self) -> None:
        for vif in self.vifs:
            vif.check()

    async def goes_on(self, frames: int = 20) -> None:
        """Wait until so many more frames have come each way through every vif."""
        targets = [(flow, flow.received + frames) for flow in self.flows]
        await asyncio.gather(*(flow.arrived(target, SECONDS) for flow, target in targets))

    async def adopted(self) -> None:
        """Wait until a backend has bound every guest's port."""
        for vif in self.vifs:
            await until(vif.is_bound)

    async def stop_sending(self) -> None:
        """Stop the load, and wait for one last frame of each flow."""
        for flow in self.flows:
            flow.run(False)
        for flow in self.flows:
            flow.send(1)
            await flow.caught_up(SECONDS)


def host_socket() -> tuple[socket.socket, socket.socket]:
    """The host's end, and the end that backends inherit."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
        make_room(end, BURSTS, BURSTS)
    return ends


async def attach(directory: Path, domid: int, net: str, kind: DeviceType = "vif") -> None:
    """Write a device's nodes as an operator does."""
    async with await Store.connect(directory / "xenstored.sock") as store:
        await attach_nic(store, domid, net, kind=kind)


@asynccontextmanager
async def topology(directory: Path, configs: Sequence[FrontConfig] = (LINUX,)) -> AsyncIterator[Topology]:
    """A connected guest for each config, and a first backend."""
    async with AsyncExitStack() as undo:
        hosts = [host_socket() for _ in configs]
        for end in (end for pair in hosts for end in pair):
            undo.enter_context(end)
        backends = undo.enter_context(launcher(directory, [near.fileno() for _, near in hosts]))
        made = Topology(directory, backends)
        backends.start()
        for number, (config, (far, near)) in enumerate(zip(configs, hosts, strict=True)):
            made.vifs.append(
                await _connect(directory, config, number, far, f"{INHERITED}{near.fileno()}", undo)
            )
        for flow in made.flows:
            backends.on_kill.append(flow.killed)
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
    rx = Flow(2 * number + 1, config, far, near, repeats=False, spread=config.queues > 1)
    return GuestVif(frontend, tx, rx, states)
