# SPDX-License-Identifier: Apache-2.0
"""A vif as a group of queues: each with its own rings, port, peer and journal; counted, refused and ended as one."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import cast

import pytest

from netback.dataplane.caps import Can
from netback.dataplane.notices import Notice
from netback.dataplane.thread import Listener
from netback.errors import PlatformError
from netback.net.base import Network
from netback.net.filters import Filters
from netback.net.null import NullNetwork
from netback.net.python import PythonNetwork
from netback.observe.captures import Captures
from netback.observe.recorder import Recorder
from netback.observe.trace import Tracer
from netback.platforms.base import EventChannels
from netback.platforms.emulated import EmulatedPlatform
from netback.vif.features import QueueConfig, VifConfig, WaitTimes
from netback.vif.group import Group
from netback.vif.queue import BindError, Channel, bind_ports, remove_journals
from netback.vif.vif import Vif
from netback.vif.workers import Workers, finished
from tests.vif.guest import FRAME, Guest, exchange, join, serving, until


class TwoPeers(NullNetwork):
    """A network with a Python network's end for each of two queues."""

    def __init__(self) -> None:
        self.ends = (PythonNetwork("q0"), PythonNetwork("q1"))
        self.peers = tuple(peer for end in self.ends for peer in end.peers)

    def remove(self) -> None:
        for end in self.ends:
            end.remove()


@pytest.fixture
def two() -> Iterator[TwoPeers]:
    made = TwoPeers()
    yield made
    made.remove()


@contextmanager
def open_workers(xen: Path, count: int) -> Iterator[tuple[EmulatedPlatform, Workers]]:
    with EmulatedPlatform(xen) as platform:
        workers = Workers(platform, count)
        try:
            yield platform, workers
        finally:
            workers.close()


@asynccontextmanager
async def two_queues(xen: Path) -> AsyncIterator[tuple[Guest, Guest]]:
    """A domain with two sets of rings, and a port for each."""
    async with join(xen) as first:
        queues = (first, Guest(first.domain, first.store, 1))
        for queue in queues:
            queue.port = queue.domain.events.alloc_unbound(0)
        yield queues


def agreement(*queues: Guest) -> VifConfig:
    rings = tuple(QueueConfig(queue.tx.gref, queue.rx.gref, queue.port, queue.port) for queue in queues)
    return VifConfig(rings, Can(0), sg=True, rx_unannounced=False, rx_offset=0)


def make_vif(
    xen: Path,
    domid: int,
    network: Network,
    platform: EmulatedPlatform,
    workers: Workers,
    on_notice: Callable[[Notice], object] = lambda _: None,
) -> Vif:
    return Vif(
        "vif1.0",
        domid,
        network,
        platform=platform,
        workers=workers,
        journal=xen / "journal" / "vif-1-0",
        tracer=Tracer(),
        captures=Captures(len(workers.workers)),
        recorder=Recorder("vif1.0"),
        on_notice=on_notice,
    )


async def test_two_queues(xen: Path, two: TwoPeers) -> None:
    """Frames of each queue are its own peer's; the counters are the vif's."""
    with open_workers(xen, 2) as (platform, workers):
        async with two_queues(xen) as queues:
            vif = make_vif(xen, queues[0].domid, two, platform, workers)
            await vif.connect(agreement(*queues), adopt=False)
            assert workers.queues == [1, 1]
            files = sorted(path.name for path in (xen / "journal").iterdir())
            assert files == ["vif-1-0", "vif-1-0-q1", "vif-1-0-settings"]
            await vif.serve()
            for queue, end in zip(queues, two.ends, strict=True):
                for _ in range(2):
                    await exchange(queue, end)
            assert set(vif.rings) == {"tx", "rx", "tx-q1", "rx-q1"}
            assert [(ring.ring, ring.indices["rsp_prod"]) for ring in vif.dump()] == [
                (name, 2) for name in ("tx", "rx", "tx-q1", "rx-q1")
            ]
            await vif.disconnect()
            assert (vif.counters["tx_frames"], vif.counters["rx_frames"]) == (4, 4)
            assert [queue["tx_frames"] for queue in vif.queue_counters] == [2, 2]
            assert vif.rings == {}
            assert vif.dump() == []
            assert workers.queues == [0, 0]
            assert not any(queue.domain.still_in_use(queue.tx.gref) for queue in queues)
        remove_journals(xen / "journal" / "vif-1-0")
        assert list((xen / "journal").iterdir()) == []


async def test_counters_grow_over_the_vifs_life(xen: Path, two: TwoPeers) -> None:
    """The fault: the counters vanished at each disconnect. A second queue may come and go."""
    with open_workers(xen, 1) as (platform, workers):
        async with two_queues(xen) as (guest, second):
            network = two.ends[0]
            vif = make_vif(xen, guest.domid, two, platform, workers)
            assert vif.counters == {}
            for number in range(3):
                await vif.connect(agreement(*(guest, second)[: 1 + number % 2]), adopt=number > 0)
                await vif.serve()
                await exchange(guest, network)
                if number == 1:
                    await exchange(second, two.ends[1])
                await vif.disconnect()
                await vif.disconnect()
            assert (vif.counters["tx_frames"], vif.counters["rx_frames"]) == (4, 4)
            assert [queue["rx_frames"] for queue in vif.queue_counters] == [3, 1]
            assert vif.counters["rx_dropped"] == 0


async def test_a_closed_group_is_not_served(xen: Path, network: PythonNetwork) -> None:
    """Its worker would touch rings that are not mapped any more."""
    with open_workers(xen, 1) as (platform, workers):
        async with two_queues(xen) as (guest, _):
            group = Group(platform, workers, guest.domid)
            config = agreement(guest)
            await group.bind(config)
            await group.attach(
                config,
                network.peers,
                xen / "journal" / "vif-1-0",
                adopt=False,
                times=WaitTimes(),
                filters=Filters(),
            )
            guest.send(FRAME)
            await group.close()
            await group.serve(lambda _: Listener(lambda _: None))
            await workers.flush()
            assert guest.tx.index(2) == 0


async def test_a_second_queue_that_cannot_be_bound_leaves_nothing(xen: Path, two: TwoPeers) -> None:
    with open_workers(xen, 1) as (platform, workers):
        async with two_queues(xen) as queues:
            vif = make_vif(xen, queues[0].domid, two, platform, workers)
            queues[1].port = queues[0].port
            with pytest.raises(Exception, match=r"event-channel .* cannot be bound"):
                await vif.connect(agreement(*queues), adopt=False)
            assert not vif.connected
            assert workers.queues == [0]
            queues[1].port = queues[1].domain.events.alloc_unbound(0)
            await vif.connect(agreement(*queues), adopt=False)
            await vif.serve()
            await exchange(queues[1], two.ends[1])
            await vif.disconnect()


class FakeEvents:
    """Event channels of a hypervisor where port 9 is held by another process during the first `attempts`."""

    def __init__(self, attempts: int) -> None:
        self.attempts = attempts
        self.bound: list[int] = []
        self.held: list[list[int]] = []
        """What this process held at each attempt to bind port 9."""

    def bind_interdomain(self, domid: int, port: int) -> int:
        if port == 9:
            self.held.append(list(self.bound))
            if len(self.held) <= self.attempts:
                raise PlatformError("held by another process", "EINVAL")
        self.bound.append(100 + port)
        return 100 + port

    def unbind(self, port: int) -> None:
        self.bound.remove(port)


async def test_ports_are_bound_together_or_not_at_all() -> None:
    """The fault: a process that waits for one port while it holds others may wait for one that waits for it."""
    events = FakeEvents(attempts=2)
    channels = [Channel(cast("EventChannels", events), port, f"port-{port}") for port in (7, 8, 9)]
    with ExitStack() as undo:
        assert await bind_ports(channels, 1, undo) == [107, 108, 109]
        assert events.held == [[107, 108]] * 3
        assert events.bound == [107, 108, 109]
    assert events.bound == []
    events = FakeEvents(attempts=100)
    channels = [Channel(cast("EventChannels", events), port, f"port-{port}") for port in (7, 9)]
    with ExitStack() as undo, pytest.raises(BindError, match="the frontend's port-9 9 cannot be bound: held"):
        await bind_ports(channels, 1, undo)
    assert events.bound == []
    assert len(events.held) == 8


async def test_the_event_loop_goes_on_beside_a_busy_worker(xen: Path, network: PythonNetwork) -> None:
    """The fault: the whole loop waited for the worker's round. A cancelled disconnect still releases everything."""
    with open_workers(xen, 1) as (platform, workers):
        async with two_queues(xen) as (guest, _):
            vif = make_vif(xen, guest.domid, network, platform, workers)
            await vif.connect(agreement(guest), adopt=False)
            await vif.serve()
            await exchange(guest, network)
            began, gate = threading.Event(), threading.Event()
            (worker,) = workers.workers
            busy = worker.thread.submit(lambda _: (began.set(), gate.wait(20)))
            await asyncio.to_thread(began.wait, 20)
            disconnecting = asyncio.create_task(vif.disconnect())
            for _ in range(10):  # iterations of this loop, each with a cancellation
                await asyncio.sleep(0)
                disconnecting.cancel()
            assert not disconnecting.done()
            assert guest.domain.still_in_use(guest.tx.gref), "the worker may still read this ring"
            gate.set()
            await asyncio.wait([disconnecting])
            assert disconnecting.cancelled()
            await finished([busy])
            assert not vif.connected
            assert not guest.domain.still_in_use(guest.tx.gref)
            assert vif.counters["tx_frames"] == 1


async def test_notices(xen: Path, two: TwoPeers) -> None:
    """The worst condition of the queues, each change once; none of a connection that ended."""
    heard: asyncio.Queue[Notice] = asyncio.Queue()
    with open_workers(xen, 2) as (platform, workers):
        async with two_queues(xen) as queues, asyncio.timeout(20):
            vif = make_vif(xen, queues[0].domid, two, platform, workers, heard.put_nowait)
            await vif.connect(agreement(*queues), adopt=False)
            await vif.serve()
            await exchange(queues[0], two.ends[0])
            queues[0].post()  # a worker watches the peers of queues that have room
            two.ends[0].socket.close()
            assert await heard.get() is Notice.PEER_GONE
            await exchange(queues[1], two.ends[1])
            two.ends[1].socket.close()
            assert await queues[1].answer(queues[1].send(FRAME)) == 0
            queues[1].tx.index(0, queues[1].tx.index(0) + 1000)
            queues[1].kick()
            assert await heard.get() is Notice.BROKEN
            assert vif.broken == "TX req_prod is impossible"
            queues[0].tx.index(0, queues[0].tx.index(0) + 1000)
            queues[0].kick()
            await vif.disconnect()
            assert vif.broken is None
            assert heard.empty()


async def test_a_vif_of_a_dead_worker_is_taken_down(xen: Path, network: PythonNetwork) -> None:
    """XSA-374: a dead worker is a normal state."""
    with open_workers(xen, 1) as (platform, workers):
        async with two_queues(xen) as (guest, _):
            vif = make_vif(xen, guest.domid, network, platform, workers)
            await vif.connect(agreement(guest), adopt=False)
            await vif.serve()
            workers.workers[0].thread.stop()
            await asyncio.wait_for(vif.disconnect(), 20)
            assert not guest.domain.still_in_use(guest.tx.gref)


async def test_a_python_network_serves_one_device(xen: Path, network: PythonNetwork) -> None:
    """The fault: two devices on one socket each got half of the frames. The second is refused until the first is
    gone.
    """
    async with serving(xen, network) as backend, join(xen) as one, join(xen) as other:
        first = await backend.attach(one.domid, "python:lan")
        await one.connect()
        second = await backend.attach(other.domid, "python:lan")
        error = f"/local/domain/0/error/{second.backend.removeprefix('/local/domain/0/')}/error"
        reason = await until(backend.store, error, bool)
        assert reason is not None
        assert reason.endswith(
            f"network python:lan: {first} uses it; give a factory, which makes one for each device"
        )
        await exchange(one, network)
        await backend.detach(first, seconds=0.1)
        await other.connect()
        await exchange(other, network)


async def test_a_factory_gives_each_device_its_own(xen: Path, network: PythonNetwork) -> None:
    made: dict[str, PythonNetwork] = {}

    def make(device: str) -> PythonNetwork:
        made[device] = PythonNetwork(device)
        return made[device]

    serve = serving(xen, network, networks={"python:each": make})
    async with serve as backend, join(xen) as one, join(xen) as other:
        names = [await backend.attach(guest.domid, "python:each") for guest in (one, other)]
        await asyncio.gather(one.connect(), other.connect())
        assert set(made) == set(map(str, names))
        for _ in range(3):
            await asyncio.gather(
                *(exchange(guest, made[str(name)]) for guest, name in zip((one, other), names, strict=True))
            )
        for name in names:
            await backend.detach(name, seconds=0.1)
    assert all(network.socket.fileno() < 0 for network in made.values())
