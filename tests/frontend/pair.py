# SPDX-License-Identifier: Apache-2.0
"""A guest and its backend, connected, with a Python network at either end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from netback.frontend import FrontConfig, Frontend, Guest
from netback.net.python import PythonNetwork
from tests.frontend.backend import HandBackend
from tests.frontend.frames import all_on_the_wire

SECONDS = 60.0


async def counters(vif: Frontend) -> dict[str, int]:
    """The counters of the guest's queue after the worker's burst: a burst updates them after it delivered."""
    assert vif.queue is not None
    queue = vif.queue
    return await vif.guest.submit(lambda _: queue.counters)


@dataclass
class Pair:
    vif: Frontend
    back: HandBackend

    @property
    def guest_net(self) -> PythonNetwork:
        assert isinstance(self.vif.network, PythonNetwork)
        return self.vif.network

    @property
    def host_net(self) -> PythonNetwork:
        assert isinstance(self.back.network, PythonNetwork)
        return self.back.network

    async def to_host(self, messages: Iterable[bytes]) -> None:
        """Send from the guest, and check that the same frames leave at the host."""
        await passes(self.guest_net, self.host_net, list(messages))

    async def to_guest(self, messages: Iterable[bytes]) -> None:
        await passes(self.host_net, self.guest_net, list(messages))

    async def both_ways(self, messages: Iterable[bytes]) -> None:
        messages = list(messages)
        await asyncio.gather(self.to_host(messages), self.to_guest(messages))


async def passes(sender: PythonNetwork, receiver: PythonNetwork, messages: list[bytes]) -> None:
    """Every frame arrives, in order, the same to the last byte once it is what it would be on the wire."""
    wanted = all_on_the_wire(messages)
    sending = asyncio.create_task(_send(sender, messages))
    try:
        async with asyncio.timeout(SECONDS):
            got: list[bytes] = []
            while len(got) < len(wanted):
                got += all_on_the_wire([await receiver.recv()])
            await sending
    finally:
        sending.cancel()
    for number, (came, should) in enumerate(zip(got, wanted, strict=True)):
        assert came == should, f"frame {number} of {len(wanted)}: {len(came)} bytes for {len(should)}"


async def _send(sender: PythonNetwork, messages: list[bytes]) -> None:
    for message in messages:
        await sender.send(message)


@asynccontextmanager
async def connected(
    xen: Path | Guest,
    config: FrontConfig = FrontConfig(),  # noqa: B008 (frozen)
    *,
    directory: Path | None = None,
    index: int = 0,
    offer: dict[str, str] | None = None,
    serve: bool = True,
) -> AsyncIterator[Pair]:
    """A guest of `xen` with this agreement, connected to a backend with that offer."""
    async with Frontend(xen, config=config, index=index) as vif:
        where = xen if isinstance(xen, Path) else directory
        assert where is not None
        async with HandBackend(where, vif.guest.domid, index=index, offer=offer, serve=serve) as back:
            async with asyncio.timeout(SECONDS):
                await vif.connected()
            yield Pair(vif, back)
            await vif.close()
