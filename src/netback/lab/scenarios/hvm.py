# SPDX-License-Identifier: Apache-2.0
"""An HVM guest, whose NIC is of two kinds: QEMU owns the emulated one's tap, netback serves the PV one's.

Linux unplugs the emulated NIC and uses xen-netfront: ping both ways. No load: nested virtualisation under software
emulation does not bear it.
"""

from netback.lab.lab import DOM0, Lab

SETTINGS = """
vga="none"
vnc=0
serial="file:/lab/consoles/hvm-serial.log"
"""


async def run(lab: Lab) -> None:
    guest = await lab.create("g1", kind="hvm", memory=512, settings=SETTINGS)
    kind = f"xenstore-read /local/domain/0/backend/vif/{guest.domid}/0/type"
    assert (await lab.dom0(kind)).strip() == "vif_ioemu"
    emulated = f"{guest.vif}-emu"
    assert await lab.succeeds(f"ip link show {guest.vif} && ip link show {emulated}")
    assert "driver: vif" in await guest("ethtool -i eth0")
    for size in (56, 4000):
        await lab.dom0(f"ping -c 5 -i 0.3 -s {size} {guest.address}")
        await guest(f"ping -c 3 -s {size} {DOM0}")
    (device,) = await lab.netback.list()
    assert device["network"] == guest.vif, device
    await guest.destroy()
    await lab.until(lambda: lab.succeeds("! ls /sys/class/net | grep -q ^vif"), "both links go")
