# SPDX-License-Identifier: Apache-2.0
"""Killed at every step of a burst, through the whole daemon, with the real frontend as the judge.

An armed backend dies where it reaches its step, which takes traffic: a ring that stood still would let it live.
"""

import asyncio
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState as State
from tests.crash.lives import SECONDS
from tests.crash.scene import GuestVif, scene

pytestmark = pytest.mark.timeout(300)
STEPS = 26
"""More than a burst has in either direction, so that the second burst's are among them."""


@pytest.mark.parametrize("direction", ["tx", "rx"])
async def test_any_step(xen: Path, direction: str) -> None:
    """Seen to fail: a journal never committed, never completed or cleared; no notification at attach."""
    async with scene(xen) as made:
        (vif,) = made.vifs
        loaded = vif.tx if direction == "tx" else vif.rx
        await made.lives.kill()
        loaded.run()
        for step in range(1, STEPS + 1):
            made.lives.start(workers=1, after=step)
            await made.lives.end()
            made.check()
            made.lives.start(workers=1)
            await loaded.arrived(loaded.received + 10, SECONDS)
            await made.lives.kill()
        made.lives.start()
        await made.stop_sending()


@pytest.mark.parametrize("answered", [False, True])
async def test_any_step_while_the_guest_reconfigures(xen: Path, answered: bool) -> None:
    """The rings stay the same ones in Reconfigured, and so does their journal; whoever comes next serves them."""
    async with scene(xen) as made:
        (vif,) = made.vifs
        await made.lives.kill()
        for step in range(1, STEPS + 1):
            vif.tx.run(False)
            made.lives.start(workers=1, after=step)
            if not made.lives.dead:
                await set_state(vif, State.RECONFIGURING)
            vif.tx.run()
            await made.lives.end()
            if answered:
                await set_state(vif, State.CONNECTED)
            made.lives.start(workers=1)
            await vif.tx.arrived(vif.tx.received + 10, SECONDS)
            await set_state(vif, State.CONNECTED)
            await backend_is(vif, State.CONNECTED)
            await made.lives.kill()
            vif.states.clear()
        made.lives.start()
        await made.stop_sending()


async def set_state(vif: GuestVif, state: State) -> None:
    """Behind the frontend's back, which has no use for it."""
    await vif.frontend.store.write(f"{vif.frontend.path}/state", str(int(state)))


async def backend_is(vif: GuestVif, state: State) -> None:
    async with asyncio.timeout(SECONDS):
        await vif.frontend.until(lambda: vif.frontend.backend_state is state)
