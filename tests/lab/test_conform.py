# SPDX-License-Identifier: Apache-2.0
"""What runs in dom0 for `netback lab conform` runs on emulated Xen too: the store is seen by watches alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from netback.conform.profiles import find_profile
from netback.conform.session import Setting
from netback.lab.conform import judge
from netback.lab.inside.conform import observe_device
from netback.platforms.emulated import EmulatedPlatform, Emulator
from netback.xenbus.names import DeviceName
from tests.conform.deeds import DEEDS
from tests.conform.scripted import Deed, living
from tests.conform.test_rules import PATIENT, broken
from tests.vif.guest import SECONDS


async def observed(directory: Path, deed: Deed) -> dict[str, str]:
    async with asyncio.timeout(SECONDS), Emulator(directory), living(directory, deed):
        with EmulatedPlatform(directory) as platform:
            device = DeviceName("vif", 0, 1, "0")
            seen = await observe_device(platform, device, find_profile(deed.profile), Setting(limits=PATIENT))
    (run,) = judge([seen])
    assert run.profile == deed.profile
    return broken(run.verdicts)


@pytest.mark.parametrize("profile", ["strict", "linux", "adversarial"])
async def test_an_honest_frontend_breaks_no_rule(tmp_path: Path, profile: str) -> None:
    assert await observed(tmp_path, Deed(profile=profile)) == {}


@pytest.mark.parametrize("rule", ["keys.booleans", "tx.min-size", "xenbus.toolstack-keys"])
async def test_a_broken_rule_is_seen_by_watches(tmp_path: Path, rule: str) -> None:
    assert {*await observed(tmp_path, DEEDS[rule])} == {rule}
