# SPDX-License-Identifier: Apache-2.0
"""Which queues a capture takes, and what it may cost in memory."""

import os

import pytest

from netback.observe.captures import CAPTURE_BYTES, Captures
from netback.observe.choice import Choice


@pytest.mark.parametrize(
    ("choice", "taken"),
    [
        (Choice(), {("vif1.0", 0), ("vif1.0", 1), ("vif2.0", 0)}),
        (Choice(frozenset({"vif1.0"})), {("vif1.0", 0), ("vif1.0", 1)}),
        (Choice(queue=0), {("vif1.0", 0), ("vif2.0", 0)}),
        (Choice(frozenset({"vif3.0"})), set()),
    ],
)
async def test_what_a_capture_takes(choice: Choice, taken: set[tuple[str, int]]) -> None:
    """A queue gets one sink for each capture, the same every time; none once the capture has ended."""
    captures = Captures(2)
    queues = [("vif1.0", 0), ("vif1.0", 1), ("vif2.0", 0)]
    with captures.begun(choice), captures.begun(Choice()):
        found = {queue: captures.sinks(*queue, 1) for queue in queues}
        assert {queue for queue, sinks in found.items() if len(sinks) == 2} == taken
        assert {queue: captures.sinks(*queue, 1) for queue in queues} == found
    assert not any(captures.sinks(*queue, 1) for queue in queues)


@pytest.mark.parametrize("workers", [1, 2, 3, 16, 100])
async def test_the_memory_is_bounded(workers: int) -> None:
    """Whatever the machine: a worker's part is a ring that holds some of the largest frames."""
    with Captures(workers).begun(Choice()) as capture:
        size = os.fstat(capture.memory.fd).st_size
        assert size <= max(CAPTURE_BYTES, workers << 18) + (300 << 10) + workers * 4096
        assert os.fstat(capture.memory.fd).st_blocks * 512 < 1 << 16  # pages that were not used take none


async def test_more_devices_than_a_capture_can_name() -> None:
    """It ends, with a word, instead of leaving some out; known ones are not affected until then."""
    with Captures(1).begun(Choice()) as capture:
        assert all(capture.sink(f"vif{number}.0", 0, 0) for number in range(4096))
        assert not capture.failed.done()
        assert capture.sink("vif4096.0", 0, 0) is None
        assert capture.sink("vif4097.0", 0, 0) is None
        assert "begin another" in await capture.failed
        assert capture.sink("vif7.0", 1, 0) is not None
