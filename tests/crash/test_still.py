# SPDX-License-Identifier: Apache-2.0
"""Kills while no frame moves, then traffic at once: an idle guest, one without RX slots, ends that do not read."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from netback.abi.netif import RX_REQUEST, RxFlag
from netback.frontend import GrantedPage, Script
from tests.crash.launcher import INHERITED
from tests.crash.load import Flow
from tests.crash.respawn import SECONDS, Respawner, launcher, until
from tests.crash.topology import attach, host_socket, topology
from tests.frontend import frames

KILLS = 12
FAR_AWAY = 1 << 30


async def test_an_idle_guest(xen: Path) -> None:
    """Either end sends first after a kill: before a new backend runs, while it resumes, or after.

    This test failed with rings that are not drained or not armed at the resume, and with indices that begin at 0 or at
    req_prod.
    """
    rng = random.Random(1)
    async with topology(xen) as made:
        (vif,) = made.vifs
        for _ in range(KILLS):
            await made.backends.kill()
            late, flows = rng.random() < 0.3, rng.sample((vif.tx, vif.rx), 2)
            if late:
                flows[0].send(1)
            made.backends.start()
            if rng.random() < 0.7:
                await made.adopted()
            for flow in flows[late:]:
                flow.send(1)
            for flow in flows:
                await flow.caught_up(SECONDS)
            await vif.answered()
        assert vif.tx.repeated == vif.rx.lost == 0


@asynccontextmanager
async def stalled_guest(xen: Path, queued: Sequence[bytes]) -> AsyncIterator[tuple[Script, Respawner]]:
    """A scripted guest that has posted no RX slot, whose host has sent `queued`."""
    far, near = host_socket()
    with far, near:
        async with Script(xen) as script:
            with launcher(xen, [near.fileno()]) as backends:
                await attach(xen, script.guest.domid, f"{INHERITED}{near.fileno()}")
                backends.start()
                await script.offered()
                await script.connect()
                for message in queued:
                    far.send(message)
                yield script, backends


async def killed_and_back(script: Script, backends: Respawner, wants: int) -> None:
    """Kill the backend and start another; wait until it has armed both rings, RX for `wants` slots."""
    await backends.kill()
    script.tx.req_event = script.rx.req_event = FAR_AWAY
    backends.start()
    await armed(script, wants)
    await until(lambda: script.tx.req_event == script.tx.rsp_prod + 1)


async def armed(script: Script, wants: int) -> None:
    """Wait until the backend asks for an event at so many RX slots."""
    await until(lambda: script.rx.req_event == script.rx.rsp_prod + wants)


def post_slots(script: Script, pages: list[GrantedPage], count: int) -> None:
    """Post so many more empty pages; notify only if the backend asked for it."""
    first = script.rx.req_prod
    pages += [script.grant() for _ in range(count)]
    slots = [RX_REQUEST.pack(first + at, 0, page.gref) for at, page in enumerate(pages[first:])]
    script.post(script.rx, *slots)


async def received(script: Script, pages: list[GrantedPage], slots: int) -> list[bytes]:
    """Wait for the responses of the first so many slots; return their frames."""
    async with asyncio.timeout(SECONDS):
        await script.answered(script.rx, slots)
    made: list[bytes] = []
    more = False
    for page, (ident, offset, flags, size) in zip(pages, script.answers(script.rx, 0, slots), strict=False):
        assert size > 0
        assert page is pages[ident]
        data = page.read(offset, size)
        made = [*made[:-1], made[-1] + data] if more else [*made, data]
        more = bool(flags & RxFlag.MORE_DATA)
    assert not more
    return made


SIZES = (9014, 5000, 60, 4096, 20000, 1514)
SLOTS = (3, 2, 1, 1, 5, 1)


async def test_a_guest_without_rx_slots(xen: Path) -> None:
    """Every frame of the host arrives once there are slots, however many backends died before.

    The guest notifies only if asked: a backend that does not arm both rings when it attaches stalls here.
    """
    sent = [frames.ethernet(size, size) for size in SIZES]
    async with stalled_guest(xen, [frames.plain(frame) for frame in sent]) as (script, backends):
        for _ in range(KILLS):
            await killed_and_back(script, backends, 1)
        pages: list[GrantedPage] = []
        post_slots(script, pages, sum(SLOTS))
        assert await received(script, pages, sum(SLOTS)) == sent


async def test_a_guest_with_too_few_rx_slots(xen: Path) -> None:
    """The frame that waits in the killed backend is lost; the next one waits for exactly the slots that it needs."""
    sent = [frames.ethernet(size, size) for size in SIZES]
    async with stalled_guest(xen, [frames.plain(frame) for frame in sent]) as (script, backends):
        pages: list[GrantedPage] = []
        post_slots(script, pages, 1)
        await armed(script, SLOTS[0])
        await killed_and_back(script, backends, SLOTS[1])
        post_slots(script, pages, sum(SLOTS[1:]) - 1)
        assert await received(script, pages, sum(SLOTS[1:])) == sent[1:]


@pytest.mark.parametrize("direction", ["tx", "rx"])
async def test_an_end_that_does_not_read(xen: Path, direction: str) -> None:
    """The rings are full because one end does not read; once it reads, every frame arrives."""
    async with topology(xen) as made:
        (vif,) = made.vifs
        flow: Flow = vif.tx if direction == "tx" else vif.rx
        flow.read(False)
        flow.run()
        for _ in range(KILLS // 2):
            await until(lambda: vif.blocked[direction == "tx"])
            await made.backends.kill()
            made.backends.start()
            await made.adopted()
        flow.read(True)
        await made.goes_on(0)
        await flow.arrived(flow.received + 500, SECONDS)
        await made.stop_sending()
