# SPDX-License-Identifier: Apache-2.0
"""What runs in dom0 for `netback lab conform` runs on emulated Xen too: the store is seen by watches alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from netback.conform.backend import Limits
from netback.conform.observation import Observation
from netback.conform.profiles import find_profile
from netback.conform.session import Setting
from netback.errors import ConfigError
from netback.frontend import Script
from netback.lab.conform import judge
from netback.lab.inside.conform import observe_device
from netback.platforms.emulated import EmulatedPlatform, Emulator
from netback.xenbus.names import DeviceName
from tests.conform.deeds import DEEDS
from tests.conform.scripted import Deed, Honest, living, suppress_released
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


async def started(
    directory: Path, start: Callable[[Script], Awaitable[object]], limits: Limits = PATIENT
) -> Observation:
    """What is seen of a guest that is there and does nothing before `start`, as a paused one."""
    async with asyncio.timeout(SECONDS), Emulator(directory), suppress_released():
        with EmulatedPlatform(directory) as platform:
            async with Script(directory, name="scripted") as script:
                return await observe_device(
                    platform,
                    DeviceName("vif", 0, 1, "0"),
                    find_profile("strict"),
                    Setting(limits=limits),
                    partial(start, script),
                )


async def test_a_guest_is_started_with_its_device(tmp_path: Path) -> None:
    """As a unikernel needs it, which looks for devices at its start alone."""
    found, tasks = [], []

    async def start(script: Script) -> None:
        found.append(await script.guest.store.read_or("/local/domain/0/backend/vif/1/0/state"))
        tasks.append(asyncio.ensure_future(Honest(script, Deed(profile="strict")).live()))

    (run,) = judge([await started(tmp_path, start)])
    assert found == ["2"]
    assert broken(run.verdicts) == {}
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_guest_that_cannot_be_started_is_an_error(tmp_path: Path) -> None:
    async def start(script: Script) -> None:
        raise ConfigError("no such domain")

    with pytest.raises(ConfigError, match="no such domain"):
        await started(tmp_path, start, Limits(answer=0.1, settle=0.01))


@pytest.mark.parametrize("rule", ["keys.booleans", "tx.min-size", "xenbus.toolstack-keys"])
async def test_a_broken_rule_is_seen_by_watches(tmp_path: Path, rule: str) -> None:
    assert {*await observed(tmp_path, DEEDS[rule])} == {rule}
