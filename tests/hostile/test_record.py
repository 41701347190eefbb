# SPDX-License-Identifier: Apache-2.0
"""Attacks that are recorded: each fault is saved once, and replayed to the same fault by the same code."""

import stat
from collections.abc import AsyncIterator
from itertools import cycle
from pathlib import Path

import pytest

from netback.abi.netif import TX_SLOT, Status
from netback.abi.xenbus import XenbusState as State
from netback.dataplane.front.queue import RingPage
from netback.observe.recording import Recording, read
from netback.observe.replay import Step, play
from tests.hostile.test_queues import COUNT, breaks_one, nodes, one_queue_again, open_queues
from tests.hostile.test_rings import FATAL, WILD, goes_wild
from tests.hostile.topology import Topology, frame, hostile, tx


@pytest.fixture
async def recorded(xen: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Topology]:
    """The usual topology, with both guests recorded."""
    async with hostile(xen, caplog, record="on") as topology:
        yield topology


def saved(topology: Topology) -> list[Path]:
    return sorted((topology.directory / "recordings").glob(f"{topology.name}-*.recording"))


async def fault(topology: Topology) -> Recording:
    """The only recording that was saved of the hostile guest, once it is."""
    await topology.until(lambda: len(saved(topology)) == 1)
    (path,) = saved(topology)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    said = [line for line in topology.warnings if str(path) in line]
    assert said == [f"{topology.name}: what led to its fault is saved: netback replay {path}"]
    return read(path)


def replayed(recording: Recording) -> list[Step]:
    """Its steps, which are the same again, twice."""
    steps, again = ([each for each in play(recording) if isinstance(each, Step)] for _ in range(2))
    assert steps == again
    assert [(step.number, step.differs) for step in steps if step.differs] == []
    return steps


@pytest.mark.parametrize("what", FATAL)
async def test_an_impossible_chain_is_replayed(recorded: Topology, what: str) -> None:
    reason, slots = FATAL[what]
    await recorded.connect()
    page = recorded.bad.grant(frame(1))
    good = [] if what == "extras without end" else [tx(page, 60, number=9)]
    recorded.bad.post(recorded.bad.tx, *good, *slots(page))
    await recorded.closes(reason)
    recording = await fault(recorded)
    assert recording.header.reason == reason
    steps = replayed(recording)
    assert steps[-1].broken == reason
    assert [step.broken for step in steps[:-1]] == [None] * (len(steps) - 1)
    taken = sum(item.count for step in steps for item in step.poll.find("responses"))
    assert taken == len(good)
    await recorded.others_pass()


@pytest.mark.parametrize("ahead", WILD)
@pytest.mark.parametrize("which", ["tx", "rx"])
async def test_a_wild_index_is_replayed(recorded: Topology, which: str, ahead: int) -> None:
    await goes_wild(recorded, which, ahead)
    last = replayed(await fault(recorded))[-1]
    assert (last.ring.ring, last.broken) == (which, f"{which.upper()} req_prod is impossible")
    assert last.ring.pending is None
    await recorded.others_pass()


@pytest.mark.parametrize("number", range(COUNT))
async def test_a_broken_queue_of_several_is_replayed(recorded: Topology, number: int) -> None:
    await breaks_one(recorded, number)
    recording = await fault(recorded)
    assert len(recording.queues) == COUNT
    assert [(step.queue, step.broken) for step in replayed(recording) if step.broken] == [
        (number, "TX req_prod is impossible")
    ]
    await one_queue_again(recorded)


async def test_one_ring_page_for_all_queues_is_replayed(recorded: Topology) -> None:
    """The queues overwrite each other's requests and indices, and each has what it read."""
    await recorded.bad.offered()
    several = open_queues(recorded, split=True)
    same = {f"queue-{n}/tx-ring-ref": str(several[0].tx.gref) for n in range(COUNT)}
    await recorded.say(**(nodes(several) | same))
    await recorded.state(State.CONNECTED)
    ring, page = RingPage(several[0].tx.address, TX_SLOT, keep=several), recorded.bad.grant(frame(1))
    for index in range(200):
        ring.put(index, tx(page, 60, number=index))
    ring.push(200)
    for rings in several:
        recorded.bad.events.native.notify(rings.tx_port)
    await recorded.others_pass()
    ring.req_prod = 1000
    for rings in several:
        recorded.bad.events.native.notify(rings.tx_port)
    await recorded.closes("TX req_prod is impossible")
    assert replayed(await fault(recorded))


async def test_requests_that_change_while_they_are_read_are_replayed(recorded: Topology) -> None:
    """XSA-155: what counts is what was read, not what the page has later."""
    await recorded.connect()
    await recorded.works()  # from here on a worker serves the rings, and not this thread
    page = recorded.bad.grant(frame(1))
    good, wrong = tx(page, 60), tx(page, 0xFFFF, offset=4095)
    first = recorded.bad.tx.rsp_prod
    for number in range(first, first + 60):
        recorded.bad.post(recorded.bad.tx, good)
        slots = cycle((wrong, good))
        while recorded.bad.tx.rsp_prod == number:
            recorded.bad.tx.put(number, next(slots))
    recorded.bad.tx.push(5000)
    recorded.bad.notify()
    await recorded.closes("TX req_prod is impossible")
    steps = replayed(await fault(recorded))
    sent = [step for step in steps if step.poll.ring == "tx"]
    assert sum(item.count for step in sent for item in step.poll.find("responses")) == first + 60


async def test_a_ring_that_is_wild_from_the_start_has_no_polls(recorded: Topology) -> None:
    await recorded.bad.offered()
    recorded.bad.tx.req_prod = 1000
    await recorded.say()
    await recorded.closes("TX req_prod is impossible")
    recording = await fault(recorded)
    assert replayed(recording) == []
    assert recording.header.reason == "TX req_prod is impossible"
    notes = [note.what for note in recording.header.notes]
    assert "frontend Connected, backend InitWait" in notes
    assert any(note.startswith("the guest's tx-ring-ref is ") for note in notes)


async def test_bad_grants_and_changed_pages_are_replayed(recorded: Topology) -> None:
    """Statuses of copies are recorded: a replay has no guest's memory to copy from."""
    await recorded.connect()
    page = recorded.bad.grant(frame(1))
    at = recorded.bad.tx.req_prod
    recorded.bad.post(
        recorded.bad.tx, tx(page, 60, number=1), tx(page, 60, number=2, gref=0xFFFF), tx(page, 60, offset=4090),
        tx(page, 60, number=4),
    )  # fmt: skip
    answers = await recorded.answers(at, 4)
    assert [status for _, status in answers] == [Status.OKAY, Status.ERROR, Status.ERROR, Status.OKAY]
    page.write(0, b"\xff" * 60)
    reason, slots = FATAL["GSO of type 7"]
    recorded.bad.post(recorded.bad.tx, *slots(page))
    await recorded.closes(reason)
    steps = replayed(await fault(recorded))
    statuses = [copy[3] for step in steps for item in step.poll.find("copies") for copy in item.copies]
    assert [status != 0 for status in statuses] == [False, True, False]


async def test_each_fault_is_saved_and_few_are_kept(recorded: Topology) -> None:
    """A guest that breaks again and again costs one file in a while."""
    reason, slots = FATAL["GSO of type 7"]
    await recorded.connect()
    for _ in range(3):
        page = recorded.bad.grant(frame(1))
        recorded.bad.post(recorded.bad.tx, *slots(page))
        await recorded.closes(reason)
        await recorded.comes_back()
    assert len(saved(recorded)) == 1


async def test_a_guest_that_is_not_recorded_leaves_nothing(topology: Topology) -> None:
    reason, slots = FATAL["GSO of type 7"]
    await topology.connect()
    topology.bad.post(topology.bad.tx, *slots(topology.bad.grant(frame(1))))
    await topology.closes(reason)
    await topology.comes_back()
    assert saved(topology) == []
    assert topology.vif._recorder.flights == []


async def test_a_recording_does_not_grow(recorded: Topology) -> None:
    """However much a guest does, its recorder has its size, and begins with a poll."""
    await recorded.connect()
    page = recorded.bad.grant(frame(1, 1400))
    for _ in range(12):
        at = recorded.bad.tx.req_prod
        recorded.bad.post(recorded.bad.tx, *[tx(page, 1400, number=n) for n in range(200)])
        for _ in range(200):
            assert await recorded.far.recv() == frame(1, 1400)
        await recorded.answers(at, 200)
    reason, slots = FATAL["GSO of type 7"]
    recorded.bad.post(recorded.bad.tx, *slots(page))
    await recorded.closes(reason)
    recording = await fault(recorded)
    (path,) = saved(recorded)
    assert path.stat().st_size < 2 << 18
    (queue,) = recording.header.queues
    assert queue.recorded > queue.polls
    assert replayed(recording)[-1].broken == reason
