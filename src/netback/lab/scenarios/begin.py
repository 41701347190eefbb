# SPDX-License-Identifier: Apache-2.0
"""netback's start: beside another netback, without one of Xen's devices, and on vifs in states 1, 2, 4 and 5.

A second netback and a missing device give one line and exit code 2, and doctor reports the same. Vifs continue from the
state in which they were found.
"""

import asyncio
import json

from netback.lab.host import BRIDGE, Lab

MAC = "00:16:3e:68:00:01"
DEVICES = {"/dev/xen/gntdev": "xen-gntdev", "/dev/xen/evtchn": "xen-evtchn"}
"""Devices that netback requires, each with its module."""


async def run(lab: Lab) -> None:
    guest = await lab.create("g1")
    assert "another netback serves domain 0" in await fails(lab)
    await lab.netback.stop()
    for device, module in DEVICES.items():
        await missing(lab, device, module)
    attach = f"xl network-attach g1 mac={MAC} bridge={BRIDGE}"
    backend = f"/local/domain/0/backend/vif/{guest.domid}/1"
    await found(lab, attach, backend, "1")
    await state(lab, backend, "4")
    await lab.dom0(f"ping -c 3 {guest.address}")  # the first vif was in state 4
    await lab.netback.stop()
    await found(lab, f"xl network-detach g1 {MAC}", backend, "5")
    await waiting(lab)


async def fails(lab: Lab, before: str = "", options: str = "") -> str:
    """Start netback, which must fail with exit code 2; returns its only line."""
    done = await lab.machine.run(f"{before} netback run {options}")
    output = (done.out + done.err).strip()
    assert done.code == 2, f"exit code {done.code}: {output}"
    assert len(output.splitlines()) == 1, output
    return output


async def missing(lab: Lab, device: str, module: str) -> None:
    """Start without a device, then with one that may not be opened."""
    await lab.dom0(f"mv {device} {device}.away")
    try:
        for output in (await fails(lab), await doctor(lab)):
            assert device in output, output
            assert module in output, output
    finally:
        await lab.dom0(f"mv {device}.away {device}")
    await lab.dom0(f"chmod 0 {device}")
    try:
        output = await fails(lab, "setpriv --bounding-set -dac_override,-dac_read_search")
    finally:
        await lab.dom0(f"chmod 600 {device}")
    assert f"no permission to open {device}" in output, output


async def doctor(lab: Lab) -> str:
    """The failed checks, as one text."""
    done = await lab.machine.run("netback doctor --json")
    assert done.code != 0, "doctor finds nothing wrong"
    wrong = [finding for finding in json.loads(done.out) if finding["verdict"] == "fail"]
    return json.dumps(wrong)


async def found(lab: Lab, command: str, backend: str, at: str) -> None:
    """Run an xl command that waits for a backend; start netback once the node has state `at`."""
    xl = asyncio.create_task(lab.dom0(command, seconds=90))
    await state(lab, backend, at)
    await lab.netback.start()
    await xl


async def waiting(lab: Lab) -> None:
    """A guest whose netfront loads late: its vif is in state 2."""
    late = await lab.create("g2", up=False, more="netback.nofront")
    backend = f"/local/domain/0/backend/vif/{late.domid}/0"
    await state(lab, backend, "2")
    await lab.netback.stop("KILL")
    await lab.netback.start()
    await late("modprobe xen-netfront")
    await late.up()
    await late.reachable()


async def state(lab: Lab, backend: str, wanted: str) -> None:
    await lab.until(
        lambda: lab.succeeds(f'test "$(xenstore-read {backend}/state)" = {wanted}'),
        f"{backend} is {wanted}",
        seconds=30,
    )
