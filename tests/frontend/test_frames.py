# SPDX-License-Identifier: Apache-2.0
"""Frames both ways between FrontQueue and BackQueue, for each agreement that the two can come to."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path

import pytest

from netback.frontend import FrontConfig, Frontend, Guest
from netback.net.python import PythonNetwork
from netback.vif.features import Limits, offer
from tests.frontend import frames
from tests.frontend.backend import HandBackend
from tests.frontend.pair import Pair, connected, counters

SMALL = (*frames.ONE_SLOT, *frames.BLANK4, *frames.BLANK6)
CUT = (*frames.GSO4, *frames.GSO6)
ALL = (*SMALL, *frames.MANY_SLOTS, *CUT, *frames.TAGGED)
NOTHING = {"feature-rx-copy": "1"}

AGREEMENTS = {
    "everything": (FrontConfig(), offer(Limits()), ALL),
    "guest without SG": (FrontConfig(sg=False), offer(Limits()), (*SMALL, *CUT, *frames.TAGGED)),
    "guest without GSO": (FrontConfig(gso4=False, gso6=False), offer(Limits()), ALL),
    "guest without checksums": (FrontConfig(csum4=False, csum6=False), offer(Limits()), ALL),
    "guest with one event channel": (FrontConfig(split=False), offer(Limits()), ALL),
    "guest without feature-rx-notify": (FrontConfig(rx_notify=False), offer(Limits()), ALL),
    "backend without anything": (FrontConfig(), NOTHING, (*SMALL, *CUT, *frames.TAGGED)),
    "backend with SG alone": (FrontConfig(), NOTHING | {"feature-sg": "1"}, ALL),
    "backend without IPv6 checksums": (
        FrontConfig(),
        offer(Limits()) | {"feature-ipv6-csum-offload": "0"},
        ALL,
    ),
    "backend without checksums": (FrontConfig(), offer(Limits()) | {"feature-no-csum-offload": "1"}, ALL),
}


@pytest.mark.parametrize("name", AGREEMENTS)
async def test_frames_pass_both_ways_as_they_were(xen: Path, name: str) -> None:
    config, offer, messages = AGREEMENTS[name]
    async with connected(xen, config, offer=dict(offer)) as pair:
        await pair.both_ways(messages)
        await pair.both_ways(messages)
        assert pair.vif.broken is None
        assert pair.back.queue is not None
        assert pair.back.queue.broken is None


async def test_one_slot_frame_uses_one_slot_each_way(xen: Path) -> None:
    async with connected(xen) as pair:
        await pair.both_ways(frames.ONE_SLOT[:4])
        counted = await counters(pair.vif)
        assert counted["tx_slots"] == counted["rx_slots"] == 4


async def test_gso_passes_uncut_where_both_ends_can(xen: Path) -> None:
    async with connected(xen) as pair:
        await pair.both_ways(CUT)
        counted = await counters(pair.vif)
        assert counted["tx_frames"] == counted["rx_frames"] == len(CUT)
        assert counted["tx_segmented"] == counted["rx_segmented"] == 0


async def test_gso_is_cut_for_a_backend_that_cannot(xen: Path) -> None:
    async with connected(xen, offer=NOTHING) as pair:
        await pair.to_host(CUT)
        assert (await counters(pair.vif))["tx_segmented"] == len(CUT)


async def test_checksums_are_completed_for_a_peer_that_cannot(xen: Path) -> None:
    """A guest whose own stack has no virtio_net_hdr gets finished frames, segmented and completed here."""
    network = PythonNetwork("plain")
    async with Frontend(xen, network) as vif, HandBackend(xen, vif.guest.domid) as back:
        await vif.connected()
        sent = (*frames.BLANK4, *frames.BLANK6, *CUT)
        assert isinstance(back.network, PythonNetwork)
        for message in sent:
            await back.network.send(message)
        for wanted in frames.all_on_the_wire(sent):
            assert await asyncio.wait_for(network.recv(), 10) == wanted
        for wanted in frames.all_on_the_wire(sent):
            await network.send(wanted)
            assert await asyncio.wait_for(back.network.recv(), 10) == frames.plain(wanted)
        counted = await counters(vif)
        assert counted["rx_segmented"] == len(CUT)
        assert counted["rx_completed"] == len(frames.BLANK4 + frames.BLANK6)
        await vif.close()
    network.remove()


@pytest.mark.parametrize(
    "config", [FrontConfig(tx_slots=16, rx_slots=8), FrontConfig(tx_slots=1, rx_slots=1)]
)
async def test_rings_used_a_few_slots_at_a_time(xen: Path, config: FrontConfig) -> None:
    messages = (*SMALL, *CUT, *frames.TAGGED)
    async with connected(xen, config) as pair:
        await pair.both_ways(messages * 3)
        assert pair.vif.queue is not None
        assert pair.vif.queue.in_flight <= config.tx_slots


async def test_eight_slot_guest_beside_a_64_kib_sender(xen: Path) -> None:
    """A guest that posts too few buffers for a frame gets its segments; its neighbour gets it whole."""
    async with Guest(xen) as guest:
        small = connected(guest, FrontConfig(rx_slots=8), directory=xen, index=0)
        large = connected(guest, directory=xen, index=1)
        async with small as one, large as other:
            await asyncio.gather(one.both_ways(CUT * 5), other.both_ways(CUT * 5))


async def test_large_frames_come_after_many_small_ones(xen: Path) -> None:
    """The guest reads ahead as if frames were small, and keeps those without slots in its backlog, in order."""
    messages = [*frames.MANY_SLOTS[3:5], *frames.ONE_SLOT[:6]] * 7
    async with connected(xen) as pair:
        for _ in range(80):
            await pair.both_ways(frames.ONE_SLOT[1:2])
        closed, gate = threading.Event(), threading.Event()
        held_up = asyncio.create_task(pair.vif.guest.submit(lambda _: (closed.set(), gate.wait(10))))
        await asyncio.to_thread(closed.wait, 10)
        for message in messages:
            await pair.guest_net.send(message)
        gate.set()
        assert await held_up == (None, True)
        for message in messages:
            assert await asyncio.wait_for(pair.host_net.recv(), 10) == message
        assert (await counters(pair.vif))["tx_dropped"] == 0


async def test_frames_that_can_never_fit_are_dropped_and_counted(xen: Path) -> None:
    async with connected(xen, FrontConfig(sg=False), offer=NOTHING) as pair:
        await pair.guest_net.send(frames.plain(frames.ethernet(1, 4097)))
        await pair.guest_net.send(frames.plain(frames.ethernet(1, 13)))
        await pair.to_host(frames.ONE_SLOT)
        assert (await counters(pair.vif))["tx_dropped"] == 2


@pytest.mark.parametrize("seed", range(6))
async def test_random_frames(xen: Path, seed: int) -> None:
    rng = random.Random(seed)
    config = FrontConfig(
        gso4=rng.random() < 0.8,
        gso6=rng.random() < 0.8,
        csum4=rng.random() < 0.8,
        csum6=rng.random() < 0.8,
        tx_slots=rng.choice((256, 256, 40, 17, 18)),
        rx_slots=rng.choice((256, 256, 40, 18)),
    )
    async with connected(xen, config) as pair:
        ways = [[frames.random_message(rng) for _ in range(150)] for _ in range(2)]
        await asyncio.gather(pair.to_host(ways[0]), pair.to_guest(ways[1]))


async def test_a_full_peer_stalls_the_ring_and_loses_nothing(xen: Path) -> None:
    """The guest's stack does not read: responses stay in the ring, the backend stops; then every frame arrives."""
    messages = [frames.plain(frames.ethernet(seed, 60000)) for seed in range(900)]
    async with connected(xen) as pair, asyncio.timeout(20):
        sending = asyncio.create_task(_send_all(pair, messages))
        while not await pair.vif.guest.submit(
            lambda _: pair.vif.queue.blocked[0] if pair.vif.queue else False
        ):
            assert not sending.done()
        for message in messages:
            assert await pair.guest_net.recv() == message
        await sending
        assert (await counters(pair.vif))["rx_full"] > 0


async def _send_all(pair: Pair, messages: list[bytes]) -> None:
    for message in messages:
        await pair.host_net.send(message)
