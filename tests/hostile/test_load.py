# SPDX-License-Identifier: Apache-2.0
"""Guests that cost, end to end: storms of events, and receivers that never receive."""

import threading
import time

from netback.abi.netif import RX_REQUEST, Status
from tests.hostile.scene import Scene, frame, resident, tx

STORM = 200_000
GROWTH = 32 << 20
"""What a process may grow by while it is flooded: some buffers, and the allocator's taste."""


def storm(scene: Scene, stop: threading.Event) -> int:
    """Send events as fast as a guest can, in a thread of its own: how many."""
    sent = 0
    while not stop.is_set() or sent < STORM:
        scene.bad.notify()
        sent += 1
    return sent


async def test_a_storm_of_empty_events(scene: Scene) -> None:
    """XSA-331, -332: events without work are served later and later; the other vif's frames pass all the while.

    After some that cost nothing each waits twice as long as the last, to sixteen milliseconds. However slow a machine
    is, that is a bound from above.
    """
    await scene.connect()
    began = time.monotonic()
    stop, sent = threading.Event(), list[int]()
    thread = threading.Thread(target=lambda: sent.append(storm(scene, stop)))
    thread.start()
    try:
        await scene.others_pass(300)
    finally:
        stop.set()
        thread.join()
    counters, milliseconds = await scene.counters(), (time.monotonic() - began) * 1000
    assert sent[0] >= STORM
    assert 4 < counters["events_empty"] <= 16 + milliseconds / 16
    await scene.works()


async def test_a_storm_with_work_is_no_storm(scene: Scene) -> None:
    """XSA-332: the back-off is for empty events; one that brings a frame is served at once, also amid empty ones."""
    await scene.connect()
    for _ in range(200):
        scene.bad.notify()
        await scene.works()
    assert (await scene.counters())["tx_frames"] == 200


async def test_a_storm_that_nobody_asked_for_does_not_come_back(scene: Scene) -> None:
    """XSA-391: the guest is notified where it asked to be, once for a burst: not for each slot."""
    await scene.connect()
    page = scene.bad.grant(frame(1))
    before = scene.bad.notifications
    for _ in range(50):
        scene.bad.tx.rsp_event = (scene.bad.tx.rsp_prod + 10_000) % 2**32
        end = scene.bad.post(scene.bad.tx, *[tx(page, 60)] * 64, notify=True)
        await scene.until(lambda end=end: scene.bad.tx.rsp_prod == end)  # type: ignore[misc]
        for _ in range(64):
            await scene.far.recv()
    assert scene.bad.notifications == before
    assert (await scene.counters())["tx_notifies"] == 0


async def flood(scene: Scene) -> int:
    """Send to a guest until its network takes no more: how many frames that were."""
    sent = 0
    while True:
        try:
            scene.far.socket.send(frame(sent, 1500))
        except BlockingIOError:
            return sent
        sent += 1


async def test_a_guest_that_never_receives(scene: Scene) -> None:
    """XSA-392: no slot, so nothing is read but one frame that waits; memory stays, TX goes on, and when slots come
    all of it is delivered in order."""
    await scene.connect()
    before = resident()
    sent = await flood(scene)
    for _ in range(20):
        await scene.works()
        await scene.others_pass(2)
        assert await flood(scene) <= 2, "what waits is in the network's queue, not in ours"
    assert sent > 0
    assert resident() - before < GROWTH
    assert (await scene.counters())["rx_frames"] == 0
    into = [scene.bad.grant() for _ in range(8)]
    for number in range(0, 64, 8):
        at = (
            scene.bad.post(
                scene.bad.rx, *[RX_REQUEST.pack(number + i, 0, page.gref) for i, page in enumerate(into)]
            )
            - 8
        )
        answers = await scene.answers(at, 8, scene.bad.rx)
        assert [(answer[0], answer[-1]) for answer in answers] == [(number + i, 1500) for i in range(8)]
        assert [page.read(0, 1500) for page in into] == [frame(number + i, 1500) for i in range(8)]


async def test_a_guest_that_leaves_one_slot_too_few(scene: Scene) -> None:
    """XSA-392: a frame of three slots waits at two, with nothing of it written, and goes at the third."""
    await scene.connect()
    pages = [scene.bad.grant() for _ in range(3)]
    data = frame(7, 9000)
    scene.bad.post(scene.bad.rx, *[RX_REQUEST.pack(i, 0, pages[i].gref) for i in range(2)])
    await scene.far.send(data)
    await scene.until(lambda: scene.vif.counters["rx_stalls"] > 0)
    await scene.others_pass(20)
    assert scene.bad.rx.rsp_prod == 0
    assert scene.bad.rx.req_event == 3, "armed for exactly the slots that it needs"
    assert pages[0].read() == bytes(4096)
    scene.bad.post(scene.bad.rx, RX_REQUEST.pack(2, 0, pages[2].gref))
    assert [answer[-1] for answer in await scene.answers(0, 3, scene.bad.rx)] == [4096, 4096, 9000 - 8192]
    assert b"".join(page.read() for page in pages)[:9000] == data


async def test_a_guest_that_does_not_take_its_answers(scene: Scene) -> None:
    """It sends as long as it has slots: the ring is full of answers, and nothing else is ours to hold."""
    await scene.connect()
    page = scene.bad.grant(frame(1))
    for _ in range(4):
        at = scene.bad.post(scene.bad.tx, *[tx(page, 60, number=i) for i in range(256)], notify=True) - 256
        assert await scene.answers(at, 256) == [(i, Status.OKAY) for i in range(256)]
        for _ in range(256):
            assert await scene.far.recv() == frame(1)
    scene.bad.tx.push((scene.bad.tx.rsp_prod + 257) % 2**32)
    scene.bad.notify()
    await scene.closes("TX req_prod is impossible")
