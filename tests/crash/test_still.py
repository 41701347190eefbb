# SPDX-License-Identifier: Apache-2.0
"""Kills while nothing moves: an idle guest, a guest without RX slots, ends that read nothing. Then traffic, at once."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from netback.abi.netif import RX_REQUEST, RxFlag
from netback.frontend import GrantedPage, Script
from tests.crash.launcher import INHERITED
from tests.crash.lives import SECONDS, Lives, launcher, until
from tests.crash.load import Flow
from tests.crash.scene import attach, host_socket, scene
from tests.frontend import frames

KILLS = 12
FAR_AWAY = 1 << 30


async def test_an_idle_guest(xen: Path) -> None:
    """Whoever speaks first after a kill, and when: before a new backend is there, while it comes, or after.

    Seen to fail: rings that are not drained or not armed at attach; indices that begin at 0 or at req_prod.
    """
    rng = random.Random(1)
    async with scene(xen) as made:
        (vif,) = made.vifs
        for _ in range(KILLS):
            await made.lives.kill()
            late, flows = rng.random() < 0.3, rng.sample((vif.tx, vif.rx), 2)
            if late:
                flows[0].send(1)
            made.lives.start()
            if rng.random() < 0.7:
                await made.adopted()
            for flow in flows[late:]:
                flow.send(1)
            for flow in flows:
                await flow.caught_up(SECONDS)
            await vif.answered()
        assert vif.tx.repeated == vif.rx.lost == 0


@asynccontextmanager
async def stalled_guest(xen: Path, queued: Sequence[bytes]) -> AsyncIterator[tuple[Script, Lives]]:
    """A guest that posts RX slots by hand and has posted none; its host has sent these frames already."""
    far, near = host_socket()
    with far, near:
        async with Script(xen) as script:
            with launcher(xen, [near.fileno()]) as lives:
                await attach(xen, script.guest.domid, f"{INHERITED}{near.fileno()}")
                lives.start()
                await script.offered()
                await script.connect()
                for message in queued:
                    far.send(message)
                yield script, lives


async def killed_and_back(script: Script, lives: Lives, wants: int) -> None:
    """A kill, and a new backend that has armed both rings for what it wants of this guest, unasked."""
    await lives.kill()
    script.tx.req_event = script.rx.req_event = FAR_AWAY
    lives.start()
    await armed(script, wants)
    await until(lambda: script.tx.req_event == script.tx.rsp_prod + 1)


async def armed(script: Script, wants: int) -> None:
    """Until the backend waits for so many RX slots."""
    await until(lambda: script.rx.req_event == script.rx.rsp_prod + wants)


def post_slots(script: Script, pages: list[GrantedPage], count: int) -> None:
    """That many more empty pages; a notification only if the backend asked for one."""
    first = script.rx.req_prod
    pages += [script.grant() for _ in range(count)]
    slots = [RX_REQUEST.pack(first + at, 0, page.gref) for at, page in enumerate(pages[first:])]
    script.post(script.rx, *slots)


async def received(script: Script, pages: list[GrantedPage], slots: int) -> list[bytes]:
    """The frames in the first so many slots, once they are answered."""
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
    """Killed again and again while nothing can be delivered: all that the host sent comes once there are slots.

    The guest notifies only if asked: a backend that does not arm both rings anew when it takes them up stalls here.
    """
    sent = [frames.ethernet(size, size) for size in SIZES]
    async with stalled_guest(xen, [frames.plain(frame) for frame in sent]) as (script, lives):
        for _ in range(KILLS):
            await killed_and_back(script, lives, 1)
        pages: list[GrantedPage] = []
        post_slots(script, pages, sum(SLOTS))
        assert await received(script, pages, sum(SLOTS)) == sent


async def test_a_guest_with_too_few_rx_slots(xen: Path) -> None:
    """The frame that waits in the backend for slots is lost with it; the one after it waits for just what it needs."""
    sent = [frames.ethernet(size, size) for size in SIZES]
    async with stalled_guest(xen, [frames.plain(frame) for frame in sent]) as (script, lives):
        pages: list[GrantedPage] = []
        post_slots(script, pages, 1)
        await armed(script, SLOTS[0])
        await killed_and_back(script, lives, SLOTS[1])
        post_slots(script, pages, sum(SLOTS[1:]) - 1)
        assert await received(script, pages, sum(SLOTS[1:])) == sent[1:]


@pytest.mark.parametrize("direction", ["tx", "rx"])
async def test_an_end_that_does_not_read(xen: Path, direction: str) -> None:
    """The rings are full of what nobody takes; when it is taken, all of it comes."""
    async with scene(xen) as made:
        (vif,) = made.vifs
        flow: Flow = vif.tx if direction == "tx" else vif.rx
        flow.read(False)
        flow.run()
        for _ in range(KILLS // 2):
            await until(lambda: vif.blocked[direction == "tx"])
            await made.lives.kill()
            made.lives.start()
            await made.adopted()
        flow.read(True)
        await made.goes_on(0)
        await flow.arrived(flow.received + 500, SECONDS)
        await made.stop_sending()
