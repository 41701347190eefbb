# SPDX-License-Identifier: Apache-2.0
"""Control rings of hostile guests: one answer to each request, and no effect on any other guest."""

from __future__ import annotations

import asyncio
import random
import struct

import pytest

from netback.abi.netif import RX_REQUEST, ExtraType, Status, TxFlag
from netback.abi.netif_control import (
    CTRL_REQUEST,
    CTRL_RESPONSE,
    CTRL_SLOTS,
    GREF_ENTRY,
    CtrlStatus,
    CtrlType,
    HashAlgorithm,
)
from netback.abi.ring import SRING
from netback.abi.xenbus import XenbusState as State
from netback.frontend.control import FrontControl
from netback.xenbus.pace import FREE_ROUNDS
from tests.hostile.topology import SECONDS, Topology, frame, tx

WORD = 2**32 - 1


async def connect(topology: Topology) -> FrontControl:
    """Connect the hostile guest with a control ring, which ends with its rings."""
    ring = FrontControl(topology.bad.guest.domain, 0)
    await topology.connect(**{key.replace("-", "_"): value for key, value in ring.nodes().items()})
    topology.bad.closes(ring.close)
    return ring


async def without_control(topology: Topology) -> None:
    """Connect again without a control ring."""
    for key in ("ctrl-ring-ref", "event-channel-ctrl"):
        await topology.bad.remove(key)
    await topology.comes_back()


async def ask(ring: FrontControl, kind: int, *data: int) -> tuple[int, int]:
    async with asyncio.timeout(SECONDS):
        return await ring.request(kind, *data)


@pytest.mark.parametrize("prod", [CTRL_SLOTS + 1, 2**31, WORD])
async def test_an_impossible_index(topology: Topology, prod: int) -> None:
    control = await connect(topology)
    control.ring.req_prod = prod
    control.notify()
    await topology.closes("control ring: req_prod is impossible")
    assert not topology.bad.guest.domain.still_in_use(control.page.gref)
    await topology.others_pass()
    await without_control(topology)


async def test_the_same_rings_again(topology: Topology) -> None:
    """A new connection begins with nothing, although its ring and its port are those of the one before."""
    control = await connect(topology)
    await ask(control, CtrlType.SET_HASH_ALGORITHM, HashAlgorithm.TOEPLITZ)
    assert await ask(control, CtrlType.GET_HASH_FLAGS) == (CtrlStatus.SUCCESS, 15)
    for state, answer in ((State.CLOSED, State.CLOSED), (State.INITIALISING, State.INIT_WAIT)):
        await topology.bad.set_state(state)
        await topology.state(answer)
    control.page.write(0, SRING.pack(0, 1, 0, 1))
    await topology.bad.set_state(State.CONNECTED)
    await topology.state(State.CONNECTED)
    assert await ask(control, CtrlType.GET_HASH_FLAGS) == (CtrlStatus.NOT_SUPPORTED, 0)
    await topology.works()


async def test_grants_that_are_none(topology: Topology) -> None:
    """Keys and mappings in pages that the guest did not grant, at numbers that wrap (XSA-270)."""
    control = await connect(topology)
    await ask(control, CtrlType.SET_HASH_ALGORITHM, HashAlgorithm.TOEPLITZ)
    await ask(control, CtrlType.SET_HASH_MAPPING_SIZE, 128)
    entries = control.grant(struct.pack("<128I", *range(1, 129))).gref
    for gref in (0, 511, 2**31, WORD):
        assert await ask(control, CtrlType.SET_HASH_KEY, gref, 40) == (CtrlStatus.INVALID_PARAMETER, 0)
        assert await ask(control, CtrlType.SET_HASH_MAPPING, gref, 1, 0) == (CtrlStatus.INVALID_PARAMETER, 0)
    for size, offset in ((1, 0), (128, 0), (1, WORD), (128, WORD), (2, WORD - 1)):
        status, _ = await ask(control, CtrlType.SET_HASH_MAPPING, entries, size, offset)
        assert status == CtrlStatus.INVALID_PARAMETER
    for size in (129, 1025, WORD):
        status, _ = await ask(control, CtrlType.SET_HASH_MAPPING, entries, size, 0)
        assert status == CtrlStatus.BUFFER_OVERFLOW
    await topology.works()
    await topology.others_pass()


async def test_requests_of_every_type_in_a_full_ring(topology: Topology) -> None:
    """All slots at once, with random bytes: each has one answer, with its id and type and no stale byte (XSA-216)."""
    control = await connect(topology)
    rng = random.Random(10)
    requests = [
        CTRL_REQUEST.pack(i, rng.randrange(12), *(rng.getrandbits(32) for _ in range(3)))
        for i in range(CTRL_SLOTS)
    ]
    for index, request in enumerate(requests):
        control.ring.put(index, request)
    control.ring.push(CTRL_SLOTS)
    control.notify()
    async with asyncio.timeout(SECONDS):
        await control.answered(CTRL_SLOTS)
    for index, request in enumerate(requests):
        slot = control.ring.get(index)
        assert slot[:4] == request[:4]
        assert CTRL_RESPONSE.unpack(slot)[2] in set(CtrlStatus)
        assert slot[12:] == bytes(4)
    await topology.works()


async def test_grants_to_stage_that_are_none(topology: Topology) -> None:
    """One bad entry refuses its list, and nothing of it stays mapped; the same pages can be staged without it."""
    control = await connect(topology)
    domain = topology.bad.guest.domain
    pages = [topology.bad.grant(readonly=bool(i % 2)) for i in range(4)]
    good = [GREF_ENTRY.pack(page.gref, i % 2, 0) for i, page in enumerate(pages)]
    wrong = [GREF_ENTRY.pack(gref, 0, 0) for gref in (pages[1].gref, 0, 511, WORD)]
    for entry in wrong:
        entries = control.grant(b"".join([*good[:1], *good[2:], entry])).gref
        assert await ask(control, CtrlType.ADD_GREF_MAPPING, 0, entries, 4) == (
            CtrlStatus.INVALID_PARAMETER,
            0,
        )
        assert not any(domain.still_in_use(page.gref) for page in pages)
    entries = control.grant(b"".join(good)).gref
    for queue, size in ((1, 4), (WORD, 4), (0, 513), (0, WORD)):
        status, _ = await ask(control, CtrlType.ADD_GREF_MAPPING, queue, entries, size)
        assert status == CtrlStatus.INVALID_PARAMETER
    assert await ask(control, CtrlType.ADD_GREF_MAPPING, 0, entries, 4) == (CtrlStatus.SUCCESS, 0)
    assert await ask(control, CtrlType.ADD_GREF_MAPPING, 0, entries, 4) == (CtrlStatus.INVALID_PARAMETER, 0)
    assert all(domain.still_in_use(page.gref) for page in pages)
    await topology.works()
    readonly = control.grant(b"".join(good), readonly=True).gref
    assert await ask(control, CtrlType.DEL_GREF_MAPPING, 0, readonly, 4) == (CtrlStatus.INVALID_PARAMETER, 0)
    assert all(domain.still_in_use(page.gref) for page in pages)
    assert await ask(control, CtrlType.DEL_GREF_MAPPING, 0, entries, 2) == (CtrlStatus.SUCCESS, 2)
    assert [domain.still_in_use(page.gref) for page in pages] == [False, False, True, True]
    await topology.others_pass()


async def test_a_read_only_page_as_an_rx_buffer(topology: Topology) -> None:
    """What the guest staged read-only is not written to: its grant decides, and the slot says ERROR."""
    control = await connect(topology)
    page = topology.bad.grant(b"mine", readonly=True)
    await control.stage(0, [page], readonly=True)
    topology.bad.post(topology.bad.rx, RX_REQUEST.pack(0, 0, page.gref))
    await topology.far.send(frame(1))
    ((_, _, _, status),) = await topology.answers(0, 1, topology.bad.rx)
    assert status == Status.ERROR
    assert page.read(0, 5) == b"mine\0"
    await topology.works()


async def test_pages_that_change_while_they_are_used(topology: Topology) -> None:
    """A staged page is copied once, as any other (XSA-155): what arrives is what one copy had, never a mix of sizes."""
    control = await connect(topology)
    page = topology.bad.grant(frame(7, 1000), readonly=True)
    await control.stage(0, [page], readonly=True)
    at = topology.bad.tx.req_prod
    topology.bad.post(topology.bad.tx, tx(page, 1000, number=at))
    page.write(500, b"changed")
    assert await topology.answers(at, 1) == [(at, Status.OKAY)]
    arrived = await topology.far.recv()
    assert (arrived[:500], len(arrived)) == (frame(7, 1000)[:500], 1000)
    assert (await topology.counters())["tx_copies"] == 0


async def test_hashes_of_tx_frames(topology: Topology) -> None:
    """A hash extra is accepted whether or not the guest selected a hash, whatever it says; it is counted."""
    await topology.connect()
    page = topology.bad.grant(frame(3))
    info = struct.pack("<BBBBI", ExtraType.HASH, 0, 200, 77, WORD).ljust(12, b"\xee")
    at = topology.bad.tx.req_prod
    topology.bad.post(topology.bad.tx, tx(page, 60, flags=TxFlag.EXTRA_INFO, number=at), info)
    assert await topology.answers(at, 2) == [(at, Status.OKAY), (0, Status.NULL)]
    assert await topology.far.recv() == frame(3)
    assert (await topology.counters())["tx_hashed"] == 1


async def test_a_ring_that_never_rests_waits_for_its_turn(topology: Topology) -> None:
    """Beyond its allowance a ring is answered slowly; the honest guest's frames and the store do not wait for it."""
    control = await connect(topology)
    for round_ in range(2):
        for index in range(CTRL_SLOTS):
            control.ring.put(index, CTRL_REQUEST.pack(index, CtrlType.SET_HASH_MAPPING_SIZE, index, 0, 0))
        control.ring.push((round_ + 1) * CTRL_SLOTS)
        control.notify()
        async with asyncio.timeout(SECONDS):
            await control.answered(FREE_ROUNDS if not round_ else FREE_ROUNDS + 1)
    assert topology.backend._workers.control_ports.pace._lane.locked(), "it waits in the slow lane"
    await topology.others_pass()
    await topology.bad.set_state(State.CLOSED)
    await topology.state(State.CLOSED)
    assert not topology.bad.guest.domain.still_in_use(control.page.gref)


async def test_a_storm_of_empty_events(topology: Topology) -> None:
    """Events that bring no request are served ever later (XSA-332); one that brings a request is answered."""
    control = await connect(topology)
    for _ in range(200):
        control.notify()
        await topology.others_pass(1)
    assert await ask(control, CtrlType.GET_HASH_MAPPING_SIZE) == (CtrlStatus.SUCCESS, 128)
    await topology.others_pass()


async def test_a_control_ring_without_a_channel(topology: Topology) -> None:
    """As in Linux's backend: the channel is required, the ring is not."""
    await topology.bad.offered()
    await topology.say(ctrl_ring_ref="9")
    await topology.closes("the frontend's event-channel-ctrl is missing")
    await without_control(topology)


@pytest.mark.parametrize("keys", [("0", "7"), ("4294967295", "7"), ("9", "4294967295"), ("9", "99")])
async def test_a_control_ring_that_is_none(topology: Topology, keys: tuple[str, str]) -> None:
    await topology.bad.offered()
    await topology.say(ctrl_ring_ref=keys[0], event_channel_ctrl=keys[1])
    await topology.closes(("the frontend's event-channel-ctrl", "the frontend's ctrl-ring-ref"))
    await topology.others_pass()
