# SPDX-License-Identifier: Apache-2.0
"""A bridge that does not exist: xl says so, netback leaves an error node and one useful line, and nothing is left."""

import asyncio

from netback.lab.lab import Lab

SMOKE = True


async def run(lab: Lab) -> None:
    guest = await lab.create("g1")
    errors = f"/local/domain/0/error/backend/vif/{guest.domid}/1"
    # the watch's first event comes at once, the next when the node is written, which libxl's cleaning up follows soon
    node = asyncio.create_task(lab.dom0(f"xenstore-watch -n 2 {errors} && xenstore-read {errors}/error"))
    seen = await lab.machine.run("xl network-attach g1 mac=00:16:3e:66:00:02 bridge=nosuch", seconds=90)
    assert seen.code != 0, "xl takes a bridge that does not exist"
    assert "the hotplug script failed: Could not find bridge device nosuch" in await node
    told = [line for line in lab.netback.log.splitlines() if "hotplug script failed" in line]
    assert len(told) == 1, f"netback said {told}"
    await lab.dom0(f"ping -c 3 {guest.address}")
