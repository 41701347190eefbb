# SPDX-License-Identifier: Apache-2.0
"""A guest that posted a whole ring of RX slots once, and a few at a time since: large frames still reach it."""

import asyncio
from pathlib import Path

from netback.abi.netif import RX_RESPONSE, RX_SLOT
from netback.net.python import PythonNetwork
from tests.frontend.frames import PLAIN, blank, on_the_wire, ones
from tests.offload_oracle import TCP
from tests.vif.guest import FRAME, SECONDS, Guest, join, serving

RING, FEW = 256, 8
LARGE = blank(4, TCP, ones(1, 60000), mss=1448)


async def receive(guest: Guest, index: int) -> tuple[int, int]:
    """(flags, bytes) of the response in an RX slot."""
    await guest.responses(guest.rx, index)
    _, _, flags, status = RX_RESPONSE.unpack(guest.rx.slot(index, RX_SLOT))
    return int(flags), int(status)


async def test_a_few_slots_after_a_ring_full(xen: Path) -> None:
    """The fault: the most slots ever seen decided whether a GSO frame is segmented, so this guest waited for ever for
    15 slots.
    """
    network = PythonNetwork(vnet_hdr=True)
    async with serving(xen, network) as backend, join(xen) as guest, asyncio.timeout(SECONDS):
        await backend.attach(guest.domid, "python:lan")
        await guest.connect(feature_gso_tcpv4="1")
        for _ in range(RING):
            guest.post()
        for index in range(RING):
            await network.send(PLAIN + FRAME)
            assert await receive(guest, index) == (0, len(FRAME))
        for _ in range(FEW):
            guest.post()
        await network.send(LARGE)
        wanted, came, index = sum(map(len, on_the_wire(LARGE))), 0, RING
        while came < wanted:
            _, size = await receive(guest, index)
            came += size
            index += 1
            guest.post()
        assert came == wanted
    network.remove()
