# SPDX-License-Identifier: Apache-2.0
"""What runs in dom0 for `netback lab conform` runs on emulated Xen too: the store is seen by watches alone."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from netback.abi.xenbus import XenbusState as State
from netback.conform import recording
from netback.conform.backend import Limits
from netback.conform.profiles import find_profile
from netback.conform.session import Setting
from netback.errors import ConfigError
from netback.frontend import Script
from netback.lab.conform import judge, observe_guest
from netback.lab.host import Lab
from netback.lab.inside.conform import Request, observe_device
from netback.platforms.base import Platform
from netback.platforms.emulated import EmulatedPlatform, Emulator
from netback.xenbus.names import DeviceName
from tests.cli.commands import run
from tests.conform.deeds import DEEDS
from tests.conform.scripted import Deed, Honest, living, suppress_released
from tests.conform.test_rules import PATIENT, broken
from tests.vif.guest import SECONDS

HASTY = Limits(answer=0.1, settle=0.01)


async def observed(directory: Path, deed: Deed) -> dict[str, str]:
    async with asyncio.timeout(SECONDS), Emulator(directory), living(directory, deed):
        with EmulatedPlatform(directory) as platform:
            device = DeviceName("vif", 0, 1, "0")
            seen = await observe_device(platform, device, find_profile(deed.profile), Setting(limits=PATIENT))
    (run,) = judge([seen])
    assert run.profile == deed.profile
    return broken(run.verdicts)


@dataclass
class Machine:
    """A lab whose dom0 reads its command, and records nothing."""

    directory: Path

    def __post_init__(self) -> None:
        self.machine = self
        self.requests: list[Request] = []

    async def dom0(self, command: str, seconds: float) -> str:
        words = shlex.split(command)
        self.requests.append(Request.parse(words[words.index("netback.lab.inside.conform") + 1 :]))
        recording.save(self.directory / self.requests[-1].path.name, "frontend", [])
        return ""


async def test_the_seed_and_the_profiles_come_to_dom0(tmp_path: Path) -> None:
    lab = Machine(tmp_path)
    chosen = ("qnic", "plain")
    assert await observe_guest(cast(Lab, lab), 3, "10.0.0.2", chosen, lambda _line: None, seed=77) == []
    (request,) = lab.requests
    assert (request.domid, request.setting.seed, request.setting.address4) == (3, 77, "10.0.0.2")
    assert [profile.name for profile in request.profiles] == ["qnic", "plain"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--memory", "64"), "--memory does not go without --kernel; see netback lab conform --help"),
        (("--address", "10.0.0.2"), "--address does not go without --kernel; see netback lab conform --help"),
        (("--initrd", __file__), "--initrd does not go without --kernel; see netback lab conform --help"),
        (("--append", "x"), "--append does not go without --kernel; see netback lab conform --help"),
        (("--tap", "--json"), "--tap does not go with --json; see netback lab conform --help"),
        (("--profile", "best"), "there is no backend profile 'best'; there are strict,"),
        (("--junit", "/none/x"), "--junit /none/x: cannot be written: No such file or directory"),
    ],
)
async def test_mistakes_are_found_before_a_machine_boots(words: tuple[str, ...], reason: str) -> None:
    code, out, err = await run("lab", "conform", *words)
    assert (code, out) == (2, "")
    assert reason in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("profile", ["strict", "linux", "adversarial"])
async def test_an_honest_frontend_breaks_no_rule(tmp_path: Path, profile: str) -> None:
    assert await observed(tmp_path, Deed(profile=profile)) == {}


@dataclass
class Paused:
    """A domain that does nothing before `start`, and ends after its first Connected if it is to `crash`."""

    script: Script
    crash: bool = False
    fault: Exception | None = None

    def __post_init__(self) -> None:
        self.offered: str | None = None
        self.tasks: list[asyncio.Future[None]] = []

    async def start(self) -> None:
        if self.fault is not None:
            raise self.fault
        self.offered = await self.script.guest.store.read_or(f"{DEVICE.backend}/state")
        self.tasks.append(asyncio.ensure_future(Honest(self.script, Deed(profile="strict")).live()))

    async def has_ended(self) -> bool:
        return self.crash


DEVICE = DeviceName("vif", 0, 1, "0")


@asynccontextmanager
async def paused(directory: Path) -> AsyncIterator[tuple[Platform, Script]]:
    async with asyncio.timeout(SECONDS), Emulator(directory), suppress_released():
        with EmulatedPlatform(directory) as platform:
            async with Script(directory, name="scripted") as script:
                yield platform, script


async def test_a_guest_is_started_with_its_device(tmp_path: Path) -> None:
    """As a unikernel needs it, which looks for devices at its start alone."""
    async with paused(tmp_path) as (platform, script):
        guest = Paused(script)
        setting = Setting(limits=PATIENT)
        (run,) = judge([await observe_device(platform, DEVICE, find_profile("strict"), setting, guest)])
        assert guest.offered == str(int(State.INIT_WAIT))
        assert broken(run.verdicts) == {}
        await asyncio.gather(*guest.tasks, return_exceptions=True)


async def test_a_guest_that_crashes_is_seen_to_end(tmp_path: Path) -> None:
    async with paused(tmp_path) as (platform, script):
        guest = Paused(script)

        async def crash() -> None:
            """Once it is connected. Another domain's end tells the store's clients."""
            async with await platform.open_store() as store, await store.watch(DEVICE.backend) as watch:
                async for _ in watch:
                    if await store.read_or(f"{DEVICE.backend}/state") == str(int(State.CONNECTED)):
                        break
            guest.crash = True
            for task in guest.tasks:
                task.cancel()
            async with Script(tmp_path, name="other"):
                pass

        crashing = asyncio.ensure_future(crash())
        setting = Setting(limits=PATIENT)
        (run,) = judge([await observe_device(platform, DEVICE, find_profile("strict"), setting, guest)])
        await crashing
        assert broken(run.verdicts)["domain.stays"] == "fail: the domain ended while it was Connected"


async def test_a_guest_that_cannot_be_started_is_an_error(tmp_path: Path) -> None:
    async with paused(tmp_path) as (platform, script):
        guest, setting = Paused(script, fault=ConfigError("no such domain")), Setting(limits=HASTY)
        with pytest.raises(ConfigError, match="no such domain"):
            await observe_device(platform, DEVICE, find_profile("strict"), setting, guest)


@pytest.mark.parametrize("rule", ["keys.booleans", "tx.min-size", "xenbus.toolstack-keys"])
async def test_a_broken_rule_is_seen_by_watches(tmp_path: Path, rule: str) -> None:
    assert {*await observed(tmp_path, DEEDS[rule])} == {rule}
