# SPDX-License-Identifier: Apache-2.0
"""Backends killed while a guest closes and connects anew: whoever comes next goes on from what stands in the store."""

import asyncio
import random
from pathlib import Path

from netback.abi.xenbus import XenbusState as State
from tests.crash.lives import SECONDS
from tests.crash.scene import Scene, scene

RELOADS = 10
DEATHS = 4
LIFE = 0.08
"""Seconds at most: about what a backend takes to do its part."""
WALK = {
    "frontend": [State.CLOSING, State.CLOSED, State.INITIALISING, State.CONNECTED],
    "backend": [State.CLOSING, State.CLOSED, State.INIT_WAIT, State.CONNECTED],
}


async def die_young(made: Scene, rng: random.Random) -> None:
    """One backend after the other; the last one lives."""
    for _ in range(DEATHS):
        await asyncio.sleep(rng.uniform(0, LIFE))
        await made.lives.kill()
        made.lives.start()


async def test_a_guest_that_reloads(xen: Path) -> None:
    """Either end walks through its states once and in order, however many backends it takes; then frames flow."""
    rng = random.Random(3)
    async with scene(xen) as made:
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
