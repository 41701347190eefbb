# SPDX-License-Identifier: Apache-2.0
"""systemd is dom0's init: the packaged unit serves a guest through reload, restart, stop and start, and kill -9.

The unit is installed unchanged, with the modprobe file against the kernel's backend, beside Debian's xen and
xendomains services and udev. Must also hold: the service is ready before xendomains starts; the guest's connection
continues and no state changes; while systemd holds the taps a kill loses at most one of ten echoes per second, idle
and under load, in either direction; nothing grows, and nothing is left of a guest after its end.
"""

import asyncio
import json
import re
from collections.abc import Callable, Coroutine

from netback.lab.host import DOM0, Guest, Lab
from netback.lab.tools import held, know_each_other
from netback.lab.transfer import from_guest, to_guest

Ask = Callable[..., Coroutine[None, None, str]]
"""A command runner: `lab.dom0` or a guest."""

HOST = "systemd"
BACKEND = "none"  # systemd starts netback here
ROUNDS = (3, 10)
SIZE = 20_000_000
EXPOSURE = 20
"""The highest exposure that `systemd-analyze security` may report, in tenths."""


async def run(lab: Lab, rounds: int) -> None:
    await started(lab)
    await confined(lab)
    await claimed(lab)
    guest = await lab.create("g1")
    await know_each_other(guest)
    await checked(lab)
    for number, verbs in enumerate((("reload",), ("restart",), ("stop", "start"))):
        await undisturbed(lab, guest, verbs, 7000 + 2 * number)
    await killed(lab, guest)
    before = await open_and_mapped(lab, guest)
    for _ in range(rounds):
        await killed(lab, guest)
    after = await open_and_mapped(lab, guest)
    assert after == before, f"after {rounds} kills {after}, before {before}"
    await killed_under_load(lab, guest)
    assert await show(lab, "NRestarts") == str(rounds + 2), "something else ended the service"
    await guest.destroy()
    await lab.until(lambda: nothing_held(lab), "systemd holds no tap of a guest that went")


async def show(lab: Lab, fact: str, unit: str = "netback") -> str:
    return (await lab.dom0(f"systemctl show --value --property={fact} {unit}")).strip()


async def started(lab: Lab) -> None:
    """The service logged that it serves before xendomains started."""
    assert await show(lab, "ActiveState") == "active", await lab.dom0("systemctl status netback", check=False)
    assert (await show(lab, "StatusText")).startswith("domain 0: ")
    ready = int(await show(lab, "ActiveEnterTimestampMonotonic"))
    began = int(await show(lab, "InactiveExitTimestampMonotonic", "xendomains"))
    assert ready < began, f"ready at {ready}, while xendomains began at {began}"
    journal = await lab.dom0("journalctl -u netback -o json --output-fields=PRIORITY,MESSAGE")
    entries = [(entry["PRIORITY"], entry["MESSAGE"]) for entry in map(json.loads, journal.splitlines())]
    greeting = re.compile(r"netback: serving domain 0 on Xen 4\.\d+, runtime files in /run/netback")
    assert any(priority == "6" and greeting.fullmatch(text) for priority, text in entries), journal


async def confined(lab: Lab) -> None:
    """systemd-analyze finds no error in the unit and a low exposure."""
    unit = "/usr/lib/systemd/system/netback.service"
    complaints = await lab.dom0(f"systemd-analyze verify {unit} 2>&1")
    assert "netback.service" not in complaints, complaints
    await lab.dom0(f"systemd-analyze security --no-pager --threshold={EXPOSURE} netback.service")


async def claimed(lab: Lab) -> None:
    """udev does not load the kernel's backend; doctor reports one loaded by hand."""
    assert not await lab.succeeds("modprobe xen-netback")
    assert (await findings(lab))["vifs"]["verdict"] == "ok"
    await lab.dom0("modprobe --ignore-install xen-netback")
    assert (await findings(lab))["vifs"]["verdict"] == "fail"
    await lab.dom0("modprobe -r xen-netback")


async def findings(lab: Lab) -> dict[str, dict[str, str]]:
    """doctor's findings by check."""
    text = await lab.dom0("netback doctor --json", check=False)
    return {finding["check"]: finding for finding in json.loads(text)}


async def checked(lab: Lab) -> None:
    """Every line of doctor is right; Debian's xen.service runs a QEMU in dom0 that would serve qnics."""
    verdicts = {name: finding["verdict"] for name, finding in (await findings(lab)).items()}
    assert verdicts.pop("qnics") == "warn"
    assert set(verdicts.values()) == {"ok"}, verdicts


async def undisturbed(lab: Lab, guest: Guest, verbs: tuple[str, ...], port: int) -> None:
    """Run transfers both ways during systemctl commands."""
    transfers = [await to_guest(guest, SIZE, port), await from_guest(guest, SIZE, port + 1)]
    for verb in verbs:
        await lab.dom0(f"systemctl {verb} netback")
        await unchanged(lab, guest)
    await asyncio.gather(*(transfer.finish() for transfer in transfers))


async def unchanged(lab: Lab, guest: Guest) -> None:
    state = (await lab.dom0(f"xenstore-read /local/domain/0/backend/vif/{guest.domid}/0/state")).strip()
    assert state == "4", f"the guest's device is in state {state}"
    assert (await guest("cat /sys/class/net/eth0/carrier")).strip() == "1"


async def killed(lab: Lab, guest: Guest) -> None:
    """kill -9 while dom0 and the guest ping each other ten times a second."""
    ends: tuple[tuple[Ask, str], ...] = (lab.dom0, guest.address), (guest, DOM0)
    before = [await echoes(ask) for ask, _ in ends]
    asked = [
        asyncio.create_task(ask(f"/usr/bin/ping -q -i 0.1 {address}", seconds=180)) for ask, address in ends
    ]
    await asyncio.sleep(2)
    process = await show(lab, "MainPID")
    await lab.dom0("systemctl kill --kill-whom=main --signal=KILL netback")
    await lab.until(lambda: serves_again(lab, process), "the service runs again")
    await asyncio.sleep(3)
    for ask, _ in ends:
        await ask("busybox killall -INT ping; sleep 1")
    await asyncio.gather(*asked)
    for (sent, came), (ask, address) in zip(before, ends, strict=True):
        sent_now, came_now = await echoes(ask)
        lost, total = (sent_now - sent) - (came_now - came), sent_now - sent
        assert total > 20, f"only {total} echoes went to {address}"
        assert lost <= 1, f"a kill cost {lost} of {total} echoes to {address}"
    await unchanged(lab, guest)


async def echoes(ask: Ask) -> tuple[int, int]:
    """(echo requests sent, replies received), from the kernel's counters.

    ping's own count is too low: a start takes seconds under emulation, and of the replies that then arrive at once
    ping's socket holds only about 28.
    """
    names, values = (line.split() for line in (await ask("grep ^Icmp: /proc/net/snmp")).splitlines())
    counts = dict(zip(names, values, strict=True))
    return int(counts["OutEchos"]), int(counts["InEchoReps"])


async def serves_again(lab: Lab, before: str) -> bool:
    return await show(lab, "ActiveState") == "active" and await show(lab, "MainPID") != before


async def killed_under_load(lab: Lab, guest: Guest) -> None:
    transfers = [await to_guest(guest, SIZE, 7100), await from_guest(guest, SIZE, 7101)]
    await killed(lab, guest)
    await asyncio.gather(*(transfer.finish() for transfer in transfers))


async def open_and_mapped(lab: Lab, guest: Guest) -> dict[str, int]:
    """Counts of what could leak from one process to the next."""
    await lab.dom0("systemctl show --value --property=MainPID netback > /run/nb.pid")
    return await held(lab) | {"held by systemd": int(await show(lab, "NFileDescriptorStore"))}


async def nothing_held(lab: Lab) -> bool:
    return await show(lab, "NFileDescriptorStore") == "0"
