# SPDX-License-Identifier: Apache-2.0
"""A guest's own netfront, judged on real Xen: dom0 plays the backends, this machine judges what they saw."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from netback.conform import recording
from netback.conform.observation import Observation
from netback.conform.report import Judged
from netback.conform.rules import RULES
from netback.conform.view import View
from netback.lab.custom_guest import CustomGuest, create
from netback.lab.host import Guest, Lab, open_lab
from netback.lab.image import Say
from netback.lab.machine import Options

ADDRESS = "10.0.0.2"
RUNS = "conform.runs"
SECONDS = 1800.0
"""Of all profiles together, at most."""
_UP = (
    "(while true; do for l in $(ls /sys/class/net | grep ^eth); do"
    f" ip link set $l up; ip addr add {ADDRESS}/24 dev $l 2>/dev/null; done; sleep 0.2; done) >/dev/null 2>&1 &"
)
"""Each profile's device is a new link, which the guest takes into use."""


async def observe_guest(
    lab: Lab, domid: int, address: str, profiles: Sequence[str], say: Say
) -> list[Observation]:
    """Play the backends for a guest that runs; no other backend may serve vifs."""
    words = " ".join(profiles)
    output = await lab.dom0(
        f"python3 -P -m netback.lab.inside.conform {domid} /lab/{RUNS} {address} {words}", seconds=SECONDS
    )
    say(output.rstrip())
    return recording.load(lab.machine.directory / RUNS, "frontend", Observation)


async def observe_linux(guest: Guest, profiles: Sequence[str], say: Say) -> list[Observation]:
    """Linux's netfront in a guest of the lab, whose links are taken into use as they come."""
    await guest(_UP)
    return await observe_guest(guest.lab, guest.domid, ADDRESS, profiles, say)


def judge(runs: Sequence[Observation]) -> list[Judged]:
    """The verdicts of each run."""
    return [Judged(run.profile, RULES.judge(View(run))) for run in runs]


async def judge_kernel(
    guest: CustomGuest | None, directory: Path, say: Say, *, accel: str, profiles: Sequence[str]
) -> list[Judged]:
    """Boot a Xen host and a guest of this kernel, None: of the lab's, and judge its netfront."""
    async with open_lab(directory, say, options=Options(accel=accel), backend="none") as lab:
        if guest is None:
            linux = await lab.create("g1", vif=(), up=False)
            return judge(await observe_linux(linux, profiles, say))
        domid = await asyncio.wait_for(create(lab, guest, directory, vif=False), SECONDS)
        return judge(await observe_guest(lab, domid, guest.address, profiles, say))
