# SPDX-License-Identifier: Apache-2.0
"""xl reboot under load, then xl shutdown: the guest returns with a new domid and its vif, and leaves nothing behind."""

import asyncio

from netback.lab.host import Guest, Lab
from netback.lab.tools import ping

SMOKE = True


async def run(lab: Lab) -> None:
    guest = await lab.create("g1")
    flood = asyncio.create_task(ping(guest, "-f -w 8"))
    await asyncio.sleep(1)
    await lab.dom0("xl reboot g1")
    await flood
    await lab.until(lambda: changed(lab, guest), "the guest has a new domid")
    again = await lab.find("g1", guest.number, up=True)
    await lab.dom0(f"ping -c 3 {again.address}")
    await lab.dom0("xl shutdown -w g1", seconds=180)
    await lab.until(
        lambda: lab.succeeds("! xenstore-list /local/domain/0/backend/vif 2>/dev/null | grep -q ."),
        "no vif is left",
    )


async def changed(lab: Lab, guest: Guest) -> bool:
    domid = (await lab.dom0("xl domid g1", check=False)).strip()
    return domid.isdigit() and int(domid) != guest.domid
