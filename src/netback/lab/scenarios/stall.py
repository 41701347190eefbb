# SPDX-License-Identifier: Apache-2.0
"""A Linux guest that stops taking frames is declared stalled, loses its carrier, and comes back by itself.

`xl pause` stops the guest with its rings as they are, so it is a driver that works and takes nothing. With a stall time
of a few seconds its link loses the carrier, the log and `netback list` say so, and the bridge sends nothing more. After
`xl unpause` the carrier is back and frames flow both ways, with no state changed at either end. Each frame that netback
took from the link was delivered, or counted as expired.
"""

import asyncio
import re
from typing import Any

from netback.lab.host import Guest, Lab
from netback.lab.machine import LabError
from netback.lab.tools import know_each_other, unharmed
from netback.lab.transfer import from_guest, to_guest

CONFIG = "rx_drain_seconds = 2\nrx_stall_seconds = 6\n"
SIZE = 20_000_000


async def run(lab: Lab) -> str:
    (lab.machine.directory / "stall.toml").write_text(CONFIG)
    lab.netback.options = "--config /lab/stall.toml"
    await again(lab)
    try:
        guest = await lab.create("g1")
        await know_each_other(guest)
        return await stall(lab, guest)
    finally:
        lab.netback.options = ""
        await again(lab)


async def again(lab: Lab) -> None:
    """Restart netback with its present options."""
    await lab.netback.stop()
    await lab.netback.start()


async def stall(lab: Lab, guest: Guest) -> str:
    taken, before = await counted(guest)
    assert (before["stalled"], await carrier(guest)) == (None, "1"), before
    await lab.dom0("xl pause g1")
    # without answers `ping -f` sends 100 frames per second: the guest's 256 slots end in seconds
    flood = asyncio.create_task(lab.dom0(f"ping -q -f -w 60 {guest.address}", seconds=90, check=False))
    await lab.until(lambda: is_stalled(guest, True), "the guest is stalled", seconds=60)
    assert await carrier(guest) == "0"
    assert f"{guest.vif}: the guest is stalled: it takes no frames; carrier off" in lab.netback.log
    assert re.search(r"stalled for \d+ s", await lab.netback("list"))
    await lab.dom0("pkill -INT -x ping", check=False)
    await flood
    await lab.until(lambda: forwards(guest, False), "the bridge sends it nothing more")
    await lab.dom0("xl unpause g1")
    await lab.until(lambda: is_stalled(guest, False), "the guest takes frames again")
    assert await carrier(guest) == "1"
    await lab.until(lambda: forwards(guest, True), "the bridge sends it frames again")
    await guest.reachable()
    expired = await balanced(guest, taken, before)
    for transfer in (await to_guest(guest, SIZE, 7000), await from_guest(guest, SIZE, 7001)):
        await transfer.finish()
    await unharmed(guest)
    assert "Disabled" not in await guest("dmesg | grep -i vif || true"), "netfront connected again"
    assert lab.netback.log.count(f"{guest.vif}: the guest takes frames again") == 1
    return f"({expired} frames expired)"


async def counted(guest: Guest) -> tuple[int, dict[str, Any]]:
    """How many frames netback has taken from the link (a tap counts what is read), and its status of the device at that
    time.
    """
    for _ in range(20):
        (before,) = await guest.lab.netback.list()
        taken = int(await guest.lab.dom0(f"cat /sys/class/net/{guest.vif}/statistics/tx_packets"))
        (after,) = await guest.lab.netback.list()
        if ended(before) == ended(after):
            return taken, after
    raise LabError("frames pass all the time")


def ended(device: dict[str, Any]) -> int:
    """The frames from the link that were delivered or expired."""
    counters = device["counters"]
    return int(counters["rx_frames"] + counters["rx_expired"])


async def carrier(guest: Guest) -> str:
    return (await guest.lab.dom0(f"cat /sys/class/net/{guest.vif}/carrier")).strip()


async def is_stalled(guest: Guest, wanted: bool) -> bool:
    (device,) = await guest.lab.netback.list()
    return (device["stalled"] is not None) is wanted


async def forwards(guest: Guest, wanted: bool) -> bool:
    """Whether the bridge sends frames to the guest's link: a port without a carrier is disabled (if_link.h: 0, 3)."""
    state = await guest.lab.dom0(f"cat /sys/class/net/{guest.vif}/brport/state")
    return state.strip() == ("3" if wanted else "0")


async def balanced(guest: Guest, taken: int, before: dict[str, Any]) -> int:
    """Wait until each frame that was taken from the link since then is delivered or expired; returns the expired."""
    expired = 0

    async def agree() -> bool:
        nonlocal expired
        now, device = await counted(guest)
        expired = device["counters"]["rx_expired"] - before["counters"]["rx_expired"]
        return expired > 0 and now - taken == ended(device) - ended(before)

    await guest.lab.until(agree, "every frame from the link is delivered or counted as expired", seconds=60)
    return expired
