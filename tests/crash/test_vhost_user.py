# SPDX-License-Identifier: Apache-2.0
"""Backends killed under load in both directions, with a vhost-user device that lives on: frames in its virtqueues may
be lost, and nothing else (docs/decisions.md, vhost-user devices).
"""

import asyncio
import random
import select
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState
from netback.dataplane.peers.virtqueue import PAIR_SLOTS
from netback.frontend import FrontConfig, Frontend
from netback.net.python import PythonNetwork
from tests.crash.load import BURST, HELD, Flow
from tests.crash.respawn import SECONDS, launcher
from tests.crash.test_steps import die_at_each_step
from tests.crash.topology import GuestVif, Topology, attach, host_socket
from tests.net.vhost_device import Device

pytestmark = pytest.mark.timeout(300)
KILLS = 30
STEPS = 300
MOST = 70000


class Lossy(Flow):
    """A flow that loses what the virtqueue holds at a kill, or repeats a burst."""

    def _in_turn(self, number: int) -> None:
        skipped, self._next = number - self._next, number + 1
        if skipped:
            self._jumps += 1
            assert self._jumps <= 2 * self.kills, f"{self}: frame {number} out of order, without a kill"
            assert -BURST <= skipped <= PAIR_SLOTS + BURST + HELD, f"{self}: {skipped} frames are missing"


class Pump(threading.Thread):
    """Moves frames between a device and a socket, over all of the device's connections."""

    def __init__(self, device: Device, end: socket.socket) -> None:
        super().__init__(daemon=True)
        self.device, self.end = device, end
        self.ended = False
        self.start()

    def run(self) -> None:
        while not self.ended:
            try:
                if self.device.is_ready and (self.from_guest() | self.to_guest()):
                    continue
            except (AssertionError, OSError):
                pass  # the connection ended meanwhile, and the frame is lost
            select.select([self.end], [], [], 0.001)

    def from_guest(self) -> bool:
        if not self.device.tx.waiting or not select.select([], [self.end], [], 0)[1]:
            return False
        self.end.send(self.device.recv())
        return True

    def to_guest(self) -> bool:
        if self.device.rx.waiting < 40 or not select.select([self.end], [], [], 0)[0]:
            return False
        self.device.send(self.end.recv(MOST))
        return True

    def stop(self) -> None:
        self.ended = True
        self.join()


@asynccontextmanager
async def behind_a_device(xen: Path, tmp_path: Path) -> AsyncIterator[Topology]:
    """A connected guest behind a device that lives on, and a first backend."""
    far, near = host_socket()
    with Device(tmp_path / "device.sock") as device, far, near, launcher(xen, []) as backends:
        pump = Pump(device, near)
        config = FrontConfig()
        states: list[tuple[str, XenbusState]] = []
        backends.start()
        async with Frontend(xen, config=config, on_state=lambda *change: states.append(change)) as frontend:
            await attach(xen, frontend.guest.domid, f"vhost-user:{device.path}")
            async with asyncio.timeout(SECONDS):
                await frontend.connected()
            states.clear()
            assert isinstance(frontend.network, PythonNetwork)
            guest = frontend.network.socket
            tx = Lossy(0, config, guest, far, repeats=True)
            rx = Lossy(1, config, far, guest, repeats=False)
            for flow in (tx, rx):
                backends.on_kill.append(flow.killed)
            yield Topology(xen, backends, [GuestVif(frontend, tx, rx, states)])
            for flow in (tx, rx):
                flow.close()
        pump.stop()


async def test_kills_under_load(xen: Path, tmp_path: Path) -> None:
    rng = random.Random(11)
    async with behind_a_device(xen, tmp_path) as made:
        backends = made.backends
        for flow in made.flows:
            flow.run()
        await made.goes_on()
        await backends.kill()
        while backends.kills < KILLS:
            if rng.random() < 0.5:
                backends.start(after=rng.randint(1, STEPS))
                await backends.end()
            else:
                backends.start()
                await made.goes_on()
                await backends.kill()
            made.check()
        backends.start()
        await made.goes_on()
        await made.stop_sending()
        made.check()


@pytest.mark.parametrize("direction", ["tx", "rx"])
async def test_any_step(xen: Path, tmp_path: Path, direction: str) -> None:
    async with behind_a_device(xen, tmp_path) as made:
        (vif,) = made.vifs
        await die_at_each_step(made, vif.tx if direction == "tx" else vif.rx)
        made.check()
