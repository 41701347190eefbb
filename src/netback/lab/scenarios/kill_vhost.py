# SPDX-License-Identifier: Apache-2.0
"""kill -9 while vhost-net moves the tap's frames: at every step of a burst, and at any moment under load.

The guest transfers checksummed bytes both ways all the time. In each round one netback dies at the next of the kill
points of its data plane, the next one serves until both transfers have gone on, and is killed at a random moment.
Every byte arrives, no state changes, and each life uses vhost-net. The last netback ends by SIGTERM, also under load.
"""

import asyncio
import itertools
import random

from netback.lab.host import Guest, Lab
from netback.lab.scenarios.kill import renew, unchanged
from netback.lab.tools import know_each_other
from netback.lab.transfer import Transfer, from_guest, to_guest

STEPS = 26
"""More than one burst has in either direction, as in tests/crash/test_steps.py."""
ROUNDS = (4, STEPS)
SIZE = 10_000_000
PAUSE = 1.0
"""The longest time in seconds from new traffic to the next kill."""
FRAMES = 50
OPTIONS = "--net tap,vhost=on"
ARMED = """#!/bin/sh
export PYTHONPATH=/opt/netback/lib PYTHONDONTWRITEBYTECODE=1
exec python3 -P -c 'import sys
from netback.cli import main
from netback.dataplane.journal import arm_kill
arm_kill(int(sys.argv.pop(1)))
main()' "$@"
"""
"""netback that dies at a kill point, whose number is the first argument."""


async def run(lab: Lab, rounds: int) -> str:
    (lab.machine.directory / "armed").write_text(ARMED)
    lab.netback.options = OPTIONS
    await lab.netback.stop()
    await lab.netback.start()
    try:
        guest = await lab.create("g1")
        await know_each_other(guest)
        kills = await kill_under_load(guest, rounds)
        await unchanged([guest])
    finally:
        lab.netback.options = ""
        await lab.netback.stop()
        await lab.netback.start()
    return f"({kills} kills)"


async def kill_under_load(guest: Guest, rounds: int) -> int:
    """Returns the number of kills."""
    lab, rng, ports = guest.lab, random.Random(5), itertools.count(7000)
    under_way: list[Transfer] = []

    async def load() -> None:
        await renew(under_way)
        for start in (to_guest, from_guest):
            if all(one.kind != start for one in under_way):
                under_way.append(await start(guest, SIZE, next(ports)))

    for step in range(1, STEPS + 1, STEPS // rounds)[:rounds]:
        await load()
        await lab.netback.stop("KILL")
        await die_at(lab, step)
        await lab.netback.start()
        await load()
        await goes_on(guest)
        await asyncio.sleep(rng.uniform(0, PAUSE))
    await load()
    await lab.netback.stop()
    await lab.netback.start()
    await goes_on(guest)
    for transfer in under_way:
        await transfer.finish()
    assert "another process holds it" not in lab.netback.log
    return 2 * rounds


async def die_at(lab: Lab, step: int) -> None:
    """Start a netback, and wait until the guest's traffic has taken it to its kill point."""
    armed = f"timeout 120 sh /lab/armed {step} run {OPTIONS} >>/lab/netback.log 2>&1 </dev/null"
    await lab.dom0(f"{armed}; code=$?; rm -f /run/netback/control.sock; test $code = 137", seconds=150)


async def goes_on(guest: Guest) -> None:
    """Wait until this netback has passed frames both ways, by vhost-net."""

    async def passes() -> bool:
        (device,) = await guest.lab.netback.list()
        assert device["error"] is None, device
        counters = device["counters"]
        return bool(
            min(counters["tx_frames"], counters["rx_frames"]) >= FRAMES and device["path"] == "vhost-net"
        )

    await guest.lab.until(passes, "frames pass by vhost-net")
