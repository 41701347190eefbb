# SPDX-License-Identifier: Apache-2.0
"""A PVH guest: ping both ways. No load, since emulated nested virtualisation crashes under it."""

from netback.lab.host import DOM0, Lab


async def run(lab: Lab) -> None:
    guest = await lab.create("g1", kind="pvh")
    for size in (56, 4000):
        await lab.dom0(f"ping -c 5 -i 0.3 -s {size} {guest.address}")
        await guest(f"ping -c 3 -s {size} {DOM0}")
