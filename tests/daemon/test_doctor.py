# SPDX-License-Identifier: Apache-2.0
"""The doctor's checks on simulated machines: each check passes on one and fails on another."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState as State
from netback.control.schema import VERSION, Devices, DeviceStatus, Info
from netback.daemon import Backend, doctor
from netback.daemon.doctor import Finding, Verdict
from netback.daemon.machine import Machine
from netback.errors import PlatformError
from tests.daemon.talk import CALLS, serving
from tests.vif.guest import Guest, until, until_state
from tests.xenbus.toolstack import add, looked

Check = Callable[[Machine], Finding]


def made_up(root: Path, files: dict[str, str], domid: int = 0) -> Machine:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Machine(root / "run", root=root, domid=lambda: domid)


@pytest.mark.parametrize(
    ("check", "files", "verdict", "found"),
    [
        (doctor.xen, {}, Verdict.FAIL, "no hypervisor"),
        (
            doctor.xen,
            {
                "sys/hypervisor/type": "xen\n",
                "sys/hypervisor/version/major": "4\n",
                "sys/hypervisor/version/minor": "20\n",
            },
            Verdict.OK,
            "Xen 4.20",
        ),
        (doctor.claims, {}, Verdict.OK, "no other backend"),
        (doctor.claims, {"sys/module/xen_netback/version": ""}, Verdict.WARN, "is loaded"),
        (
            doctor.claims,
            {"sys/bus/xen-backend/drivers/vif/vif-3-0": ""},
            Verdict.FAIL,
            r"claims every vif \(it has 1\)",
        ),
        (doctor.emulator, {"proc/7/cmdline": "qemu\0-xen-attach\0"}, Verdict.WARN, "process 7"),
        (doctor.emulator, {"proc/7/cmdline": "sh\0"}, Verdict.OK, "no QEMU"),
        (doctor.rights, {"proc/self/status": "CapEff:\t0000000000001000\n"}, Verdict.OK, "CAP_NET_ADMIN"),
        (doctor.rights, {"proc/self/status": "CapEff:\t0000000000000000\n"}, Verdict.FAIL, "missing"),
        (doctor.bridges, {"sys/class/net/eth0/address": ""}, Verdict.WARN, "no bridge"),
        (doctor.bridges, {"sys/class/net/xenbr0/bridge/bridge_id": ""}, Verdict.OK, "xenbr0"),
        (doctor.scripts, {}, Verdict.WARN, "there is no"),
        (doctor.descriptors, {"proc/self/limits": "Max open files 1024 1024 files\n"}, Verdict.WARN, "1024"),
        (doctor.config, {}, Verdict.OK, "the defaults apply"),
        (doctor.config, {"etc/netback/netback.toml": "nett = 1"}, Verdict.FAIL, "nett"),
        (doctor.config, {"etc/netback/conf.d/x.toml": "nett = 1"}, Verdict.FAIL, r"x\.toml: nett"),
        (doctor.config, {"etc/netback/conf.d/x.toml": "workers = 1"}, Verdict.OK, "1 files in /etc/netback"),
    ],
)
def test_a_check(tmp_path: Path, check: Check, files: dict[str, str], verdict: Verdict, found: str) -> None:
    seen = check(made_up(tmp_path, files))
    assert seen.verdict is verdict
    assert re.search(found, seen.found), seen.found
    assert seen.advice or verdict is Verdict.OK


def test_a_driver_domain_needs_xl_devd_for_scripts(tmp_path: Path) -> None:
    assert doctor.toolstack(made_up(tmp_path / "a", {})).verdict is Verdict.OK
    assert doctor.toolstack(made_up(tmp_path / "b", {}, domid=3)).verdict is Verdict.WARN
    devd = made_up(tmp_path / "c", {"proc/9/cmdline": "/usr/sbin/xl\0devd\0"}, domid=3)
    assert doctor.toolstack(devd).verdict is Verdict.OK


NETBACK = {"etc/netback/netback.toml": 'hotplug = "netback"'}


async def test_what_runs_the_scripts(tmp_path: Path) -> None:
    """The running backend knows; the file says it otherwise. Two that run them are a mistake."""
    devd = {"proc/9/cmdline": "/usr/sbin/xl\0devd\0"}
    for name, files, domid, verdict in (
        ("a", NETBACK, 3, Verdict.OK),
        ("b", NETBACK | devd, 3, Verdict.FAIL),
        ("c", NETBACK | {"usr/sbin/xl": ""}, 0, Verdict.WARN),
    ):
        found = doctor.toolstack(made_up(tmp_path / name, files, domid))
        assert (found.verdict, "netback runs the scripts" in found.found) == (verdict, True)

    async def info(_: object) -> Info:
        return Info(
            protocol=VERSION, netback="9", domid=3, platform="xen", pid=1, devices=0, hotplug="netback"
        )

    machine = made_up(tmp_path / "d", devd, domid=3)
    async with serving(machine.runtime, {**CALLS, "info": info}):
        assert (await asyncio.to_thread(doctor.toolstack, machine)).verdict is Verdict.FAIL
    assert doctor.toolstack(machine).verdict is Verdict.OK


async def test_errors_and_quotas_of_the_running_backend(tmp_path: Path) -> None:
    """In a driver domain the store limits nodes and watches; each device that exceeds them reports it."""
    refused = "xenstore: WATCH /local/domain/3/x: E2BIG (the quota of watches of this domain is used up)"
    devices = [
        DeviceStatus(device="vif3.0", type="vif", domid=3, index="0", error=refused),
        DeviceStatus(device="vif4.0", type="vif", domid=4, index="0"),
    ]

    async def listed(_: object) -> Devices:
        return Devices(devices=devices)

    machine = made_up(tmp_path, {}, domid=5)
    async with serving(machine.runtime, {**CALLS, "list": listed}):
        found = await asyncio.to_thread(lambda: (doctor.running(machine), doctor.quotas(machine)))
        assert [finding.verdict for finding in found] == [Verdict.WARN, Verdict.WARN]
        assert "1 of 2 devices with an error, first vif3.0: xenstore: WATCH" in found[0].found
        assert "--watch-nb" in found[1].advice
        devices.pop(0)
        found = await asyncio.to_thread(lambda: (doctor.running(machine), doctor.quotas(machine)))
        assert [finding.verdict for finding in found] == [Verdict.OK, Verdict.OK]
    async with serving(machine.runtime):
        found = await asyncio.to_thread(lambda: (doctor.running(machine), doctor.quotas(machine)))
    assert [finding.verdict for finding in found] == [Verdict.FAIL, Verdict.WARN]
    assert doctor.running(machine).verdict is Verdict.WARN


def test_a_store_that_does_not_answer_stops_no_other_check(tmp_path: Path) -> None:
    def refused() -> int:
        raise PlatformError("the store is gone")

    findings = doctor.examine(Machine(tmp_path / "run", root=tmp_path, domid=refused))
    assert list(findings) == [name for name, _ in doctor.CHECKS]
    assert findings["store"].verdict is Verdict.FAIL
    assert findings["netback"].verdict is Verdict.WARN


async def test_a_line_for_each_device(xen: Path, backend: Backend, guest: Guest) -> None:
    name = await backend.attach(guest.domid, "null")
    await until_state(guest.store, name.backend, State.INIT_WAIT)
    machine = Machine(xen, root=xen)
    found = await asyncio.to_thread(doctor.devices, machine)
    assert found == {
        str(name): doctor.warn(
            "1 finding: The guest's frontend has not started: it is Initialising.", f"netback explain {name}"
        )
    }
    await guest.connect()
    found = await asyncio.to_thread(doctor.devices, machine)
    assert found[str(name)].verdict is Verdict.OK


async def test_no_line_for_a_device_of_qemu_itself(xen: Path, backend: Backend, guest: Guest) -> None:
    """Its default NIC in dom0 is left alone as soon as both ends are Connected; before, it lacks a MAC address."""
    name = await add(backend.store, guest.domid, kind="qnic", mac=None)
    machine = Machine(xen, root=xen)
    assert await until(backend.store, f"{name.errors}/error", bool)
    assert list(await asyncio.to_thread(doctor.devices, machine)) == [str(name)]
    await guest.set_state(State.CONNECTED)
    await backend.store.write(f"{name.backend}/state", str(int(State.CONNECTED)))
    await looked(backend, backend.devices[name], State.CONNECTED)
    assert await asyncio.to_thread(doctor.devices, machine) == {}
