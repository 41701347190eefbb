# SPDX-License-Identifier: Apache-2.0
"""Guests that attack while all of their frames are captured: what is written stays a capture that tshark reads."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from netback.control import Client
from netback.lab.inside import attacks
from tests.hostile.topology import Topology, tx
from tests.observe.test_pcapng import fields_of

ROUNDS, SLOTS = 40, 60
FIELDS = ("frame.interface_name", "frame.len", "frame.cap_len", "frame.comment")


@asynccontextmanager
async def captured(topology: Topology, path: Path) -> AsyncIterator[None]:
    """Every frame goes to a file meanwhile; none is lost."""
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    stop, stopper = os.pipe()

    def capture() -> dict[str, int]:
        with Client(topology.directory) as client, client.capture() as frames, path.open("wb") as file:
            loop.call_soon_threadsafe(begun.set)
            frames.write(file.fileno(), stop=stop)
            return frames.lost

    task = asyncio.create_task(asyncio.to_thread(capture))
    await begun.wait()
    try:
        yield
    finally:
        os.close(stopper)
        assert await task == {}
        os.close(stop)


async def test_the_lab_s_attacks(
    topology: Topology, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "frames.pcapng"
    async with captured(topology, path):
        await attacks.run(topology.bad)
        await topology.others_pass()
    found = fields_of(path, *FIELDS)
    assert any(comment.endswith("answered ERROR") for *_, comment in found)
    assert {name.split()[1] for name, *_ in found} == {"tx", "rx"}


async def test_frames_of_every_length_and_flag(topology: Topology, tmp_path: Path) -> None:
    """In bursts, also of grants and bytes that are none."""
    path, source = tmp_path / "frames.pcapng", random.Random(12)
    await topology.connect()
    page = topology.bad.grant(bytes(4096))
    sent = 0
    async with captured(topology, path):
        for _ in range(ROUNDS):
            first = topology.bad.tx.req_prod
            requests = [
                tx(page, source.choice([0, 13, 14, 60, 4096, 65535, source.randrange(65536)]),
                   offset=source.choice([0, 0, 4095, source.randrange(65536)]),
                   flags=source.choice([0, 0, 1, 2, 3, 1 << source.randrange(4, 16), source.randrange(65536) & ~0xC]),
                   number=first + number, gref=source.choice([None, None, None, 0, 0xFFFFFFFF]))
                for number in range(SLOTS)
            ]  # fmt: skip
            topology.bad.post(topology.bad.tx, *requests)
            await topology.answers(first, SLOTS)
            sent += SLOTS
        await topology.others_pass()
    found = fields_of(path, *FIELDS)
    bad = [each for each in found if each[0] == f"{topology.name} tx"]
    assert len(bad) == sent
    assert all(int(captured) in (0, int(length)) for _, length, captured, _ in bad)
    assert any("NETTXF_csum_blank|NETTXF_data_validated|0x" in comment for *_, comment in bad)
