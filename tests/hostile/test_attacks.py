# SPDX-License-Identifier: Apache-2.0
"""The attacks that the lab runs in a guest of a real Xen, here against the same backend on an emulated one."""

import asyncio

import pytest

from netback.lab.inside import attacks
from tests.hostile.scene import Scene


async def test_the_lab_s_attacks(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    async with asyncio.timeout(60):
        await attacks.run(scene.bad)
    assert len(capsys.readouterr().out.splitlines()) == len(attacks.CASES)
    assert await scene.backend.store.read(f"{scene.name.errors}/error")
