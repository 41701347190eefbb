# SPDX-License-Identifier: Apache-2.0
"""A driver domain: netback, a bridge and `xl devd` in a guest serve another guest's vif, with the stock scripts.

The driver domain boots dom0's system from its own disk. Must hold: a guest with backend=driver reaches the driver
domain's bridge, also after a kill -9 of netback there; network-detach and the guest's end leave neither tap nor node;
the driver domain's end does not affect a guest that dom0 serves.
"""

from netback.lab.host import BRIDGE, DOM0, Guest, Lab
from netback.lab.runner import FAULTS

ADDRESS = "10.1.0.1"
"""The driver domain's address on its bridge."""
MAC = "00:16:3e:66:00:03"
CONFIG = """
name="driver"
type="pv"
driver_domain=1
kernel="/lab/vmlinux"
ramdisk="/initrd.img"
extra="root=/dev/xvda rw console=hvc0 init=/lab-init quiet net.ifnames=0 mitigations=off -- guest"
memory=512
vcpus=1
disk=["/dev/vdc,raw,xvda,rw", "/dev/vdb,raw,xvdb,ro"]
"""
SETUP = f"""
set -e
mkdir -p /run/lock /run/xen /var/log/xen
modprobe -a xen-evtchn xen-gntdev xen-privcmd xenfs tun bridge
mount -t xenfs xenfs /proc/xen
ip link add {BRIDGE} type bridge
ip link set {BRIDGE} up
ip addr add {ADDRESS}/24 dev {BRIDGE}
"""
START = "setsid netback run {} >>/tmp/netback.log 2>&1 </dev/null & echo $! >/run/nb.pid"
KILL = "kill -9 $(cat /run/nb.pid); rm /run/netback/*.sock"


async def run(lab: Lab) -> None:
    other = await lab.create("g1")
    driver = await start_driver(lab)
    await driver("xl devd")
    await start_netback(driver)
    guest = await lab.create("g2", vif=(f"bridge={BRIDGE},backend=driver",), up=False)
    await guest.up(address="10.1.0.2")
    await guest(f"ping -c 3 {ADDRESS}")
    await driver(KILL)
    await start_netback(driver)
    await guest(f"ping -c 3 {ADDRESS}")
    await lab.dom0(f"xl network-attach g2 mac={MAC} bridge={BRIDGE} backend=driver", seconds=90)
    await lab.until(lambda: has(driver, 2), "the driver domain has a second vif")
    await lab.dom0(f"xl network-detach g2 {MAC}", seconds=90)
    await lab.until(lambda: has(driver, 1), "nothing is left of the vif that was detached")
    await guest.destroy()
    await lab.until(lambda: has(driver, 0), "nothing is left of the guest")
    log = await driver("cat /tmp/netback.log")
    assert not any(fault in log for fault in FAULTS), log
    await driver.destroy()
    await other(f"ping -c 3 {DOM0}")


async def start_driver(lab: Lab) -> Guest:
    """The guest "driver" with a bridge, without netback and without `xl devd`."""
    await lab.dom0("modprobe xen-blkback")
    (lab.machine.directory / "driver.cfg").write_text(CONFIG)
    await lab.dom0("xl create /lab/driver.cfg", seconds=120)
    driver = await lab.find("driver", 0)
    await driver(SETUP)
    return driver


async def start_netback(driver: Guest, options: str = "") -> None:
    await driver(START.format(options))
    await driver("until test -S /run/netback/control.sock; do sleep 0.1; done", seconds=90)


async def has(driver: Guest, vifs: int) -> bool:
    """Whether the driver domain has exactly `vifs` taps and backend directories."""
    taps = await driver("ls /sys/class/net | grep ^vif", check=False)
    nodes = await driver.lab.dom0(
        f"xenstore-ls -f /local/domain/{driver.domid}/backend/vif 2>/dev/null | grep /frontend-id",
        check=False,
    )
    return len(taps.split()) == len(nodes.splitlines()) == vifs
