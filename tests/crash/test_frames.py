# SPDX-License-Identifier: Apache-2.0
"""Backends killed at seeded random moments under load in both directions."""

import asyncio
import random
from pathlib import Path

import pytest

from netback.frontend import FrontConfig
from tests.crash.topology import Topology, topology

pytestmark = pytest.mark.timeout(300)
KILLS = 60
PAUSE = 0.06
"""The longest time from start to kill in seconds: some backends die while they attach to the rings, most under load."""
STEPS = 300
"""Kill points, where some backends die: SIGKILL from outside rarely hits the middle of a burst."""

AGREEMENTS = {
    "all that Linux takes": (FrontConfig(), FrontConfig()),
    "few slots, nothing announced": (
        FrontConfig(tx_slots=24, rx_slots=24, split=False),
        FrontConfig(rx_notify=False),
    ),
    "two queues": (FrontConfig(queues=2), FrontConfig(queues=2, split=False)),
    "no scatter-gather, no offloads": (FrontConfig(sg=False), FrontConfig(csum4=False, csum6=False)),
}


async def die(made: Topology, rng: random.Random) -> None:
    """Start a backend and kill it, at a kill point or after some time."""
    if rng.random() < 0.4:
        made.backends.start(after=rng.randint(1, STEPS))
        await made.backends.end()
        return
    made.backends.start()
    if rng.random() < 0.6:
        await made.goes_on()
    await asyncio.sleep(rng.uniform(0, PAUSE))
    await made.backends.kill()


@pytest.mark.parametrize("agreement", AGREEMENTS)
async def test_two_guests_under_load(xen: Path, agreement: str) -> None:
    """Each guest gets only its own bytes; a kill loses at most a burst of RX, or repeats one of TX.

    This test failed without the journal, with a journal completed on other rings, with rsp_prod stored before the
    bodies, with TX answered before it is sent, without a notification at the resume, and with the network drained at
    adoption.
    """
    rng = random.Random(agreement)
    async with topology(xen, AGREEMENTS[agreement]) as made:
        for flow in made.flows:
            flow.run()
        await made.backends.kill()
        while made.backends.kills < KILLS:
            await die(made, rng)
            made.check()
        made.backends.start()
        await made.goes_on()
        await made.stop_sending()
