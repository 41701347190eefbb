# SPDX-License-Identifier: Apache-2.0
"""netback's own frontend, in a guest's userspace, stages its buffers: its frames then take no grant operation.

TCP flows both ways with and without staging, in turn. The backend's counters show which way the copies went, and the
remark shows the median of the rounds' ratios.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median

from netback.lab.bench.backends import NETBACK
from netback.lab.host import DOM0, Guest, Lab
from netback.lab.tools import iperf, serve_iperf

BACKEND = "none"
ROUNDS = (2, 5)
WAYS = {"to the guest": "", "from it": "-R"}
COPIES = ("tx_copies", "rx_copies")
STAGED = ("tx_staged", "rx_staged")


async def run(lab: Lab, rounds: int) -> str:
    guest = await lab.create("g1", vif=(), python=True, more="netback.nofront")
    await serve_iperf(guest)
    ratios: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        plain, staged = await speeds(guest, ""), await speeds(guest, "--stage")
        for way in WAYS:
            ratios[way].append(staged[way] / plain[way])
    return "(TCP " + ", ".join(f"{way} {median(of):.2f}" for way, of in ratios.items()) + " of it without)"


async def speeds(guest: Guest, option: str) -> dict[str, float]:
    """Bits per second in each direction."""
    async with frontend(guest, option), NETBACK.serving(guest):
        if option:
            await guest.lab.until(lambda: is_staged(guest), "both directions use staged pages")
        before = await counters(guest)
        found = {way: (await iperf(guest, words)).bits for way, words in WAYS.items()}
        after = await counters(guest)
        used, unused = (STAGED, COPIES) if option else (COPIES, STAGED)
        moved = {name: after[name] - before[name] for name in (*used, *unused)}
        assert all(moved[name] > 1000 for name in used), moved
        assert all(moved[name] == 0 for name in unused), moved
        await stop(guest)
    return found


@asynccontextmanager
async def frontend(guest: Guest, option: str) -> AsyncIterator[None]:
    await guest(f"setsid netback guest --net tap:net0 {option} >/run/front 2>&1 & echo $! >/run/front.pid")
    try:
        yield
    finally:
        await stop(guest)


async def stop(guest: Guest) -> None:
    """End the frontend, if it runs; its vif closes."""
    await guest("kill $(cat /run/front.pid) || true; while [ -e /sys/class/net/net0 ]; do sleep 0.1; done")


async def counters(guest: Guest) -> dict[str, int]:
    (device,) = await guest.lab.netback.list()
    found: dict[str, int] = device["counters"]
    return found


async def is_staged(guest: Guest) -> bool:
    """Whether a ping's frames went through staged pages, both ways."""
    await guest(f"ping -c 1 -W 1 {DOM0}", check=False)
    found = await counters(guest)
    return all(found[name] > 0 for name in STAGED)
