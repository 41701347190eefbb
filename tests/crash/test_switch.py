# SPDX-License-Identifier: Apache-2.0
"""Linux's TCP between two guests on one switch: transfers both ways go on through one killed backend after the other.

Each new backend's switch knows no address; frames in the killed one's lanes are lost, and TCP sends them again.
"""

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from netback.frontend import FrontConfig, Frontend
from netback.net.tap import TapNetwork
from tests.crash.respawn import SECONDS, Respawner, launcher
from tests.crash.test_tcp import pass_both_ways, tcp_socket
from tests.crash.topology import attach
from tests.net.namespace import ip, new_network

pytestmark = pytest.mark.timeout(300)
KILLS = 12
SPEC = "switch:lan"


@asynccontextmanager
async def two_guests(xen: Path, queues: int) -> AsyncIterator[tuple[Respawner, list[socket.socket]]]:
    """The stack of each guest is in a namespace of its own, as is its socket."""
    async with AsyncExitStack() as undo:
        sockets, taps = [], []
        for number in (1, 2):
            with new_network():
                tap = TapNetwork(f"guest{number}", several=queues > 1)
                undo.callback(tap.remove)
                ip(f"addr add 192.0.2.{number}/24 dev guest{number}")
                ip(f"link set guest{number} up")
                taps.append(tap)
                sockets.append(undo.enter_context(tcp_socket()))
        backends = undo.enter_context(launcher(xen, net=SPEC))
        backends.start()
        for number, tap in enumerate(taps, 1):
            vif = await undo.enter_async_context(Frontend(xen, tap, config=FrontConfig(queues=queues)))
            await attach(xen, vif.guest.domid, SPEC)
            async with asyncio.timeout(SECONDS):
                await vif.connected()
            tap.set_address(f"02:00:00:00:00:0{number}")
        yield backends, sockets


@pytest.mark.parametrize("queues", [1, 2])
async def test_transfers_both_ways(xen: Path, queues: int) -> None:
    async with two_guests(xen, queues) as (backends, (client, listener)):
        listener.bind(("192.0.2.2", 0))
        listener.listen()
        await pass_both_ways(backends, client, listener, kills=KILLS, rng=random.Random(5))
