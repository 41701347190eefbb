# SPDX-License-Identifier: Apache-2.0
"""Ping and TCP over VLAN tag 5, both ways, with dom0 and with another host behind dom0's bridge.

netback completes checksums and segments: netfront takes no blank checksum behind a tag.
"""

from netback.lab.host import Guest, Lab
from netback.lab.netns import FAR_EXEC, far_host
from netback.lab.tools import iperf, serve_iperf, unharmed

DOM0_5, FAR_5, GUEST_5 = "10.5.0.1", "10.5.0.3", "10.5.0.2"
ADD = "ip link add link {0} name {0}.5 type vlan id 5; ip link set {0}.5 up; ip addr add {1}/24 dev {0}.5"


async def run(lab: Lab) -> None:
    guest = await lab.create("g1")
    await guest(f"modprobe 8021q; {ADD.format('eth0', GUEST_5)}")
    await serve_iperf(guest)
    await lab.dom0(ADD.format("xenbr0", DOM0_5))
    try:
        await passes(guest, DOM0_5, "")
    finally:
        await lab.dom0("ip link del xenbr0.5")
    async with far_host(lab):
        await lab.dom0(f"{FAR_EXEC} sh -c '{ADD.format('eth0', FAR_5)}'")
        await passes(guest, FAR_5, FAR_EXEC)
    await unharmed(guest)


async def passes(guest: Guest, near: str, where: str) -> None:
    await guest(f"ping -c 3 -s 1400 {near}")
    await guest.lab.dom0(f"{where} ping -c 3 {GUEST_5}")
    for way in ("", "-R"):
        flow = await iperf(guest, way, address=GUEST_5, where=where)
        assert flow.bits > 5e6, f"TCP {way} with a tag, {where or 'dom0'}: {flow}"
