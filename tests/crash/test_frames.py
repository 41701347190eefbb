# SPDX-License-Identifier: Apache-2.0
"""Backends killed at seeded random moments under load in both directions: what guests and hosts get all the same."""

import asyncio
import random
from pathlib import Path

import pytest

from netback.frontend import FrontConfig
from tests.crash.scene import Scene, scene

pytestmark = pytest.mark.timeout(300)
KILLS = 60
PAUSE = 0.06
"""Seconds: from start to kill, so that some die in the midst of taking up the rings and most under load."""
STEPS = 300
"""Kill points, among which some lives have their end: a kill from outside rarely hits the middle of a burst."""

AGREEMENTS = {
    "all that Linux takes": (FrontConfig(), FrontConfig()),
    "few slots, nothing announced": (FrontConfig(tx_slots=24, rx_slots=24), FrontConfig(rx_notify=False)),
    "no scatter-gather, no offloads": (FrontConfig(sg=False), FrontConfig(csum4=False, csum6=False)),
}


async def die(made: Scene, rng: random.Random) -> None:
    """One life, of some length."""
    if rng.random() < 0.4:
        made.lives.start(after=rng.randint(1, STEPS))
        await made.lives.end()
        return
    made.lives.start()
    if rng.random() < 0.6:
        await made.goes_on()
    await asyncio.sleep(rng.uniform(0, PAUSE))
    await made.lives.kill()


@pytest.mark.parametrize("agreement", AGREEMENTS)
async def test_two_guests_under_load(xen: Path, agreement: str) -> None:
    """Every byte is its own guest's and right; a kill costs RX a burst, repeats a burst of TX, and stops nothing.

    Seen to fail: without the journal, with a journal completed on rings that it does not match, with rsp_prod stored
    before the bodies, TX answered before it is sent, no notification at attach, the network drained at adoption.
    """
    rng = random.Random(agreement)
    async with scene(xen, AGREEMENTS[agreement]) as made:
        for flow in made.flows:
            flow.run()
        await made.lives.kill()
        while made.lives.kills < KILLS:
            await die(made, rng)
            made.check()
        made.lives.start()
        await made.goes_on()
        await made.stop_sending()
