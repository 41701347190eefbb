# SPDX-License-Identifier: Apache-2.0
"""netback stops in order and starts again under checksummed transfers: connections continue, no state changes."""

import asyncio

from netback.lab.host import Lab
from netback.lab.transfer import from_guest, to_guest

SMOKE = True
SIZE = 20_000_000


async def run(lab: Lab) -> None:
    guest = await lab.create("g1")
    for port, way in ((7000, to_guest), (7001, from_guest)):
        transfer = await way(guest, SIZE, port)
        await asyncio.sleep(1)
        await lab.netback.stop()
        assert transfer.going_on, "the transfer was over before the service stopped"
        state = await lab.dom0(f"xenstore-read /local/domain/0/backend/vif/{guest.domid}/0/state")
        assert state.strip() == "4", f"the end of the service changed our state to {state}"
        assert await lab.succeeds(f"ip link show {guest.vif}"), "the tap went with the service"
        await lab.netback.start()
        await transfer.finish()
    await lab.dom0(f"ping -c 3 {guest.address}")
