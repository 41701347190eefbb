# SPDX-License-Identifier: Apache-2.0
"""A backend that lies in a ring: that link stops with a reason, nothing else is affected. Also an unusual valid one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from netback.abi.netif import EXTRA_GSO, RX_RESPONSE, TX_REQUEST, TX_RESPONSE, RxFlag, Status
from netback.dataplane.front.queue import RingPage
from netback.dataplane.toeplitz import Toeplitz
from netback.frontend import Guest
from tests.frontend import frames
from tests.frontend.pair import Pair, connected, counters

MORE, EXTRA = RxFlag.MORE_DATA, RxFlag.EXTRA_INFO


def rx(*slots: bytes, rsp_prod: int | None = None) -> Callable[[RingPage, RingPage], None]:
    """Write responses to the RX ring, from its first slot on."""

    def lie(_tx: RingPage, ring: RingPage) -> None:
        for index, slot in enumerate(slots):
            ring.put(index, slot)
        ring.rsp_prod = len(slots) if rsp_prod is None else rsp_prod

    return lie


def tx(*answers: tuple[int, int], rsp_prod: int | None = None) -> Callable[[RingPage, RingPage], None]:
    """Write responses to the TX ring; an id below 0 stands for that of a request."""

    def lie(ring: RingPage, _rx: RingPage) -> None:
        ids = [TX_REQUEST.unpack(ring.get(index))[3] for index in range(2)]
        for index, (number, status) in enumerate(answers):
            ring.put(index, TX_RESPONSE.pack(ids[-1 - number] if number < 0 else number, status))
        ring.rsp_prod = len(answers) if rsp_prod is None else rsp_prod

    return lie


def data(number: int, size: int = 60, offset: int = 0, flags: int = 0) -> bytes:
    return RX_RESPONSE.pack(number, offset, flags, size)


def xdp(headroom: int) -> bytes:
    return EXTRA_GSO.pack(5, 0, headroom, 0, 0, 0)


LIES = {
    "more TX responses than requests": tx(rsp_prod=3),
    "TX responses of the future": tx(rsp_prod=2**31),
    "a TX response of an id that cannot be": tx((300, 0)),
    "a TX response of an id that is not in flight": tx((77, 0)),
    "a TX request answered twice": tx((-1, 0), (-1, 0)),
    "a TX extra answered that was not sent": tx((-1, Status.NULL)),
    "more RX responses than requests": rx(rsp_prod=257),
    "an RX response in another one's slot": rx(data(1)),
    "an RX response of an id that cannot be": rx(data(256)),
    "an RX frame beyond its page": rx(data(0, 60, 4090)),
    "an RX frame longer than a page": rx(data(0, 4097)),
    "an RX chain that runs past rsp_prod": rx(data(0, flags=MORE)),
    "an RX chain of too many slots": rx(*(data(i, 60, flags=MORE) for i in range(20)), data(20)),
    "an RX frame of too many bytes": rx(*(data(i, 4096, flags=MORE) for i in range(18)), data(18)),
    "RX extras that run past rsp_prod": rx(data(0, flags=EXTRA)),
    "an RX extra of type 0": rx(data(0, flags=EXTRA), EXTRA_GSO.pack(0, 0, 0, 0, 0, 0)),
    "an RX extra of no known type": rx(data(0, flags=EXTRA), EXTRA_GSO.pack(9, 0, 0, 0, 0, 0)),
    "RX GSO of size 0": rx(data(0, flags=EXTRA), EXTRA_GSO.pack(1, 0, 0, 1, 0, 0)),
    "RX GSO of type 0": rx(data(0, flags=EXTRA), EXTRA_GSO.pack(1, 0, 1448, 0, 0, 0)),
    "XDP headroom beyond its page": rx(data(0, 60, 4090, flags=EXTRA), xdp(256)),
    "XDP headroom of more bytes than the slot has": rx(data(0, 200, flags=EXTRA), xdp(256)),
    "RX GSO of no known type": rx(data(0, flags=EXTRA), EXTRA_GSO.pack(1, 0, 1448, 3, 0, 0)),
}


async def tell(pair: Pair, lie: Callable[[RingPage, RingPage], None]) -> None:
    """Put two frames into the TX ring, lie, and make the frontend read both rings."""
    back, net = pair.back, pair.guest_net
    assert back.tx is not None
    assert back.rx is not None
    back.tx.req_event = 2
    await net.send(frames.ONE_SLOT[0])
    await net.send(frames.ONE_SLOT[1])
    while back.tx.req_prod != 2:
        assert await pair.vif.guest.submit(lambda _: True)
    lie(back.tx, back.rx)
    back.notify()
    await net.send(frames.ONE_SLOT[2])


@pytest.mark.parametrize("name", LIES)
async def test_a_lie_breaks_the_link_and_nothing_else(xen: Path, name: str) -> None:
    async with Guest(xen) as guest:
        honest = connected(guest, directory=xen, index=0)
        lying = connected(guest, directory=xen, index=1, serve=False)
        async with honest as good, lying as bad:
            await good.both_ways(frames.ONE_SLOT)
            await tell(bad, LIES[name])
            async with asyncio.timeout(10):
                await bad.vif.until(lambda: bad.vif.broken is not None)
            assert bad.vif.broken is not None
            assert "response" in bad.vif.broken
            await good.both_ways((*frames.ONE_SLOT, *frames.GSO4))
            assert good.vif.broken is None


async def test_headroom_as_linux_s_backend_says_it(xen: Path) -> None:
    """Only the extra names it: each slot has offset 0, and counts the headroom as bytes."""
    first, second = (bytes([i]) * 2000 for i in (2, 3))
    async with connected(xen, serve=False) as pair:
        back, rings = pair.back, pair.vif.rings
        assert back.rx is not None
        assert rings is not None
        rings.rx_buffers[0].write(256, first)
        rings.rx_buffers[2].write(256, second)
        rx(data(0, 2256, flags=MORE | EXTRA), xdp(256), data(2, 2256))(back.rx, back.rx)
        back.notify()
        assert await asyncio.wait_for(pair.guest_net.recv(), 10) == bytes(10) + first + second
        assert pair.vif.broken is None


async def test_answers_out_of_order_are_an_honest_backends_right(xen: Path) -> None:
    async with connected(xen, serve=False) as pair:
        await tell(pair, tx((-2, 0), (-1, Status.DROPPED)))
        assert pair.back.tx is not None
        while pair.back.tx.req_prod != 3:
            await pair.vif.guest.submit(lambda _: True)
        counted = await counters(pair.vif)
        assert pair.vif.queue is not None
        assert pair.vif.broken is None
        assert pair.vif.queue.in_flight == 1
        assert counted["tx_errors"] == 1


async def test_rx_errors_lose_a_frame_and_empty_slots_nothing(xen: Path) -> None:
    """An offset, a slot of no bytes, a frame answered ERROR between two good ones."""
    async with connected(xen, serve=False) as pair:
        back, rings = pair.back, pair.vif.rings
        assert back.rx is not None
        assert rings is not None
        rings.rx_buffers[0].write(100, frames.ONE_SLOT[1][10:])
        rings.rx_buffers[3].write(0, frames.ONE_SLOT[2][10:40])
        rings.rx_buffers[5].write(9, frames.ONE_SLOT[2][40:])
        rest = len(frames.ONE_SLOT[2]) - 40
        rx(
            data(0, 60, 100),
            data(1, 60, flags=MORE),
            data(2, Status.ERROR),
            data(3, 30, flags=MORE),
            data(4, 0, flags=MORE),
            data(5, rest, 9),
        )(back.rx, back.rx)
        back.notify()
        for wanted in frames.ONE_SLOT[1:3]:
            assert await asyncio.wait_for(pair.guest_net.recv(), 10) == wanted
        assert (await counters(pair.vif))["rx_errors"] == 1
        assert back.rx.req_prod == 256 + 6


@pytest.mark.parametrize("seed", range(8))
async def test_random_lies_never_do_more_than_break_the_link(xen: Path, seed: int) -> None:
    """Whatever stands in the ring pages: at worst this link is broken, and the guest closes in order.

    Every second guest compares hashes, those of frames that were never written too.
    """
    rng = random.Random(seed)
    async with Guest(xen) as guest:
        honest = connected(guest, directory=xen, index=0)
        lying = connected(guest, directory=xen, index=1, serve=False)
        async with honest as good, lying as bad:
            assert bad.back.rx is not None
            assert bad.back.tx is not None
            queue = bad.vif.queue
            assert queue is not None
            hashing = Toeplitz(bytes(range(40)), 15) if seed % 2 else None
            await guest.submit(lambda _: queue.set_hash(hashing))
            for _ in range(200):
                ring = rng.choice((bad.back.rx, bad.back.tx))
                at = ring.rsp_prod
                slots = rng.randint(1, 8)
                for index in range(at, at + slots):
                    flags = rng.choice((0, 0, 1, 2, 3, 4, 8, 15, rng.randrange(65536)))
                    status = rng.choice((60, 1514, 4096, 0, -1, rng.randint(-32768, 32767)))
                    answer = RX_RESPONSE.pack(index % 256, rng.choice((0, 0, 2, 4095)), flags, status)
                    extra = bytes((4, rng.choice((0, 0, 1)), rng.randrange(5), 1)) + rng.randbytes(4)
                    ring.put(index, rng.choice((answer, answer, extra, rng.randbytes(8))))
                ring.rsp_prod = (at + slots) % 2**32
                bad.back.notify()
                if rng.random() < 0.5:
                    await bad.guest_net.send(frames.random_message(rng, 9000))
                await guest.submit(lambda _: None)
                while bad.guest_net.socket in await _readable(bad):
                    await bad.guest_net.recv()
                if bad.vif.broken is not None:
                    break
            assert bad.vif.broken is not None
            await good.both_ways(frames.ONE_SLOT)


async def _readable(pair: Pair) -> list[object]:
    import select

    return list(select.select([pair.guest_net.socket], [], [], 0)[0])
