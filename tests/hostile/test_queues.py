# SPDX-License-Identifier: Apache-2.0
"""Guests of several queues: keys of a queue that are wrong, and rings of which one is broken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import pytest

from netback.abi.netif import TX_SLOT, Status
from netback.abi.netif_keys import Key
from netback.abi.xenbus import XenbusState as State
from netback.dataplane.front.queue import RingPage
from netback.frontend import Rings
from netback.platforms.emulated.protocol import PortState
from netback.vif.features import REQUIRED, SPLIT
from tests.hostile.test_store import NONSENSE
from tests.hostile.topology import QUEUES, SECONDS, Topology, frame, holdings, tx

COUNT = 3


def open_queues(topology: Topology, *, split: bool) -> list[Rings]:
    """Empty rings for each queue, until the guest ends."""
    bad = topology.bad
    several = [Rings(bad.guest.domain, bad.events, 0, buffers=0, split=split) for _ in range(COUNT)]
    for rings in several:
        bad.closes(rings.close)
    return several


def nodes(several: list[Rings]) -> dict[str, str | None]:
    """The keys of an honest frontend with these queues."""
    queues = {
        f"queue-{n}/{key}": value for n, rings in enumerate(several) for key, value in rings.nodes().items()
    }
    return {**queues, str(Key.QUEUES): str(COUNT)}


def nothing_held(topology: Topology, several: list[Rings]) -> None:
    """The backend has no page of any queue, and no port."""
    domain, events = topology.bad.guest.domain, topology.bad.events
    assert not any(domain.still_in_use(page.gref) for rings in several for page in (rings.tx, rings.rx))
    ports = {port for rings in several for port in (rings.tx_port, rings.rx_port)}
    assert {events.status(port) for port in ports} == {PortState.UNBOUND}


async def start_over(topology: Topology) -> None:
    for state, answer in ((State.CLOSED, State.CLOSED), (State.INITIALISING, State.INIT_WAIT)):
        await topology.bad.set_state(state)
        await topology.state(answer)


async def one_queue_again(topology: Topology) -> None:
    await topology.bad.remove(Key.QUEUES)
    await topology.comes_back()


@pytest.mark.parametrize("key", [*REQUIRED, *SPLIT])
async def test_nonsense_in_a_key_of_a_queue(topology: Topology, key: str) -> None:
    """XSA-175: as strict as the keys of a single queue, and named with the queue's directory."""
    await topology.bad.offered()
    several = open_queues(topology, split=key in SPLIT)
    name = f"queue-1/{key}"
    for text in NONSENSE:
        if key in SPLIT and text == "":
            continue  # counts as absent
        await topology.say(**{**nodes(several), name: text})
        await topology.closes(f"the frontend's {name} is ")
        assert len(await topology.backend.store.read(f"{topology.name.errors}/error")) < 200
        nothing_held(topology, several)
        await start_over(topology)
    await topology.say(**nodes(several))
    await topology.state(State.CONNECTED)
    assert len(topology.vif.rings) == 2 * COUNT
    await topology.others_pass()


WRONG: dict[str, Callable[[list[Rings]], dict[str, str | None]]] = {
    "no ring in the last": lambda _: {"queue-2/tx-ring-ref": None},
    "no channel in the last": lambda _: {"queue-2/event-channel": None},
    "a gref of nothing in the last": lambda _: {"queue-2/rx-ring-ref": "3000"},
    "a gref beyond the table": lambda _: {"queue-1/tx-ring-ref": "4294967295"},
    "a port of nothing in the last": lambda _: {"queue-2/event-channel": "77"},
    "the port of another": lambda several: {"queue-2/event-channel": str(several[0].tx_port)},
    "one queue without a directory": lambda _: {"multi-queue-num-queues": str(COUNT + 1)},
    "more than were offered": lambda _: {"multi-queue-num-queues": str(QUEUES + 1)},
    "as many as a number holds": lambda _: {"multi-queue-num-queues": "4294967295"},
    "none": lambda _: {"multi-queue-num-queues": "0"},
}


@pytest.mark.parametrize("what", WRONG)
async def test_a_queue_that_leads_nowhere(topology: Topology, what: str) -> None:
    """XSA-300, -371: all queues or none. What the first ones had mapped and bound is released."""
    await topology.bad.offered()
    several = open_queues(topology, split=False)
    before = holdings()
    await topology.say(**(nodes(several) | WRONG[what](several)))
    await topology.closes("the frontend's ")
    nothing_held(topology, several)
    assert holdings() == before
    await topology.others_pass()
    await one_queue_again(topology)


async def breaks_one(topology: Topology, number: int) -> list[Rings]:
    """Connect several queues and publish an impossible index in one; the vif closes. Returns all of them."""
    await topology.bad.offered()
    several = open_queues(topology, split=True)
    await topology.say(**nodes(several))
    await topology.state(State.CONNECTED)
    ring = RingPage(several[number].tx.address, TX_SLOT, keep=several)
    ring.req_prod = 1000
    topology.bad.events.native.notify(several[number].tx_port)
    await topology.closes("TX req_prod is impossible")
    return several


@pytest.mark.parametrize("number", range(COUNT))
async def test_one_broken_queue_ends_the_vif(topology: Topology, number: int) -> None:
    """XSA-39, -374: its other queues end with it, in order; no other vif does."""
    several = await breaks_one(topology, number)
    domain = topology.bad.guest.domain
    assert not any(domain.still_in_use(page.gref) for rings in several for page in (rings.tx, rings.rx))
    await one_queue_again(topology)


async def test_one_ring_page_for_all_queues(topology: Topology) -> None:
    """Each queue answers the same requests: a mess for this guest, which may break its vif, and for no other."""
    await topology.bad.offered()
    several = open_queues(topology, split=True)
    same = {f"queue-{n}/tx-ring-ref": str(several[0].tx.gref) for n in range(COUNT)}
    same |= {f"queue-{n}/rx-ring-ref": str(several[0].tx.gref) for n in range(COUNT)}
    await topology.say(**(nodes(several) | same))
    await topology.state(State.CONNECTED)
    ring, page = RingPage(several[0].tx.address, TX_SLOT, keep=several), topology.bad.grant(frame(1))
    for number in range(200):
        ring.put(number, tx(page, 60, number=number))
    ring.push(200)
    for rings in several:
        topology.bad.events.native.notify(rings.tx_port)
        topology.bad.events.native.notify(rings.rx_port)
        await topology.far.send(frame(2))
        await topology.others_pass()
    await topology.bad.set_state(State.CLOSED)
    await topology.state(State.CLOSED)
    domain = topology.bad.guest.domain
    assert not domain.still_in_use(several[0].tx.gref)
    with suppress(BlockingIOError):  # the same frames, once from each queue
        while topology.far.socket.recv(1 << 17):
            pass
    await one_queue_again(topology)


async def test_keys_of_queues_that_change_while_connected(topology: Topology) -> None:
    """They are read once: what a connected guest writes there reaches neither its rings nor the log."""
    await topology.bad.offered()
    several = open_queues(topology, split=True)
    await topology.say(**nodes(several))
    await topology.state(State.CONNECTED)
    for key in (*nodes(several), "queue-7/tx-ring-ref"):
        await topology.bad.write(key, "nonsense")
    await topology.bad.set_state(State.CONNECTED)
    ring, page = RingPage(several[2].tx.address, TX_SLOT, keep=several), topology.bad.grant(frame(5))
    ring.put(0, tx(page, 60, number=9))
    ring.push(1)
    topology.bad.events.native.notify(several[2].tx_port)
    async with asyncio.timeout(SECONDS):
        assert await topology.far.recv() == frame(5)
        await topology.bad.answered(ring, 1)
    assert topology.bad.answers(ring, 0, 1) == [(9, Status.OKAY)]
    assert not topology.warnings
