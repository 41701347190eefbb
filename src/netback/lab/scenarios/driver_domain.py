# SPDX-License-Identifier: Apache-2.0
"""A driver domain: netback, a bridge and `xl devd` in a guest serve another guest's vif, with the stock scripts.

The driver domain boots dom0's own system from a disk of its own. Must hold: a guest with backend=driver reaches the driver
domain's bridge, also after a kill -9 of netback there; network-detach and the guest's end leave neither tap nor node; the
end of the driver domain leaves a guest of dom0's alone.
"""

from netback.lab.lab import BRIDGE, DOM0, Guest, Lab

ADDRESS = "10.1.0.1"
"""The driver domain's own, on its bridge."""
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
xl devd
"""
START = "setsid /opt/netback/bin/netback run >>/tmp/netback.log 2>&1 </dev/null & echo $! >/run/nb.pid"


async def run(lab: Lab) -> None:
    other = await lab.create("g1")
    driver = await start_driver(lab)
    await start_netback(lab, driver)
    guest = await lab.create("g2", vif=(f"bridge={BRIDGE},backend=driver",), up=False)
    await guest.up(address="10.1.0.2")
    await reaches(lab, guest)
    await driver("kill -9 $(cat /run/nb.pid); rm /run/netback/*.sock")
    await start_netback(lab, driver)
    await reaches(lab, guest)
    await lab.dom0(f"xl network-attach g2 mac={MAC} bridge={BRIDGE} backend=driver", seconds=90)
    assert await left(driver) == {"vif": 2, "state": 2}
    await lab.dom0(f"xl network-detach g2 {MAC}", seconds=90)
    await lab.until(lambda: has_left(driver, 1), "nothing is left of the vif that was detached")
    await lab.dom0("xl shutdown -F -w g2", seconds=120)
    await lab.until(lambda: has_left(driver, 0), "nothing is left of the guest in the driver domain")
    await driver.destroy()
    await other(f"ping -c 3 {DOM0}")


async def start_driver(lab: Lab) -> Guest:
    await lab.dom0("modprobe xen-blkback")
    (lab.machine.directory / "driver.cfg").write_text(CONFIG)
    await lab.dom0("xl create /lab/driver.cfg", seconds=120)
    driver = await lab.find("driver", 0)
    await driver(SETUP)
    return driver
