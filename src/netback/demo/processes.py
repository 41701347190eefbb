# SPDX-License-Identifier: Apache-2.0
"""The processes around the rings: emulated Xen, the backend and the guest's netfront, each also a netback command."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from netback import daemon
from netback.control import Client
from netback.demo.networks import INHERITED, InheritedNetwork, LossyCable
from netback.errors import NetbackError
from netback.frontend import FrontConfig, Frontend
from netback.net.base import Network
from netback.net.spec import open_network, parse_spec
from netback.platforms.emulated import EmulatedPlatform, Emulator
from netback.xenbus.names import DeviceName

BACKEND = "backend"
"""The backend's runtime directory, in that of the emulated Xen."""


def open_net(spec: str) -> Network:
    """The network of a spec string, or of an inherited descriptor."""
    if spec.startswith(INHERITED):
        return InheritedNetwork(int(spec.removeprefix(INHERITED)))
    return open_network(parse_spec(spec), name="guest")


@asynccontextmanager
async def xen(directory: str) -> AsyncIterator[Emulator]:
    """`netback emulate`."""
    async with Emulator(Path(directory)) as emulator:
        yield emulator


@asynccontextmanager
async def backend(directory: str, net: str) -> AsyncIterator["Backend"]:
    """`netback run`: it gets only the directory and this configuration."""
    networks = {net: open_net(net)} if net.startswith(INHERITED) else {}
    config = daemon.BackendConfig(Path(directory) / BACKEND, net=net, networks=networks)
    with EmulatedPlatform(Path(directory)) as platform:
        async with daemon.Backend(platform, config) as running:
            yield Backend(running)


@asynccontextmanager
async def netfront(directory: str, net: str, domid: int, cable: bool) -> AsyncIterator["Netfront"]:
    """`netback guest`; with `cable` its frames pass a LossyCable."""
    network = open_net(net)
    lossy = LossyCable(network) if cable else None
    try:
        async with Frontend(Path(directory), lossy or network, domid=domid, name="guest") as frontend:
            yield Netfront(frontend, lossy)
    finally:
        (lossy or network).remove()


class Backend:
    """The calls that the demo makes to the backend."""

    def __init__(self, running: daemon.Backend) -> None:
        self._backend = running

    def _device(self) -> DeviceName:
        for name in self._backend.devices:
            return name
        raise NetbackError("the backend has no device")

    async def counters(self) -> dict[str, int]:
        """The counters of the device's queue."""
        vif = self._backend.devices[self._device()].vif
        return vif.counters if vif else {}

    async def begin_capture(self, path: str) -> None:
        """Write every frame to a pcapng file from now on."""
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()
        stop, self._stop = os.pipe()

        def capture() -> int:
            """As `netback capture` does it."""
            with Client(self._backend.config.directory) as client, client.capture() as frames:
                with Path(path).open("wb") as file:
                    loop.call_soon_threadsafe(begun.set)
                    frames.write(file.fileno(), stop=stop)
                os.close(stop)
                return frames.frames

        self._capture = asyncio.create_task(asyncio.to_thread(capture))
        waiting = asyncio.create_task(begun.wait())
        await asyncio.wait((self._capture, waiting), return_when=asyncio.FIRST_COMPLETED)

    async def end_capture(self) -> int:
        """Close the file; returns the number of frames in it."""
        os.close(self._stop)
        return await self._capture


class Netfront:
    """The calls that the demo makes to the netfront."""

    def __init__(self, frontend: Frontend, cable: LossyCable | None) -> None:
        self._frontend = frontend
        self._cable = cable

    async def connected(self) -> None:
        """Wait until frames can pass."""
        await self._frontend.connected()

    async def segmentation(self, on: bool) -> None:
        """Close, then connect again as a guest that sends and accepts GSO frames, or none."""
        self._frontend.config = FrontConfig(gso4=on, gso6=on)
        await self._frontend.reload()
        await self._frontend.connected()

    async def counters(self) -> dict[str, int]:
        """The counters of the guest's queue."""
        return self._frontend.queue.counters if self._frontend.queue else {}

    async def lose_flags(self) -> None:
        """Make the cable clear the checksum flags of the guest's frames from now on."""
        assert self._cable is not None
        self._cable.losing = True
