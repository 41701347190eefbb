# SPDX-License-Identifier: Apache-2.0
"""A Linux guest attaches and detaches XDP programs under load: netfront asks for headroom, and no connection ends.

Checksummed transfers run both ways meanwhile, and a kill -9 falls into the time in which the headroom is in force. A
program that drops every frame shows that the guest's own program sees the frames: no echo comes while it is attached.
"""

import asyncio

from netback.lab.host import Guest, Lab
from netback.lab.tools import ping
from netback.lab.transfer import from_guest, to_guest

ROUNDS = (4, 20)
SIZE = 20_000_000
XDP = "python3 -P -m netback.lab.inside.xdp eth0"


async def run(lab: Lab, rounds: int) -> None:
    guest = await lab.create("g1", python=True)
    transfers = [await to_guest(guest, SIZE, 7000), await from_guest(guest, SIZE, 7001)]
    for number in range(rounds):
        attached = asyncio.create_task(guest(f"{XDP} pass 3", seconds=60))
        await headroom(guest, "256")
        if number % 2:
            await lab.netback.stop("KILL")
            await lab.netback.start()
        await attached
        await headroom(guest, "0")
    for transfer in transfers:
        await transfer.finish()
    await guest.reachable()
    dropping = asyncio.create_task(guest(f"{XDP} drop 12", seconds=60))
    await headroom(guest, "256")
    echoes = await ping(guest, "-c 5 -i 0.2 -W 1")
    assert echoes.received == 0, f"the guest's program drops every frame, but answered: {echoes}"
    await dropping
    await headroom(guest, "0")
    await guest.reachable()
    (device,) = await lab.netback.list()
    assert (device["backend"], device["frontend"], device["error"]) == ("Connected", "Connected", None), (
        device
    )
    # netfront counts frames that a program drops, and those of several slots while one is attached, as rx_errors
    assert device["counters"]["tx_errors"] == device["counters"]["rx_errors"] == 0, device["counters"]


async def headroom(guest: Guest, value: str) -> None:
    """Wait until netfront asked for this many bytes and both ends are Connected again."""
    vif = f"/local/domain/{guest.domid}/device/vif/0"
    states = f"/local/domain/0/backend/vif/{guest.domid}/0/state {vif}/state"
    wanted = f'[ "$(echo $(xenstore-read {vif}/xdp-headroom {states}))" = "{value} 4 4" ]'
    await guest.lab.until(lambda: guest.lab.succeeds(wanted), f"netfront asks for {value} bytes of headroom")
