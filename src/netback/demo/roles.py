# SPDX-License-Identifier: Apache-2.0
"""The processes around the rings: emulated Xen, the backend, and a guest's netfront. Each is what a user runs as well.

Knows the public objects of netback; no stack and no namespace.
"""

from abc import ABC, abstractmethod
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from netback import daemon
from netback.demo.networks import InheritedNetwork, LossyCable
from netback.errors import NetbackError
from netback.frontend import FrontConfig, Frontend
from netback.net.base import Network
from netback.net.spec import open_network, parse_spec
from netback.observe.pcapng import Capture
from netback.platforms.emulated import EmulatedPlatform, Emulator
from netback.xenbus.names import DeviceName

INHERITED = "inherited:"
"""A network that only this demo has: a descriptor of this process."""


def open_net(spec: str) -> Network:
    """A guest's network."""
    if spec.startswith(INHERITED):
        return InheritedNetwork(int(spec.removeprefix(INHERITED)))
    return open_network(parse_spec(spec), name="guest")


class _Role(ABC):
    """A context that is made of others."""

    def __init__(self) -> None:
        self._undo = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as undo:
            await self._enter(undo)
            self._undo = undo.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._undo.aclose()

    @abstractmethod
    async def _enter(self, undo: AsyncExitStack) -> None:
        """Enter them."""


class Xen(_Role):
    """`netback emulate`."""

    def __init__(self, directory: str) -> None:
        super().__init__()
        self._directory = Path(directory)

    async def _enter(self, undo: AsyncExitStack) -> None:
        await undo.enter_async_context(Emulator(self._directory))


class Backend(_Role):
    """`netback run`: from the directory and this configuration alone."""

    def __init__(self, directory: str, net: str) -> None:
        super().__init__()
        self._directory = Path(directory)
        self._net = net

    async def _enter(self, undo: AsyncExitStack) -> None:
        platform = undo.enter_context(EmulatedPlatform(self._directory))
        own = {self._net: open_net(self._net)} if self._net.startswith(INHERITED) else {}
        config = daemon.BackendConfig(self._directory / "backend", net=self._net, networks=own)
        self._backend = await undo.enter_async_context(daemon.Backend(platform, config))

    def _device(self) -> DeviceName:
        for name in self._backend.devices:
            return name
        raise NetbackError("the backend has no device")

    async def counters(self) -> dict[str, int]:
        """What the device's queue counted."""
        vif = self._backend.devices[self._device()].vif
        return vif.counters if vif else {}

    async def begin_capture(self, path: str) -> None:
        """Write each frame down from now on."""
        self._file = Path(path).open("wb")  # noqa: SIM115, ASYNC230 (closed in end_capture)
        self._capture = Capture(self._file)
        await self._backend.capture(self._device(), self._capture.sink(str(self._device())))

    async def end_capture(self) -> int:
        """How many frames were written."""
        await self._backend.capture(self._device(), None)
        self._file.close()
        if self._capture.error:
            raise self._capture.error
        return self._capture.frames


class Netfront(_Role):
    """`netback guest`."""

    def __init__(self, directory: str, net: str, domid: int, cable: bool) -> None:
        super().__init__()
        self._directory = Path(directory)
        self._net = net
        self._domid = domid
        self._cabled = cable

    async def _enter(self, undo: AsyncExitStack) -> None:
        network = open_net(self._net)
        if self._cabled:
            network = self._cable = LossyCable(network)
        undo.callback(network.remove)
        self._frontend = await undo.enter_async_context(
            Frontend(self._directory, network, domid=self._domid, name="guest")
        )

    async def connected(self) -> None:
        """Until frames flow."""
        await self._frontend.connected()

    async def segmentation(self, on: bool) -> None:
        """Close, and connect again as a guest that takes and sends segmented frames, or none."""
        self._frontend.config = FrontConfig(gso4=on, gso6=on)
        await self._frontend.reload()
        await self._frontend.connected()

    async def counters(self) -> dict[str, int]:
        """What the queue counted."""
        return self._frontend.queue.counters if self._frontend.queue else {}

    async def lose_flags(self) -> None:
        """From now on nobody is told that a checksum is still to be completed."""
        self._cable.losing = True
