# SPDX-License-Identifier: Apache-2.0
"""A driver domain without `xl devd`: netback runs the stock scripts itself and removes the devices' directories.

xl in dom0 runs no script for a vif with backend=driver, and on network-detach waits until the backend's directory is
gone. Must hold: the guest reaches the driver domain's bridge; after kill -9 no script runs again; a bridge that does
not exist is that vif's error alone; each vif gets one `online` and, when it goes, one `offline`; nothing is left.
"""

from netback.lab.host import BRIDGE, Guest, Lab
from netback.lab.runner import FAULTS
from netback.lab.scenarios.driver_domain import ADDRESS, KILL, has, start_driver, start_netback
from netback.lab.scenarios.hotplug_failure import REASON

MAC, OTHER_MAC = "00:16:3e:66:00:04", "00:16:3e:66:00:05"
OPTIONS = "--hotplug netback"
DONE = "/vif-bridge {} is done"


async def run(lab: Lab) -> None:
    other = await lab.create("g1")
    driver = await start_driver(lab)
    await start_netback(driver, OPTIONS)
    guest = await lab.create("g2", vif=(f"bridge={BRIDGE},backend=driver",), up=False)
    await guest.up(address="10.1.0.2")
    await guest(f"ping -c 3 {ADDRESS}")
    await driver(KILL)
    await start_netback(driver, OPTIONS)
    await guest(f"ping -c 3 {ADDRESS}")
    await lab.dom0(f"xl network-attach g2 mac={MAC} bridge={BRIDGE} backend=driver", seconds=90)
    await lab.until(lambda: has_run(driver, "online", 2), "the second vif's script has run")
    await lab.dom0(f"xl network-detach g2 {MAC}", seconds=90)
    await lab.until(lambda: has(driver, 1), "nothing is left of the vif that was detached")
    await lab.machine.run(f"xl network-attach g2 mac={OTHER_MAC} bridge=nosuch backend=driver", seconds=90)
    error = f"/local/domain/{driver.domid}/error/backend/vif/{guest.domid}/1/error"
    await lab.until(lambda: lab.succeeds(f"test \"$(xenstore-read {error})\" = '{REASON}'"), "the error node")
    await guest(f"ping -c 3 {ADDRESS}")
    await lab.dom0(f"xl network-detach g2 {OTHER_MAC}", seconds=90)
    await lab.until(lambda: has(driver, 1), "nothing is left of the vif that failed")
    await guest.destroy()
    await lab.until(lambda: has(driver, 0), "nothing is left of the guest")
    log = await driver("cat /tmp/netback.log")
    assert not any(fault in log for fault in FAULTS), log
    for action, times in (("add", 3), ("online", 2), ("offline", 2), ("remove", 3)):
        ran = log.count(DONE.format(action))
        assert ran == times, f"{action} ran {ran} times, not {times}: {log}"
    await driver.destroy()
    await other.reachable()


async def has_run(driver: Guest, action: str, times: int) -> bool:
    """Whether scripts have run so often with this argument."""
    return (await driver("cat /tmp/netback.log")).count(DONE.format(action)) >= times
