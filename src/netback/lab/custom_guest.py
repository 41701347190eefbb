# SPDX-License-Identifier: Apache-2.0
"""A user's own guest kernel on a Xen host with netback, and what its frontend did there."""

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
class CustomGuest:
    """The guest as the command line describes it."""

    kernel: Path
    initrd: Path | None
    options: str
    memory: int
    kind: str
    address: str


async def _connected(lab: Lab) -> bool:
    return any(device["backend"] == "Connected" for device in await lab.netback.list())


async def boot(lab: Lab, guest: CustomGuest) -> None:
    """Wait until the frontend is connected."""
    await lab.until(lambda: _connected(lab), "the frontend connects")


async def ping(lab: Lab, guest: CustomGuest) -> None:
    """Wait for the connection, then for an answer to ping; send 20 large pings."""
    await boot(lab, guest)
    await lab.until(lambda: lab.succeeds(f"ping -c1 -W1 {guest.address}"), f"{guest.address} answers to ping")
    await lab.dom0(f"ping -c 20 -i 0.2 -s 1400 {guest.address}")


async def reconnect(lab: Lab, guest: CustomGuest) -> None:
    """Kill the backend, start it, and check that the guest answers and both ends are Connected."""
    await ping(lab, guest)
    await lab.netback.stop("KILL")
    await lab.netback.start()
    await lab.dom0(f"ping -c 20 -i 0.2 {guest.address}")
    for device in await lab.netback.list():
        if (device["backend"], device["frontend"]) != ("Connected", "Connected"):
            raise LabError(f"{device['device']} is {device['backend']}, its frontend {device['frontend']}")


SCENARIOS: dict[str, Callable[[Lab, CustomGuest], Awaitable[None]]] = {
    "boot": boot,
    "ping": ping,
    "reconnect": reconnect,
}


async def run_custom_guest(
    scenario: str, guest: CustomGuest, directory: Path, say: Say, *, accel: str
) -> int:
    """Run one scenario: 0 if it holds, else 1. Always shows the device list, netback's log and the console."""
    if scenario not in SCENARIOS:
        raise ConfigError(f"unknown scenario {scenario!r}; a custom guest has {', '.join(SCENARIOS)}")
    async with open_lab(directory, say, options=Options(accel=accel)) as lab:
        fault = ""
        try:
            await create(lab, guest, directory)
            await SCENARIOS[scenario](lab, guest)
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


async def create(
    lab: Lab, guest: CustomGuest, directory: Path, *, vif: bool = True, paused: bool = False
) -> int:
    """Create the guest, with a vif on the bridge or without, and start it unless `paused`; returns its domid."""
    await asyncio.to_thread(_copy, guest, directory)
    (directory / "custom.cfg").write_text(_config(guest, vif=vif, kept=paused))
    await lab.dom0(f"xl create {'-p ' if paused else ''}/lab/custom.cfg", seconds=120)
    return int(await lab.dom0("xl domid custom"))


def _copy(guest: CustomGuest, directory: Path) -> None:
    shutil.copyfile(guest.kernel, directory / "custom.kernel")
    if guest.initrd is not None:
        shutil.copyfile(guest.initrd, directory / "custom.initrd")


def _config(guest: CustomGuest, *, vif: bool, kept: bool) -> str:
    """`kept`: what is left of the guest stays when it ends, so that its devices are not gone at the same moment."""
    lines = [
        *(f'on_{end}="preserve"' for end in ("poweroff", "reboot", "crash") if kept),
        'name="custom"',
        f'type="{guest.kind}"',
        'kernel="/lab/custom.kernel"',
        f"extra={guest.options!r}",
        f"memory={guest.memory}",
        "vcpus=1",
        f"vif=['mac=00:16:3e:01:00:00,bridge={BRIDGE}']" if vif else "vif=[]",
    ]
    if guest.initrd is not None:
        lines.append('ramdisk="/lab/custom.initrd"')
    return "\n".join(lines) + "\n"


def _console(directory: Path) -> str:
    path = directory / "consoles" / "guest-custom.log"
    return "\n".join(path.read_text(errors="replace").splitlines()[-40:]) if path.exists() else "(nothing)"
