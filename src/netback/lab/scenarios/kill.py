# SPDX-License-Identifier: Apache-2.0
"""kill -9 under load: checksummed transfers both ways with two guests survive every kill.

Must also hold: no state changes at either end, also when the kill meets idle rings or a paused guest that takes no
frames. A stall is the time from the new process's first log line to the first echo, by dom0's clock. It is compared
with the start of Python before that line: both take seconds on a slow machine under software emulation.
"""

import asyncio
import itertools
import re
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime

from netback.lab.host import Guest, Lab
from netback.lab.tools import know_each_other
from netback.lab.transfer import Transfer, from_guest, to_guest

SMOKE = True
ROUNDS = (10, 100)
SIZE = 10_000_000
"""Bytes of one transfer, some seconds with busybox's nc under emulation; another one follows while kills remain."""
ECHOES = "/lab/echoes.log"
_ECHO = re.compile(r"^\[([\d.]+)\] \d+ bytes", re.MULTILINE)


async def run(lab: Lab, rounds: int) -> str:
    guests = [await lab.create(name) for name in ("g1", "g2")]
    for guest in guests:
        await know_each_other(guest)
    ports = itertools.count(7000)
    under_way: list[Transfer] = []
    ends = []
    for number in range(rounds):
        for start, guest in itertools.product((to_guest, from_guest), guests):
            if not any(one.going_on for one in under_way if (one.guest, one.kind) == (guest, start)):
                under_way.append(await start(guest, SIZE, next(ports)))
        await asyncio.sleep(0.2 * (number % 4))
        ends.append(await kill_and_start(lab, guests[number % 2]))
        await renew(under_way)
    for transfer in under_way:
        await transfer.finish()
    ends.append(await kill_and_start(lab, guests[0]))
    await stalled(lab, guests[1], next(ports))
    stall = statistics.median(end.stall for end in ends)
    python = statistics.median(end.start for end in ends)
    figures = (
        f"{stall:.2f} s as the median of {len(ends)}, {max(end.stall for end in ends):.2f} at most,"
        f" after a start of {python:.2f}"
    )
    assert stall < python, f"the stalls were {figures}"
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


@dataclass(frozen=True, slots=True)
class End:
    """What the end of one netback process cost, in seconds."""

    start: float
    """From its end to the first log line of the next one: the start of Python."""
    stall: float
    """From that line to the first echo."""


async def kill_and_start(lab: Lab, guest: Guest) -> End:
    """Kill and start netback during a ping, which goes on until it is answered."""
    ping = f"stdbuf -oL ping -D -i 0.1 {guest.address} >{ECHOES}"
    pinging = asyncio.create_task(lab.dom0(ping, seconds=600, check=False))
    await lab.netback.stop("KILL")
    killed = float(await lab.dom0("date +%s.%N"))
    await lab.netback.start()
    began = began_at(lab.netback.log)
    answers: list[float] = []

    async def answered() -> bool:
        text = await lab.dom0(f"cat {ECHOES}")
        answers[:] = [at for at in map(float, _ECHO.findall(text)) if at > began]
        return bool(answers)

    await lab.until(answered, f"{guest.name} answers after kill -9 and start")
    await lab.dom0("pkill -INT -x ping", check=False)
    await pinging
    return End(began - killed, answers[0] - began)


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
