# SPDX-License-Identifier: Apache-2.0
"""Backends killed while a guest closes and connects again: the next one goes on from the states in the store."""

import asyncio
import random
from pathlib import Path

from netback.abi.xenbus import XenbusState as State
from tests.crash.respawn import SECONDS
from tests.crash.topology import Topology, topology

RELOADS = 10
DEATHS = 4
LIFE = 0.08
"""The longest time to a kill in seconds: about what a backend takes for its part of the handshake."""
WALK = {
    "frontend": [State.CLOSING, State.CLOSED, State.INITIALISING, State.CONNECTED],
    "backend": [State.CLOSING, State.CLOSED, State.INIT_WAIT, State.CONNECTED],
}


async def die_young(made: Topology, rng: random.Random) -> None:
    """One backend after the other; the last one stays."""
    for _ in range(DEATHS):
        await asyncio.sleep(rng.uniform(0, LIFE))
        await made.backends.kill()
        made.backends.start()


async def test_a_guest_that_reloads(xen: Path) -> None:
    """Each end takes its states once and in order, however many backends it takes; then frames flow."""
    rng = random.Random(3)
    async with topology(xen) as made:
        (vif,) = made.vifs
        for _ in range(RELOADS):
            dying = asyncio.create_task(die_young(made, rng))
            async with asyncio.timeout(SECONDS):
                await vif.frontend.reload()
                await vif.frontend.connected()
                await dying
            for side, walk in WALK.items():
                seen = [state for who, state in vif.states if who == side]
                assert seen == [state for state in walk if state in seen]
                assert seen[-1] is State.CONNECTED
            vif.states.clear()
            for flow in made.flows:
                flow.send(1)
                await flow.caught_up(SECONDS)
            await vif.answered()
        assert vif.tx.repeated == vif.rx.lost == 0
