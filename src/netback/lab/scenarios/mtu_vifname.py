# SPDX-License-Identifier: Apache-2.0
"""Jumbo frames: two vifs on a bridge of MTU 9000, one with `mtu=`, one whose tap the script renames (`vifname=`).

Both taps and both frontends' `mtu` nodes have the MTU. The stock set_mtu writes the node, but with `vifname` to a
path made from that name. Unfragmented pings and TCP pass both ways. The renamed tap is the same link after kill -9
and is removed with its vif.
"""

from netback.lab.host import Guest, Lab
from netback.lab.tools import iperf, serve_iperf, unharmed

PLAIN, NAMED = ("10.9.0.1", "10.9.0.2"), ("10.9.1.1", "10.9.1.2")
"""(dom0's address, the guest's address) of each vif."""
NAME = "web0"


async def run(lab: Lab) -> None:
    await lab.dom0(
        "ip link add jumbo0 type bridge && ip link set jumbo0 mtu 9000 && ip link set jumbo0 up"
        f" && ip addr add {PLAIN[0]}/24 dev jumbo0 && ip addr add {NAMED[0]}/24 dev jumbo0"
    )
    try:
        guest = await lab.create(
            "g1", vif=("bridge=jumbo0,mtu=9000", f"bridge=jumbo0,vifname={NAME}"), up=False
        )
        await serve_iperf(guest)
        for index, (link, (near, far)) in enumerate({guest.vif: PLAIN, NAME: NAMED}.items()):
            await guest.up(f"eth{index}", far)
            await jumbo(guest, index, link, near, far)
        await unharmed(guest)
        await stays(lab, guest)
        await lab.dom0("xl network-detach g1 1", seconds=90)
        await lab.until(lambda: lab.succeeds(f"! ip link show {NAME} 2>/dev/null"), "the renamed tap goes")
    finally:
        await lab.dom0(f"xl destroy g1; ip link del jumbo0; xenstore-rm /local/domain/{NAME}", check=False)
    await lab.dom0(f"! ip link show {NAME} 2>/dev/null")


async def jumbo(guest: Guest, index: int, link: str, near: str, far: str) -> None:
    """Check the tap's and the frontend's MTU, and pass frames of that size."""
    lab = guest.lab
    published = await lab.dom0(
        f"xenstore-read /local/domain/{guest.domid}/device/vif/{index}/mtu", check=False
    )
    tap = await lab.dom0(f"cat /sys/class/net/{link}/mtu")
    assert (tap.strip(), published.strip()) == ("9000", "9000"), (
        f"{link} has MTU {tap!r}, its frontend reads {published!r}"
    )
    await guest(f"ip link set eth{index} mtu 9000")
    await lab.dom0(f"ping -c 3 -M do -s 8972 {far}")
    await guest(f"/usr/bin/ping -c 3 -M do -s 8972 {near}")
    for way in ("", "-R"):
        flow = await iperf(guest, way, address=far)
        assert flow.bits > 20e6, f"TCP {way} with MTU 9000: {flow}"


async def stays(lab: Lab, guest: Guest) -> None:
    """Kill and start netback: the renamed tap stays the same link."""
    index = f"cat /sys/class/net/{NAME}/ifindex"
    before = await lab.dom0(index)
    await lab.netback.stop("KILL")
    await lab.netback.start()
    await guest.reachable(NAMED[1])
    assert await lab.dom0(index) == before
    await lab.dom0(f"! ip link show vif{guest.domid}.1 2>/dev/null")
