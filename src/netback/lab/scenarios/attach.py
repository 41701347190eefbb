# SPDX-License-Identifier: Apache-2.0
"""No toolstack: netback attach and detach on a real domain, for both device types."""

from netback.lab.lab import DOM0, Lab

SMOKE = True


async def run(lab: Lab) -> None:
    guest = await lab.create("g1", vif=())
    for kind in ("vif", "qnic"):
        name = (await lab.netback(f"attach g1 --type {kind} --net tap:nb0")).strip()
        await lab.dom0("ip link set nb0 master xenbr0 up")
        await guest.up(link="eth0")
        await guest.reachable()
        await guest(f"ping -c 3 -s 4000 {DOM0}")
        assert (await lab.netback("detach g1")).strip() == name
        await lab.until(
            lambda: lab.succeeds("! ip link show nb0 2>/dev/null"), "the tap goes with its device"
        )
        assert not (await lab.dom0(f"xenstore-ls /local/domain/0/backend/{kind} 2>/dev/null || true")).strip()
