# SPDX-License-Identifier: Apache-2.0
"""A VXLAN tunnel between another host and a guest, forwarded by dom0's bridge: ping and TCP through it, both ways.

The tunnel's frames arrive with blank inner checksums and uncut inner segments. netfront completes outermost checksums
only, so netback must complete and cut them, or netfront counts an error.
"""

from netback.lab.host import Lab
from netback.lab.netns import FAR, FAR_EXEC, far_host
from netback.lab.tools import iperf, serve_iperf, unharmed

INNER_FAR, INNER_GUEST = "10.6.0.1", "10.6.0.2"


async def run(lab: Lab) -> None:
    guest = await lab.create("g1")
    add = "link add vx type vxlan id 6 dstport 4789 local {} remote {}"
    async with far_host(lab):
        await guest(f"modprobe vxlan; /usr/bin/ip {add.format(guest.address, FAR)}; ip link set vx up")
        await guest(f"ip addr add {INNER_GUEST}/24 dev vx")
        await lab.dom0(f"ip -n far {add.format(FAR, guest.address)} && ip -n far link set vx up")
        await lab.dom0(f"ip -n far addr add {INNER_FAR}/24 dev vx")
        await lab.dom0(f"{FAR_EXEC} ping -c 3 -s 1300 {INNER_GUEST}")
        await guest(f"ping -c 3 -s 4000 {INNER_FAR}")
        await serve_iperf(guest)
        for way in ("", "-R"):
            flow = await iperf(guest, way, address=INNER_GUEST, where=FAR_EXEC)
            assert flow.bits > 5e6, f"TCP {way} through the tunnel: {flow}"
    await unharmed(guest)
