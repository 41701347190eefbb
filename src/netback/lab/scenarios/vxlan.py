# SPDX-License-Identifier: Apache-2.0
"""A VXLAN tunnel between dom0 and a guest: ping and TCP through it, both ways."""

from netback.lab.lab import DOM0, Lab
from netback.lab.measure import iperf, serve_iperf

NEAR, FAR = "10.6.0.1", "10.6.0.2"


async def run(lab: Lab) -> None:
    guest = await lab.create("g1")
    add = "/usr/bin/ip link add vx type vxlan id 6 dstport 4789 local {} remote {}; ip link set vx up"
    await guest("modprobe vxlan; " + add.format(guest.address, DOM0) + f"; ip addr add {FAR}/24 dev vx")
    await lab.dom0(add.format(DOM0, guest.address) + f"; ip addr add {NEAR}/24 dev vx")
    try:
        await guest(f"ping -c 3 -s 1300 {NEAR}")
        await serve_iperf(guest)
        for way in ("", "-R"):
            flow = await iperf(guest, way, address=FAR)
            assert flow.bits > 5e6, f"TCP {way} through the tunnel: {flow}"
    finally:
        await lab.dom0("ip link del vx")
