# SPDX-License-Identifier: Apache-2.0
"""Limits: `rate=10Mb/s` in xl's configuration, and `netback set` while TCP flows.

TCP from the guest over ten seconds gets the rate by the vif's own byte counter: at most rate * T + burst, and 0.98 of
rate * T at least. A change by `netback set` applies to the running connection, in both directions, and outlives
kill -9. Without a limit TCP is faster again. The other direction is never limited.
"""

import asyncio

from netback.lab.host import BRIDGE, Guest, Lab
from netback.lab.tools import iperf, serve_iperf, unharmed

RATE = 10e6 / 8
BURST = 131072
SECONDS = 10.0


async def run(lab: Lab) -> str:
    guest = await lab.create("g1", vif=(f"bridge={BRIDGE},rate=10Mb/s",))
    path = f"/local/domain/0/backend/vif/{guest.domid}/0"
    assert (await lab.dom0(f"xenstore-read {path}/rate")).strip() == "62500,50000"
    await serve_iperf(guest)
    measured = await window(guest, "tx", "-R")
    unlimited = await iperf(guest)
    assert unlimited.bits > 20e6, f"TCP to the guest, which has no limit: {unlimited}"
    said = await lab.netback("set g1 --tx-rate none --rx-rate 10Mb/s")
    assert said.startswith(f"vif{guest.domid}.0: tx none, rx 10Mb/s"), said
    await lab.netback.stop("KILL")
    await lab.netback.start()
    await guest.reachable()
    received = await window(guest, "rx", "")
    unlimited = await iperf(guest, "-R")
    assert unlimited.bits > 20e6, f"TCP from the guest after its limit ended: {unlimited}"
    await unharmed(guest)
    return f"({measured:.3f} and {received:.3f} of the rate)"


async def window(guest: Guest, way: str, options: str) -> float:
    """Run TCP, and compare the bytes of ten seconds in its middle with the rate; returns the share of the rate."""
    flow = asyncio.create_task(iperf(guest, options, seconds=20))
    await asyncio.sleep(4)
    first, began, earliest = await counted(guest, way)
    await asyncio.sleep(SECONDS)
    last, ended, latest = await counted(guest, way)
    await flow
    most, least = latest - began, ended - earliest
    bytes_passed = last - first
    assert bytes_passed <= RATE * most + BURST, f"{bytes_passed} bytes in {most:.2f} s are beyond the limit"
    assert bytes_passed >= 0.98 * RATE * least - BURST, f"{bytes_passed} bytes in {least:.2f} s are too few"
    return bytes_passed / (RATE * (most + least) / 2)


async def counted(guest: Guest, way: str) -> tuple[int, float, float]:
    """The vif's byte counter, and dom0's time before and after it was read."""
    clock = "cut -d' ' -f1 /proc/uptime"
    lab = guest.lab
    before = float(await lab.dom0(clock))
    (device,) = await lab.netback.list()
    after = float(await lab.dom0(clock))
    return device["counters"][f"{way}_bytes"], before, after
