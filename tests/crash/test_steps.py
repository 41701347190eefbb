# SPDX-License-Identifier: Apache-2.0
"""Killed at every step of a burst, through the whole daemon, with the real frontend as the judge.

An armed backend dies where it reaches its step, which takes traffic: a ring that stood still would let it live.
"""

from pathlib import Path

import pytest

from tests.crash.scene import scene

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
            await loaded.arrived(loaded.received + 10, 40)
            await made.lives.kill()
        made.lives.start()
        await made.stop_sending()
