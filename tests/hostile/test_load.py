# SPDX-License-Identifier: Apache-2.0
"""Guests that cause load, end to end: storms of events, and receivers that never receive."""

import threading
import time

from netback.abi.netif import RX_REQUEST, Status
from netback.frontend import FrontConfig
from tests.hostile.topology import Topology, frame, resident, tx

STORM = 200_000
GROWTH = 32 << 20
"""Bytes by which a flooded process may grow: some buffers, and the allocator's slack."""


def storm(topology: Topology, stop: threading.Event) -> int:
    """Send events from a thread as fast as possible; return their number."""
    sent = 0
    while not stop.is_set() or sent < STORM:
        topology.bad.notify()
        sent += 1
    return sent


async def test_a_storm_of_empty_events(topology: Topology) -> None:
    """XSA-331, -332: events without work are served with growing delays; the other vif's frames keep passing.

    After some free ones each delay is twice the last, up to sixteen milliseconds. This bounds the number of wake-ups
    from above on any machine.
    """
    await topology.connect()
    began = time.monotonic()
    stop, sent = threading.Event(), list[int]()
    thread = threading.Thread(target=lambda: sent.append(storm(topology, stop)))
    thread.start()
    try:
        await topology.others_pass(300)
    finally:
        stop.set()
        thread.join()
    counters, milliseconds = await topology.counters(), (time.monotonic() - began) * 1000
    assert sent[0] >= STORM
    assert 4 < counters["events_empty"] <= 16 + milliseconds / 16
    await topology.works()


async def test_a_storm_beside_honest_work(topology: Topology) -> None:
    """XSA-332: with split event channels the buffers that a guest posts do not excuse empty events of its TX ring, and
    the back-off of that port delays no buffer.
    """
    await topology.bad.offered()
    topology.bad.config = FrontConfig(split=True)
    await topology.bad.open_rings()
    await topology.bad.connect()
    stop, sent = threading.Event(), list[int]()
    thread = threading.Thread(target=lambda: sent.append(storm(topology, stop)))
    thread.start()
    try:
        for number in range(300):
            into = topology.bad.grant()
            at = topology.bad.post(topology.bad.rx, RX_REQUEST.pack(number % 256, 0, into.gref)) - 1
            await topology.far.send(frame(number))
            assert await topology.answers(at, 1, topology.bad.rx) == [(number % 256, 0, 0, 60)]
            assert into.read(0, 60) == frame(number)
    finally:
        stop.set()
        thread.join()
    assert (await topology.counters())["events_empty"] > 4
    await topology.works()


async def test_a_storm_with_work_is_no_storm(topology: Topology) -> None:
    """XSA-332: the back-off applies to empty events; an event with a frame is served at once, even among empty ones."""
    await topology.connect()
    for _ in range(200):
        topology.bad.notify()
        await topology.works()
    assert (await topology.counters())["tx_frames"] == 200


async def test_a_storm_that_nobody_asked_for_does_not_come_back(topology: Topology) -> None:
    """XSA-391: the guest is notified where it asked for it, once per burst and not once per slot."""
    await topology.connect()
    page = topology.bad.grant(frame(1))
    for burst in range(51):
        topology.bad.tx.rsp_event = (topology.bad.tx.rsp_prod + 10_000) % 2**32
        end = topology.bad.post(topology.bad.tx, *[tx(page, 60)] * 64, notify=True)
        await topology.until(lambda end=end: topology.bad.tx.rsp_prod == end)  # type: ignore[misc]
        for _ in range(64):
            await topology.far.recv()
        if burst == 0:  # the notification of the attach came before these responses: take it now
            await topology.backend.store.read("/local/domain/0/name")
            before = topology.bad.notifications
    assert topology.bad.notifications == before
    assert (await topology.counters())["tx_notifies"] == 0


async def flood(topology: Topology) -> int:
    """Send to a guest until its network accepts no more; return the number of frames."""
    sent = 0
    while True:
        try:
            topology.far.socket.send(frame(sent, 1500))
        except BlockingIOError:
            return sent
        sent += 1


async def test_a_guest_that_never_receives(topology: Topology) -> None:
    """XSA-392: without slots one read is made, whose frames wait. Memory does not grow, TX continues, and once slots
    come every frame is delivered in order."""
    await topology.connect()
    before = resident()
    sent, read = await flood(topology), 0
    for _ in range(20):
        await topology.works()
        await topology.others_pass(2)
        read += await flood(topology)
        assert read <= 16, "what waits is in the network's queue, not in ours, except one read"
    assert sent > 0
    assert resident() - before < GROWTH
    assert (await topology.counters())["rx_frames"] == 0
    into = [topology.bad.grant() for _ in range(8)]
    for number in range(0, 64, 8):
        at = (
            topology.bad.post(
                topology.bad.rx, *[RX_REQUEST.pack(number + i, 0, page.gref) for i, page in enumerate(into)]
            )
            - 8
        )
        answers = await topology.answers(at, 8, topology.bad.rx)
        assert [(answer[0], answer[-1]) for answer in answers] == [(number + i, 1500) for i in range(8)]
        assert [page.read(0, 1500) for page in into] == [frame(number + i, 1500) for i in range(8)]


async def test_a_guest_that_leaves_one_slot_too_few(topology: Topology) -> None:
    """XSA-392: a frame of three slots waits while two are free, with nothing written, and goes with the third."""
    await topology.connect()
    pages = [topology.bad.grant() for _ in range(3)]
    data = frame(7, 9000)
    topology.bad.post(topology.bad.rx, *[RX_REQUEST.pack(i, 0, pages[i].gref) for i in range(2)])
    await topology.far.send(data)
    await topology.until(lambda: topology.vif.counters["rx_stalls"] > 0)
    await topology.others_pass(20)
    assert topology.bad.rx.rsp_prod == 0
    assert topology.bad.rx.req_event == 3, "armed for exactly the slots that it needs"
    assert pages[0].read() == bytes(4096)
    topology.bad.post(topology.bad.rx, RX_REQUEST.pack(2, 0, pages[2].gref))
    assert [answer[-1] for answer in await topology.answers(0, 3, topology.bad.rx)] == [
        4096,
        4096,
        9000 - 8192,
    ]
    assert b"".join(page.read() for page in pages)[:9000] == data


async def test_a_guest_that_does_not_take_its_answers(topology: Topology) -> None:
    """A guest sends as long as it has slots: then its ring is full of responses, and netback holds nothing else."""
    await topology.connect()
    page = topology.bad.grant(frame(1))
    for _ in range(4):
        at = (
            topology.bad.post(topology.bad.tx, *[tx(page, 60, number=i) for i in range(256)], notify=True)
            - 256
        )
        assert await topology.answers(at, 256) == [(i, Status.OKAY) for i in range(256)]
        for _ in range(256):
            assert await topology.far.recv() == frame(1)
    topology.bad.tx.push((topology.bad.tx.rsp_prod + 257) % 2**32)
    topology.bad.notify()
    await topology.closes("TX req_prod is impossible")
