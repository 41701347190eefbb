# SPDX-License-Identifier: Apache-2.0
"""Debian's package is upgraded under transfers, removed and installed again with a guest connected, and purged.

systemd is dom0's init. Must hold: the upgrade restarts the service, and the transfers go on; the removal says in one
line which guest loses its network, stops the service, and changes no state; the guest goes on once the package is
installed and the service started again; purging leaves no file. By its name, the last scenario of its host.
"""

import asyncio

from netback.lab import package
from netback.lab.host import Guest, Lab
from netback.lab.machine import LabError
from netback.lab.scenarios.systemd import show, unchanged
from netback.lab.tools import know_each_other
from netback.lab.transfer import from_guest, to_guest

HOST = "systemd"
BACKEND = "none"  # systemd starts netback here
SIZE = 20_000_000
SLOW = "500kbit/s"
"""A rate at which a transfer lasts longer than dpkg, which takes a minute under software emulation."""
DPKG_SECONDS = 400
KEPT = ("/etc/netback/netback.toml", "/etc/netback/conf.d/50-added.toml", "/run/netback")


async def run(lab: Lab) -> None:
    if package.checkout() is None:
        raise LabError("a plain package has no scripts: run this from a checkout")
    guest = await lab.create("g1")
    await know_each_other(guest)
    await upgraded(lab, guest)
    await removed(lab, guest)
    await installed(lab, guest)
    await guest.destroy()
    await purged(lab)


async def upgraded(lab: Lab, guest: Guest) -> None:
    """The same package with a higher version."""
    version = f"{await installed_version(lab)}+lab1"
    made = lab.machine.directory / "upgrade.deb"
    await asyncio.to_thread(package.with_version, lab.machine.medium.package, version, made)
    await lab.netback(f"set {guest.vif} --tx-rate {SLOW} --rx-rate {SLOW}")
    transfers = [await to_guest(guest, SIZE, 7200), await from_guest(guest, SIZE, 7201)]
    before = await show(lab, "MainPID")
    output = await lab.dom0(f"dpkg --install /lab/{made.name} 2>&1", seconds=DPKG_SECONDS)
    assert all(transfer.going_on for transfer in transfers), "a transfer was over before the upgrade"
    assert "lose their network" not in output, output
    assert await installed_version(lab) == version
    assert await show(lab, "ActiveState") == "active"
    assert await show(lab, "MainPID") != before, "the upgrade did not restart the service"
    await unchanged(lab, guest)
    await lab.netback(f"set {guest.vif} --tx-rate none --rx-rate none")
    await asyncio.gather(*(transfer.finish() for transfer in transfers))


async def installed_version(lab: Lab) -> str:
    return (await lab.dom0("dpkg-query --show --showformat='${Version}' netback")).strip()


async def removed(lab: Lab, guest: Guest) -> None:
    await lab.netback("add --guest another --net null")
    output = await lab.dom0("apt-get remove -y netback 2>&1", seconds=DPKG_SECONDS)
    told = [line for line in output.splitlines() if "lose their network" in line]
    assert len(told) == 1, output
    assert f"{guest.name} ({guest.vif})" in told[0], told
    assert await show(lab, "ActiveState") == "inactive"
    assert not await lab.succeeds("command -v netback")
    await lab.dom0(" && ".join(f"test -e {path}" for path in KEPT))
    await unchanged(lab, guest)
    assert await lab.succeeds(f"ip link show {guest.vif}"), "the tap went with the package"
    assert not await lab.succeeds(f"ping -c 3 -W 1 {guest.address}"), "something else serves the guest"


async def installed(lab: Lab, guest: Guest) -> None:
    """The guest's rings continue where they were."""
    await lab.dom0("dpkg --install /mnt/netback.deb 2>&1", seconds=DPKG_SECONDS)
    await lab.dom0("systemctl start netback")
    await guest.reachable()
    await unchanged(lab, guest)
    await (await from_guest(guest, SIZE, 7202)).finish()


async def purged(lab: Lab) -> None:
    await lab.dom0("apt-get purge -y netback 2>&1", seconds=DPKG_SECONDS)
    # The kernel's own module, and systemd's and udev's records, the latter of the lab's disk and port.
    others = (
        "/usr/lib/modules",
        "/run/systemd",
        "/run/udev",
        "/lab",
        "/mnt",
        "/proc",
        "/sys",
        "/dev",
    )
    pruned = " -o ".join(f"-path {path}" for path in others)
    left = await lab.dom0(rf"find / \( {pruned} \) -prune -o -iname '*netback*' -print", seconds=DPKG_SECONDS)
    assert not left, f"the purge left {left}"
