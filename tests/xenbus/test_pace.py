# SPDX-License-Identifier: Apache-2.0
"""How often a device may act, in counts: rounds of a device that never rests, and of others beside it."""

import asyncio

import pytest

from netback.xenbus import pace
from netback.xenbus.pace import FREE_ROUNDS, FREE_ROUNDS_PER_SECOND, RETRY_SECONDS, Allowance, Backoff, Pace


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def spend(allowance: Allowance) -> int:
    """The number of rounds it still grants."""
    count = 0
    while allowance.take():
        count += 1
    return count


def test_an_allowance_is_spent_and_regained() -> None:
    clock = Clock()
    allowance = Allowance(clock)
    assert spend(allowance) == FREE_ROUNDS
    clock.now += 2.5
    assert spend(allowance) == int(2.5 * FREE_ROUNDS_PER_SECOND)
    clock.now += 1e6
    assert spend(allowance) == FREE_ROUNDS


async def test_devices_that_flap_share_one_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flapping devices take turns and get equal shares, however many there are; a quiet one passes them all."""
    monkeypatch.setattr(pace, "LANE_SECONDS", 0.0)
    shared, clock, order = Pace(), Clock(), list[int]()
    flapping = [Allowance(clock) for _ in range(8)]
    for allowance in flapping:
        spend(allowance)

    async def flap(number: int) -> None:
        while len(order) < 90:
            await shared.admit(flapping[number])
            order.append(number)

    tasks = [asyncio.create_task(flap(number)) for number in range(8)]
    honest = Allowance(clock)
    for _ in range(20):
        before = len(order)
        await shared.admit(honest)
        assert len(order) == before
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert order[1:81] == list(range(8)) * 10  # the first one found the lane empty


async def test_a_cancelled_wait_leaves_the_lane_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "LANE_SECONDS", 0.0)
    shared, clock = Pace(), Clock()
    allowance = Allowance(clock)
    spend(allowance)
    await shared.admit(allowance)
    waiting = [asyncio.create_task(shared.admit(allowance)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [None, None]


async def test_backoff_grows_until_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def later(delay: float, call: object, *arguments: object) -> asyncio.TimerHandle:
        delays.append(delay)
        return call_later(0, call, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_later", later)
    woken = asyncio.Event()
    backoff = Backoff(woken.set)
    for _ in range(len(RETRY_SECONDS) + 2):
        backoff.fail()
        await woken.wait()
        woken.clear()
    assert delays == [*RETRY_SECONDS, RETRY_SECONDS[-1], RETRY_SECONDS[-1]]
    backoff.reset()
    backoff.fail()
    assert delays[-1] == RETRY_SECONDS[0]
    backoff.stop()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not woken.is_set()
