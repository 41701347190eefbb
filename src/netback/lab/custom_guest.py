# SPDX-License-Identifier: Apache-2.0
"""Somebody else's guest: its kernel on a Xen host with netback, and what its frontend did there."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from netback.errors import ConfigError
from netback.lab.host import BRIDGE, Lab, open_lab
from netback.lab.image import Say
from netback.lab.machine import LabError, Options


@dataclass(frozen=True, slots=True)
class OwnGuest:
    """What was given on the command line."""

    kernel: Path
    initrd: Path | None
    options: str
    memory: int
    kind: str
    address: str


async def _connected(lab: Lab) -> bool:
    return any(device["backend"] == "Connected" for device in await lab.netback.list())


async def boot(lab: Lab, own: OwnGuest) -> None:
    """Its frontend connects."""
    await lab.until(lambda: _connected(lab), "the frontend connects")


async def ping(lab: Lab, own: OwnGuest) -> None:
    """It connects, and answers to ping at its address."""
    await boot(lab, own)
    await lab.until(lambda: lab.succeeds(f"ping -c1 -W1 {own.address}"), f"{own.address} answers to ping")
    await lab.dom0(f"ping -c 20 -i 0.2 -s 1400 {own.address}")


async def reconnect(lab: Lab, own: OwnGuest) -> None:
    """It answers to ping again after the backend was killed and started."""
    await ping(lab, own)
    await lab.netback.stop("KILL")
    await lab.netback.start()
    await lab.dom0(f"ping -c 20 -i 0.2 {own.address}")
    for device in await lab.netback.list():
        if (device["backend"], device["frontend"]) != ("Connected", "Connected"):
            raise LabError(f"{device['device']} is {device['backend']}, its frontend {device['frontend']}")


SCENARIOS: dict[str, Callable[[Lab, OwnGuest], Awaitable[None]]] = {
    "boot": boot,
    "ping": ping,
    "reconnect": reconnect,
}


async def run_own(scenario: str, own: OwnGuest, directory: Path, say: Say, *, accel: str) -> int:
    """0 where the scenario holds; the handshake, the counters and the guest's console are shown either way."""
    if scenario not in SCENARIOS:
        raise ConfigError(f"there is no scenario {scenario!r} for a guest of yours: {', '.join(SCENARIOS)}")
    async with open_lab(directory, say, options=Options(accel=accel)) as lab:
        await asyncio.to_thread(_copy, own, directory)
        (directory / "own.cfg").write_text(_config(own))
        fault = ""
        try:
            await lab.dom0("xl create /lab/own.cfg", seconds=120)
            await SCENARIOS[scenario](lab, own)
        except LabError as error:
            fault = str(error)
        for title, text in (
            ("netback list", await lab.netback("list")),
            ("netback's log", lab.netback.log),
            ("the guest's console", _console(directory)),
        ):
            say(f"--- {title}\n{text.rstrip()}")
        say(f"{scenario}: {fault or 'holds'}")
        return 1 if fault else 0


def _copy(own: OwnGuest, directory: Path) -> None:
    shutil.copyfile(own.kernel, directory / "own.kernel")
    if own.initrd is not None:
        shutil.copyfile(own.initrd, directory / "own.initrd")


def _config(own: OwnGuest) -> str:
    lines = [
        'name="own"',
        f'type="{own.kind}"',
        'kernel="/lab/own.kernel"',
        f"extra={own.options!r}",
        f"memory={own.memory}",
        "vcpus=1",
        f"vif=['mac=00:16:3e:01:00:00,bridge={BRIDGE}']",
    ]
    if own.initrd is not None:
        lines.append('ramdisk="/lab/own.initrd"')
    return "\n".join(lines) + "\n"


def _console(directory: Path) -> str:
    path = directory / "consoles" / "guest-own.log"
    return "\n".join(path.read_text(errors="replace").splitlines()[-40:]) if path.exists() else "(nothing)"
