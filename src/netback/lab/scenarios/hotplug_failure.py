# SPDX-License-Identifier: Apache-2.0
"""A bridge that does not exist: xl says so, netback leaves an error node and one useful line, and nothing is left."""

from netback.lab.lab import Lab

SMOKE = True


async def run(lab: Lab) -> None:
    guest = await lab.create("g1")
    seen = await lab.machine.run("xl network-attach g1 mac=00:16:3e:66:00:02 bridge=nosuch", seconds=90)
    assert seen.code != 0, "xl takes a bridge that does not exist"
    told = [line for line in lab.netback.log.splitlines() if "hotplug script failed" in line]
    assert len(told) == 1, f"netback said {told}"
    await lab.dom0(f"ping -c 3 {guest.address}")
