# SPDX-License-Identifier: Apache-2.0
"""Scripted frontends: actions that an honest one cannot take, and the backend's answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from netback.abi.netif import EXTRA_GSO, RX_REQUEST, TX_REQUEST, GsoType, Status, TxFlag
from netback.abi.ring import PAGE_SIZE
from netback.abi.xenbus import XenbusState
from netback.frontend import FrontConfig, Script
from tests.frontend import frames
from tests.frontend.backend import HandBackend
from tests.frontend.pair import SECONDS

FRAME = frames.ONE_SLOT[1][10:]


@pytest.fixture
async def play(xen: Path) -> AsyncIterator[tuple[Script, HandBackend]]:
    """A script with a serving backend."""
    async with Script(xen) as script, HandBackend(xen, script.guest.domid) as back, asyncio.timeout(SECONDS):
        await script.offered()
        await script.connect()
        yield script, back


async def test_a_frame_out_and_a_frame_in(play: tuple[Script, HandBackend]) -> None:
    script, back = play
    page, buffer = script.grant(FRAME), script.grant()
    script.post(script.tx, TX_REQUEST.pack(page.gref, 0, 0, 7, len(FRAME)))
    await script.answered(script.tx, 1)
    assert script.answers(script.tx, 0, 1) == [(7, Status.OKAY)]
    assert await back.network.recv() == frames.plain(FRAME)
    script.post(script.rx, RX_REQUEST.pack(9, 0, buffer.gref))
    await back.network.send(frames.plain(FRAME))
    await script.answered(script.rx, 1)
    assert script.answers(script.rx, 0, 1) == [(9, 0, 0, len(FRAME))]
    assert buffer.read(0, len(FRAME)) == FRAME


async def test_a_bad_grant_is_answered_error_and_the_next_frame_passes(
    play: tuple[Script, HandBackend],
) -> None:
    script, back = play
    page = script.grant(FRAME)
    script.post(
        script.tx,
        TX_REQUEST.pack(4000, 0, 0, 1, len(FRAME)),
        TX_REQUEST.pack(page.gref, PAGE_SIZE - 8, 0, 2, len(FRAME)),
        TX_REQUEST.pack(page.gref, 0, 0, 3, 13),
        TX_REQUEST.pack(page.gref, 0, 0, 3, len(FRAME)),
    )
    await script.answered(script.tx, 4)
    errors = [(1, Status.ERROR), (2, Status.ERROR), (3, Status.ERROR)]
    assert script.answers(script.tx, 0, 4) == [*errors, (3, Status.OKAY)]
    assert await back.network.recv() == frames.plain(FRAME)


async def test_raw_pages_and_indices_can_be_read_and_written(play: tuple[Script, HandBackend]) -> None:
    script, back = play
    assert back.tx is not None
    script.tx.put(255, b"twelve bytes")
    assert script.tx.get(255) == script.tx.get(511) == back.tx.get(255) == b"twelve bytes"
    assert b"twelve bytes" in script.tx.raw
    script.tx.rsp_event = 1000
    assert back.tx.rsp_event == 1000
    with pytest.raises(ValueError, match="12 bytes"):
        script.tx.put(0, bytes(13))


@pytest.mark.parametrize(
    "slots",
    [
        [TX_REQUEST.pack(0, 0, TxFlag.MORE_DATA, 1, 60)],
        [TX_REQUEST.pack(0, 0, TxFlag.MORE_DATA, 1, 60)] * 40,
        [TX_REQUEST.pack(0, 0, TxFlag.EXTRA_INFO, 1, 60), bytes(12)],
        [TX_REQUEST.pack(0, 0, TxFlag.EXTRA_INFO, 1, 60), EXTRA_GSO.pack(1, 0, 0, GsoType.TCPV4, 0, 0)],
    ],
)
async def test_nonsense_breaks_the_backends_queue(
    play: tuple[Script, HandBackend], slots: list[bytes]
) -> None:
    script, back = play
    script.post(script.tx, *slots, notify=True)
    async with asyncio.timeout(SECONDS):
        while back.queue is not None and back.queue.broken is None:
            await back.submit(lambda _: None)


async def test_an_index_from_nowhere_breaks_the_backends_queue(play: tuple[Script, HandBackend]) -> None:
    script, back = play
    script.post(script.rx, at=300, notify=True)
    async with asyncio.timeout(SECONDS):
        while back.queue is not None and back.queue.broken is None:
            await back.submit(lambda _: None)
    assert script.rx.req_prod == 300


async def test_any_key_and_any_state(xen: Path) -> None:
    async with Script(xen) as script, HandBackend(xen, script.guest.domid), asyncio.timeout(SECONDS):
        await script.offered()
        await script.write("tx-ring-ref", "nonsense")
        assert await script.read("tx-ring-ref") == "nonsense"
        await script.remove("tx-ring-ref")
        assert await script.read("tx-ring-ref") is None
        await script.set_state(17)
        assert await script.read("state") == "17"
        script.config = FrontConfig(sg=False, split=False)
        await script.connect(feature_gso_tcpv4="0", feature_sg="1")
        assert (await script.read("feature-sg"), await script.read("feature-gso-tcpv4")) == ("1", "0")
        await script.set_state(XenbusState.CLOSED)
        assert await script.backend(XenbusState.CLOSED) is XenbusState.CLOSED
