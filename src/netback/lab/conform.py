# SPDX-License-Identifier: Apache-2.0
"""A guest's own netfront, judged on real Xen: dom0 plays the backends, this machine judges what they saw."""

from collections.abc import Sequence
from pathlib import Path

from netback.conform import recording
from netback.conform.observation import Observation
from netback.conform.profiles import PROFILES
from netback.conform.report import Judged
from netback.conform.rules import RULES
from netback.conform.view import View
from netback.lab.bench.backends import QEMU
from netback.lab.bench.made import made
from netback.lab.custom_guest import CustomGuest, create
from netback.lab.host import Lab, open_lab
from netback.lab.image import Say
from netback.lab.machine import Options

ADDRESS, ADDRESS6 = "10.0.0.2", "2001:db8::2"
"""The guest's, on each link; the played host has those before them."""
RUNS = "conform.runs"
SECONDS = 1800.0
"""Of all profiles together, at most."""


async def observe_guest(
    lab: Lab,
    domid: int,
    address: str,
    profiles: Sequence[str],
    say: Say,
    *,
    seed: int = 1,
    paused: bool = False,
) -> list[Observation]:
    """Play the backends for a guest that runs, or for a `paused` one, which is then started; no other backend may serve
    vifs.
    """
    words = " ".join(
        (*(("--unpause",) if paused else ()), str(domid), f"/lab/{RUNS}", address, str(seed), *profiles)
    )
    output = await lab.dom0(f"python3 -P -m netback.lab.inside.conform {words}", seconds=SECONDS)
    say(output.rstrip())
    return recording.load(lab.machine.directory / RUNS, "frontend", Observation)


async def observe_kernel(
    lab: Lab, guest: CustomGuest, directory: Path, profiles: Sequence[str], say: Say, *, seed: int = 1
) -> list[Observation]:
    """A guest of this kernel for each backend, which has its device before it starts."""
    seen = []
    for name in profiles or [profile.name for profile in PROFILES]:
        domid = await create(lab, guest, directory, vif=False, paused=True)
        seen += await observe_guest(lab, domid, guest.address, [name], say, seed=seed, paused=True)
        await lab.dom0(f"xl destroy {domid}")
    recording.save(directory / RUNS, "frontend", seen)
    (directory / RUNS).with_suffix(".made").write_text(await made_of(lab))
    return seen


async def observe_linux(lab: Lab, profiles: Sequence[str], say: Say, *, seed: int = 1) -> list[Observation]:
    """Linux's netfront in a guest of the lab, which takes each link into use as it comes."""
    words = f"netback.address={ADDRESS} netback.address={ADDRESS6}"
    guest = await lab.create("g1", vif=(), up=False, more=words)
    return await observe_guest(lab, guest.domid, ADDRESS, profiles, say, seed=seed)


async def made_of(lab: Lab) -> str:
    """When, and of what, a recording is: one line."""
    qemu = await lab.dom0(f"{QEMU} --version | sed -n 's/.*version //p'")
    return f"{await made(lab)}, QEMU {qemu.strip()}"


def judge(runs: Sequence[Observation]) -> list[Judged]:
    """The verdicts of each run."""
    return [Judged(run.profile, RULES.judge(View(run))) for run in runs]


async def judge_kernel(
    guest: CustomGuest | None,
    directory: Path,
    say: Say,
    *,
    accel: str,
    profiles: Sequence[str],
    seed: int,
) -> list[Judged]:
    """Boot a Xen host and a guest of this kernel, None: of the lab's, and judge its netfront."""
    async with open_lab(directory, say, options=Options(accel=accel), backend="none") as lab:
        if guest is None:
            return judge(await observe_linux(lab, profiles, say, seed=seed))
        return judge(await observe_kernel(lab, guest, directory, profiles, say, seed=seed))
