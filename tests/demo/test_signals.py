# SPDX-License-Identifier: Apache-2.0
"""Signals while work is undone, and after the last step that can be cancelled."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from netback.demo.interruption import SIGNALS, Interrupted, Interruption


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def signal_self(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_signal_while_things_are_undone_does_not_stop_that() -> None:
    undone = []

    async def work() -> None:
        try:
            signal_self(signal.SIGTERM)
            await asyncio.sleep(60)
        finally:
            signal_self(signal.SIGINT)
            for step in range(3):
                await asyncio.sleep(0)
                undone.append(step)

    with pytest.raises(Interrupted, match="SIGTERM") as raised:
        Interruption().run(work())
    assert raised.value.code == 128 + signal.SIGTERM
    assert undone == [0, 1, 2]


def test_a_signal_after_the_last_step_is_seen_by_check() -> None:
    interruption = Interruption()

    async def work() -> str:
        return "done"

    assert interruption.run(work()) == "done"
    interruption.check()
    signal_self(signal.SIGHUP)
    with pytest.raises(Interrupted, match="SIGHUP"):
        interruption.check()


def test_after_a_signal_nothing_begins() -> None:
    interruption = Interruption()
    signal_self(signal.SIGINT)
    begun = []

    async def work() -> None:
        begun.append(True)

    with pytest.raises(Interrupted, match="SIGINT"):
        interruption.run(work())
    assert begun == []
