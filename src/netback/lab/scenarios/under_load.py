# SPDX-License-Identifier: Apache-2.0
"""xl commands while TCP runs both ways: network-attach and -detach, pause and unpause, then shutdown or destroy.

The second vif carries its own load when it is detached. After each guest no link, node, port, mapped grant or
descriptor of it is left.
"""

from netback.lab.host import BRIDGE, Guest, Lab
from netback.lab.tools import held, serve_iperf

MAC = "00:16:3e:66:00:07"
DOM0_7, GUEST_7 = "10.7.0.1", "10.7.0.2"


async def run(lab: Lab) -> None:
    await lab.dom0(f"ip addr add {DOM0_7}/24 dev {BRIDGE}")
    try:
        await life(lab, "xl shutdown -w g1")
        before = await held(lab)
        await life(lab, "xl destroy g1")
        after = await held(lab)
        assert after == before, f"after the guest's end {after}, before it {before}"
    finally:
        await lab.dom0(f"ip addr del {DOM0_7}/24 dev {BRIDGE}; pkill -x iperf3", check=False)


async def life(lab: Lab, end: str) -> None:
    """One guest from start to end."""
    guest = await lab.create("g1")
    await serve_iperf(guest)
    await load(lab, guest.address)
    await attach_and_detach(lab, guest)
    await lab.dom0("xl pause g1")
    await lab.dom0(f"ping -c 3 -W 1 {guest.address}", check=False)
    await lab.dom0("xl unpause g1")
    await guest.reachable()
    await lab.dom0(end, seconds=120)
    await lab.until(lambda: gone(lab, guest.vif), "the guest's link and nodes go")


async def load(lab: Lab, address: str) -> None:
    """Start TCP both ways for longer than the guest lives."""
    started = f"ss -tn dst {address} | grep -q ESTAB"
    await lab.dom0(f"setsid timeout 300 iperf3 -c {address} -t 280 --bidir >/dev/null 2>&1 </dev/null &")
    await lab.until(lambda: lab.succeeds(started), f"there is load for {address}")


async def attach_and_detach(lab: Lab, guest: Guest) -> None:
    await lab.dom0(f"xl network-attach g1 mac={MAC} bridge={BRIDGE}", seconds=90)
    await guest.up("eth1", GUEST_7)
    await lab.dom0(f"ping -c 3 {GUEST_7}")
    await lab.dom0(f"ping -f -w 100 {GUEST_7} >/dev/null 2>&1 </dev/null &")
    await lab.dom0(f"xl network-detach g1 {MAC}", seconds=90)
    await lab.until(lambda: gone(lab, f"vif{guest.domid}.1"), "the second vif goes")
    await guest("! ip link show eth1 2>/dev/null")


async def gone(lab: Lab, vif: str) -> bool:
    """Whether link and backend nodes of vifD.I exist."""
    domid, _, index = vif.removeprefix("vif").partition(".")
    return await lab.succeeds(
        f"! ip link show {vif} 2>/dev/null && ! xenstore-exists /local/domain/0/backend/vif/{domid}/{index}"
    )
