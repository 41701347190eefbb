# SPDX-License-Identifier: Apache-2.0
"""The lab runs these attacks in a guest of a real Xen; here the same backend meets them on an emulated one."""

import asyncio

import pytest

from netback.lab.inside import attacks
from tests.hostile.topology import Topology


async def test_the_lab_s_attacks(topology: Topology, capsys: pytest.CaptureFixture[str]) -> None:
    async with asyncio.timeout(60):
        await attacks.run(topology.bad)
    assert len(capsys.readouterr().out.splitlines()) == len(attacks.CASES)
    assert await topology.backend.store.read(f"{topology.name.errors}/error")
