# SPDX-License-Identifier: Apache-2.0
"""kill -9 under load: checksummed transfers both ways with two guests survive every kill.

Held besides: no state changes at either end, also when a kill falls on idle rings and on a guest that is paused and so
takes nothing. Each stall is the time from the new process's first line to the first ping that comes through, since
Python's own start takes seconds under software emulation.
"""

import asyncio
import itertools
import statistics
import time

from netback.lab.lab import Guest, Lab
from netback.lab.machine import LabError
from netback.lab.transfer import Transfer, from_guest, to_guest

SMOKE = True
ROUNDS = (10, 100)
SIZE = 40_000_000
"""Bytes of a transfer; new ones follow while there are kills to come."""
STALL_SECONDS = 1.0


async def run(lab: Lab, rounds: int) -> None:
    guests = [await lab.create(name) for name in ("g1", "g2")]
    ports = itertools.count(7000)
    under_way: list[Transfer] = []
    stalls = []
    for number in range(rounds):
        for start, guest in itertools.product((to_guest, from_guest), guests):
            if not any(one.going_on for one in under_way if (one.guest, one.kind) == (guest, start)):
                under_way.append(await start(guest, SIZE, next(ports)))
        await asyncio.sleep(0.2 * (number % 4))
        stalls.append(await kill_and_start(lab, guests[number % 2]))
        await settle(under_way)
    for transfer in under_way:
        await transfer.finish()
    stalls.append(await kill_and_start(lab, guests[0]))
    await stalled(lab, guests[1])
    usual = statistics.median(stalls)
    assert usual < STALL_SECONDS, f"from a start to a ping it took {usual:.2f} s, {max(stalls):.2f} at most"
    for device in await lab.netback.list():
        assert (device["backend"], device["frontend"], device["error"]) == ("Connected", "Connected", None), (
            device
        )
    await unchanged(guests)


async def settle(under_way: list[Transfer]) -> None:
    """Those that ended were whole."""
    for transfer in [one for one in under_way if not one.going_on]:
        await transfer.finish()
        under_way.remove(transfer)


async def kill_and_start(lab: Lab, guest: Guest) -> float:
    """Seconds from when the new process serves to when a ping comes back."""
    await lab.netback.stop("KILL")
    await lab.netback.start()
    start = time.monotonic()
    # one after the other: a single one with a deadline ends at once where ARP has given up meanwhile
    again = f"i=0; until ping -c 1 -W 0.3 {guest.address}; do i=$((i+1)); [ $i -lt 60 ] || exit 1; done"
    if not await lab.succeeds(again):
        raise LabError(f"{guest.name} does not answer after kill -9 and start")
    return time.monotonic() - start


async def stalled(lab: Lab, guest: Guest) -> None:
    """The guest is paused while frames for it come in, and the backend dies then."""
    await lab.dom0(f"xl pause {guest.name}")
    await lab.dom0(f"ping -f -c 600 -w 3 {guest.address}", check=False)
    await lab.netback.stop("KILL")
    await lab.netback.start()
    await lab.dom0(f"xl unpause {guest.name}")
    await guest.reachable()


async def unchanged(guests: list[Guest]) -> None:
    """Linux's netfront says so when it connects anew."""
    for guest in guests:
        assert (await guest("cat /sys/class/net/eth0/carrier")).strip() == "1"
        assert "Disabled" not in await guest("dmesg | grep -i vif || true")
