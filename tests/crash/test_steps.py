# SPDX-License-Identifier: Apache-2.0
"""The whole daemon killed at every step of a burst, judged by the real frontend.

A backend with a kill point dies when traffic takes it there.
"""

import asyncio
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState as State
from tests.crash.load import Flow
from tests.crash.respawn import SECONDS
from tests.crash.topology import GuestVif, Topology, topology

pytestmark = pytest.mark.timeout(300)
STEPS = 26
"""More than one burst has in either direction, so the second burst's are among them."""


@pytest.mark.parametrize("direction", ["tx", "rx"])
async def test_any_step(xen: Path, direction: str) -> None:
    """This test failed with a journal that is never committed, completed or cleared, and without a notification at the
    resume.
    """
    async with topology(xen) as made:
        (vif,) = made.vifs
        await die_at_each_step(made, vif.tx if direction == "tx" else vif.rx)


async def die_at_each_step(made: Topology, loaded: Flow) -> None:
    """Kill a backend at each step of a burst in turn, while one direction has frames: each time the next goes on."""
    await made.backends.kill()
    loaded.run()
    for step in range(1, STEPS + 1):
        made.backends.start(workers=1, after=step)
        await made.backends.end()
        made.check()
        made.backends.start(workers=1)
        await loaded.arrived(loaded.received + 10, SECONDS)
        await made.backends.kill()
    made.backends.start()
    await made.stop_sending()


@pytest.mark.parametrize("answered", [False, True])
async def test_any_step_while_the_guest_reconfigures(xen: Path, answered: bool) -> None:
    """Rings and journal stay the same through Reconfigured; the next backend serves them."""
    async with topology(xen) as made:
        (vif,) = made.vifs
        await made.backends.kill()
        for step in range(1, STEPS + 1):
            vif.tx.run(False)
            made.backends.start(workers=1, after=step)
            if not made.backends.dead:
                await set_state(vif, State.RECONFIGURING)
            vif.tx.run()
            await made.backends.end()
            if answered:
                await set_state(vif, State.CONNECTED)
            made.backends.start(workers=1)
            await vif.tx.arrived(vif.tx.received + 10, SECONDS)
            await set_state(vif, State.CONNECTED)
            await backend_is(vif, State.CONNECTED)
            await made.backends.kill()
            vif.states.clear()
        made.backends.start()
        await made.stop_sending()


async def set_state(vif: GuestVif, state: State) -> None:
    """Write the frontend's state without the frontend, which never reconfigures."""
    await vif.frontend.store.write(f"{vif.frontend.path}/state", str(int(state)))


async def backend_is(vif: GuestVif, state: State) -> None:
    async with asyncio.timeout(SECONDS):
        await vif.frontend.until(lambda: vif.frontend.backend_state is state)
