# SPDX-License-Identifier: Apache-2.0
"""The service stops in order and starts again under iperf3: the guest's connection goes on, no state changes."""

import asyncio

from netback.lab.lab import Lab
from netback.lab.measure import iperf, serve_iperf

SMOKE = True


async def run(lab: Lab) -> None:
    guest = await lab.create("g1")
    await serve_iperf(guest)
    for way in ("", "-R"):
        load = asyncio.create_task(iperf(guest, way, seconds=15, tries=1))
        await asyncio.sleep(2)
        await lab.netback.stop()
        state = await lab.dom0(f"xenstore-read /local/domain/0/backend/vif/{guest.domid}/0/state")
        assert state.strip() == "4", f"the end of the service changed our state to {state}"
        assert await lab.succeeds(f"ip link show {guest.vif}"), "the tap went with the service"
        await lab.netback.start()
        flow = await load
        assert flow.bits > 10e6, f"TCP {way} over a restart: {flow}"
    await lab.dom0(f"ping -c 3 {guest.address}")
