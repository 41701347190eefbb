# SPDX-License-Identifier: Apache-2.0
"""kill -9 under load: checksummed transfers both ways with two guests survive every kill.

Must also hold: no state changes at either end, also when the kill meets idle rings or a paused guest that takes no
frames. A stall is the time from the new process's first log line to the first echo, by dom0's clock: the start of
Python itself takes seconds under software emulation.
"""

import asyncio
import itertools
import re
import statistics
from datetime import UTC, datetime

from netback.lab.host import Guest, Lab
from netback.lab.machine import LabError
from netback.lab.tools import know_each_other
from netback.lab.transfer import Transfer, from_guest, to_guest

SMOKE = True
ROUNDS = (10, 100)
SIZE = 40_000_000
"""Bytes of one transfer; another one follows while kills remain."""
STALL_SECONDS = 1.0


async def run(lab: Lab, rounds: int) -> str:
    guests = [await lab.create(name) for name in ("g1", "g2")]
    for guest in guests:
        await know_each_other(guest)
    ports = itertools.count(7000)
    under_way: list[Transfer] = []
    stalls = []
    for number in range(rounds):
        for start, guest in itertools.product((to_guest, from_guest), guests):
            if not any(one.going_on for one in under_way if (one.guest, one.kind) == (guest, start)):
                under_way.append(await start(guest, SIZE, next(ports)))
        await asyncio.sleep(0.2 * (number % 4))
        stalls.append(await kill_and_start(lab, guests[number % 2]))
        await renew(under_way)
    for transfer in under_way:
        await transfer.finish()
    stalls.append(await kill_and_start(lab, guests[0]))
    await stalled(lab, guests[1], next(ports))
    figures = f"{statistics.median(stalls):.2f} s as the median of {len(stalls)}, {max(stalls):.2f} at most"
    assert statistics.median(stalls) < STALL_SECONDS, f"the stalls were {figures}"
    for device in await lab.netback.list():
        assert (device["backend"], device["frontend"], device["error"]) == ("Connected", "Connected", None), (
            device
        )
    await unchanged(guests)
    return f"(stalls: {figures})"


async def renew(under_way: list[Transfer]) -> None:
    """Start a new transfer for each that ended; the ended ones must be whole."""
    for transfer in [one for one in under_way if not one.going_on]:
        await transfer.finish()
        under_way.remove(transfer)


async def kill_and_start(lab: Lab, guest: Guest) -> float:
    """Kill and start netback during a ping; returns the stall in seconds."""
    pinging = asyncio.create_task(lab.dom0(f"ping -D -i 0.1 -w 90 {guest.address}", seconds=120, check=False))
    await lab.netback.stop("KILL")
    await lab.netback.start()
    await guest.reachable()
    await lab.dom0("pkill -INT -x ping", check=False)
    began = began_at(lab.netback.log)
    came = [float(at) for at in re.findall(r"^\[([\d.]+)\] \d+ bytes", await pinging, re.MULTILINE)]
    after = [at - began for at in came if at > began]
    if not after:
        raise LabError(f"{guest.name} does not answer after kill -9 and start")
    return after[0]


def began_at(log: str) -> float:
    """The time of the last process's first log line, in seconds since the epoch."""
    line = next(line for line in reversed(log.splitlines()) if "serving domain" in line)
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").replace(tzinfo=UTC).timestamp()


async def stalled(lab: Lab, guest: Guest, port: int) -> None:
    """Kill the backend while the guest is paused in a transfer and more frames for it arrive."""
    transfer = await to_guest(guest, SIZE, port)
    await asyncio.sleep(0.5)
    await lab.dom0(f"xl pause {guest.name}")
    await lab.dom0(f"ping -f -c 600 -w 3 {guest.address}", check=False)
    assert transfer.going_on, "the transfer was over before the guest was paused"
    await lab.netback.stop("KILL")
    await lab.netback.start()
    await lab.dom0(f"xl unpause {guest.name}")
    await transfer.finish()


async def unchanged(guests: list[Guest]) -> None:
    """Assert that no netfront reconnected; Linux's netfront logs it."""
    for guest in guests:
        assert (await guest("cat /sys/class/net/eth0/carrier")).strip() == "1"
        assert "Disabled" not in await guest("dmesg | grep -i vif || true")
