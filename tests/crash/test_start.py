# SPDX-License-Identifier: Apache-2.0
"""One backend at a time: a second is refused while the first lives, and takes over while the first dies."""

import random
from pathlib import Path

from netback.frontend import FrontConfig
from tests.cli.test_commands import run
from tests.crash.scene import scene

REPLACED = 20


async def test_a_second_backend_is_refused_in_one_line(xen: Path) -> None:
    """And the first one's guests do not notice."""
    async with scene(xen) as made:
        for flow in made.flows:
            flow.run()
        code, out, err = await run("run", "--dir", xen)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "another netback serves domain 0" in err
        await made.goes_on()
        await made.stop_sending()
        assert sum(flow.lost + flow.repeated for flow in made.flows) == 0


async def test_a_new_one_while_the_old_one_dies(xen: Path) -> None:
    """Lock and ports may be the old one's still, for a moment."""
    rng = random.Random(4)
    async with scene(xen, (FrontConfig(), FrontConfig())) as made:
        for flow in made.flows:
            flow.run()
        for _ in range(REPLACED):
            await made.goes_on(rng.randrange(30))
            made.lives.replace()
            made.check()
        await made.goes_on()
        await made.stop_sending()
