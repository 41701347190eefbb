# SPDX-License-Identifier: Apache-2.0
"""VLAN-tagged traffic both ways: ping and TCP over tag 5, whose checksums and segmentation netback completes."""

from netback.lab.lab import Lab
from netback.lab.measure import iperf, serve_iperf

SMOKE = True
NEAR, FAR = "10.5.0.1", "10.5.0.2"


async def run(lab: Lab) -> None:
    guest = await lab.create("g1")
    add = "ip link add link {0} name {0}.5 type vlan id 5; ip link set {0}.5 up; ip addr add {1}/24 dev {0}.5"
    await guest("modprobe 8021q; " + add.format("eth0", FAR))
    await lab.dom0(add.format("xenbr0", NEAR))
    try:
        await guest(f"ping -c 3 -s 1400 {NEAR}")
        await lab.dom0(f"ping -c 3 {FAR}")
        await serve_iperf(guest)
        for way in ("", "-R"):
            flow = await iperf(guest, way, address=FAR)
            assert flow.bits > 5e6, f"TCP {way} with a tag: {flow}"
    finally:
        await lab.dom0("ip link del xenbr0.5")
