# SPDX-License-Identifier: Apache-2.0
"""A guest of two queues on a network with one descriptor: which queue each frame comes by, and in which order."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import groupby
from pathlib import Path

import pytest

from netback.abi.netif_control import MAPPING_ENTRY, CtrlType, HashAlgorithm, HashType
from netback.daemon import Backend, BackendConfig
from netback.frontend import FrontConfig, Frontend
from netback.frontend.control import FrontControl
from netback.net.null import NullNetwork
from netback.net.python import PythonNetwork
from netback.platforms.emulated import EmulatedPlatform
from tests.flow_oracle import queue_of
from tests.vif.guest import SECONDS

FLOWS = 16
ALL = HashType.IPV4 | HashType.IPV4_TCP | HashType.IPV6 | HashType.IPV6_TCP
KEY, OTHER_KEY = bytes(range(1, 41)), bytes(range(101, 141))
TCP, AT = 6, 14 + 20 + 20

Rule = tuple[int, bytes, Sequence[int]]
"""Types, key and mapping of the oracle; no types: by flow."""
FREE: Rule = (0, b"", ())


def frame_of(flow: int, number: int, size: int = 0) -> bytes:
    """A frame of one of many TCP flows, with its number."""
    total = 20 + 20 + 6 + size
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, total & 0xFFFF, 0, 0, 64, TCP, 0, b"\xc0\0\2\1", b"\xc0\0\2\2")
    tcp = struct.pack(">HHIIBBHHH", 1000 + flow, 80, 0, 0, 0x50, 0, 0, 0, 0)
    return bytes(12) + b"\x08\x00" + ip + tcp + struct.pack(">HI", flow, number) + bytes(size)


def queue(flow: int, rule: Rule) -> int:
    types, key, mapping = rule
    return queue_of(frame_of(flow, 0), 2, types, key, mapping)


class TwoEnds(NullNetwork):
    """The guest's network: what its queue N receives, `ends[N]` receives."""

    def __init__(self) -> None:
        self.ends = (PythonNetwork("q0", vnet_hdr=True), PythonNetwork("q1", vnet_hdr=True))
        self.peers = tuple(peer for end in self.ends for peer in end.peers)

    def remove(self) -> None:
        for end in self.ends:
            end.remove()


class Guest:
    """A connected guest of two queues; `came` has the queue, flow and number of each frame, in order."""

    def __init__(self, vif: Frontend, inside: TwoEnds, far: PythonNetwork) -> None:
        self.vif, self.inside, self.far = vif, inside, far
        self.came: list[tuple[int, int, int]] = []
        self.news = asyncio.Condition()
        self.sent = dict.fromkeys(range(FLOWS), 0)
        self.readers = [asyncio.create_task(self.read(number)) for number in range(2)]

    @property
    def control(self) -> FrontControl:
        assert self.vif.control is not None
        return self.vif.control

    async def read(self, number: int) -> None:
        with suppress(EOFError):
            while True:
                frame = await self.inside.ends[number].recv()
                flow, count = struct.unpack_from(">HI", frame, 10 + AT)
                async with self.news:
                    self.came.append((number, flow, count))
                    self.news.notify_all()

    async def send(self, flow: int, size: int = 0) -> None:
        await self.far.send(frame_of(flow, self.sent[flow], size))
        self.sent[flow] += 1

    async def send_all(self, rounds: int = 8, size: int = 0) -> None:
        for _ in range(rounds):
            for flow in range(FLOWS):
                await self.send(flow, size)

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS), self.news:
            await self.news.wait_for(true)

    async def all_came(self) -> None:
        await self.until(lambda: len(self.came) >= sum(self.sent.values()))

    def of(self, flow: int) -> list[tuple[int, int]]:
        """(queue, number) of each frame of a flow, as they came."""
        return [(queue, number) for queue, of, number in self.came if of == flow]

    def check(self, rule: Rule) -> None:
        """Every frame came, once, in order, by the queue that the oracle names."""
        for flow in range(FLOWS):
            assert self.of(flow) == [(queue(flow, rule), number) for number in range(self.sent[flow])]

    def forget(self) -> None:
        self.came.clear()
        self.sent = dict.fromkeys(range(FLOWS), 0)


@asynccontextmanager
async def running(xen: Path, far: PythonNetwork, workers: int = 2) -> AsyncIterator[Backend]:
    config = BackendConfig(xen, networks={"python:lan": far}, queues=2, workers=workers)
    with EmulatedPlatform(xen) as platform:
        async with Backend(platform, config) as backend:
            yield backend


@asynccontextmanager
async def guest_of_two(xen: Path, far: PythonNetwork, backend: Backend) -> AsyncIterator[Guest]:
    inside = TwoEnds()
    try:
        async with Frontend(xen, inside, config=FrontConfig(queues=2, control=True)) as vif:
            await backend.attach(vif.guest.domid, "python:lan")
            async with asyncio.timeout(SECONDS):
                await vif.connected()
            guest = Guest(vif, inside, far)
            try:
                yield guest
            finally:
                for reader in guest.readers:
                    reader.cancel()
                await asyncio.wait(guest.readers)
    finally:
        inside.remove()


def counted(backend: Backend, name: str) -> int:
    vif = next(iter(backend.devices.values())).vif
    assert vif is not None
    return vif.counters[name]


@pytest.mark.parametrize("workers", [1, 2])
async def test_both_queues_get_frames_and_a_flow_keeps_its_own(
    xen: Path, network: PythonNetwork, workers: int
) -> None:
    async with running(xen, network, workers) as backend, guest_of_two(xen, network, backend) as guest:
        await guest.send_all()
        await guest.all_came()
        guest.check(FREE)
        assert {place for place, _, _ in guest.came} == {0, 1}
        assert counted(backend, "rx_inbox_full") == 0


async def test_a_guests_mapping_decides(xen: Path, network: PythonNetwork) -> None:
    """Without a mapping the hash modulo the queues does; a frame without a hash is number 0 (netif.h)."""
    async with running(xen, network) as backend, guest_of_two(xen, network, backend) as guest:
        for types, mapping in (
            (ALL, ()),
            (ALL, (1, 0, 1)),
            (ALL, (1,)),
            (HashType.IPV6, (1, 0)),
            (ALL, [0, 1] * 64),
        ):
            await guest.control.set_hash(types, KEY, mapping)
            await guest.send_all()
            await guest.all_came()
            guest.check((types, KEY, mapping))
            guest.forget()
        assert counted(backend, "rx_hashed") == 4 * 8 * FLOWS


def steps(control: FrontControl) -> list[tuple[Callable[[], Awaitable[object]], Rule]]:
    """Changes of everything that steers, and the rule after each."""
    first, second = [0, 1, 1, 0, 1, 0, 0, 1], [1, 1, 0, 0]

    def ask(kind: CtrlType, *data: int) -> Callable[[], Awaitable[object]]:
        return lambda: control.require(kind, *data)

    def table(part: list[int]) -> int:
        return control.grant(b"".join(map(MAPPING_ENTRY.pack, part)), readonly=True).gref

    keys = [control.grant(key, readonly=True).gref for key in (KEY, OTHER_KEY)]
    return [
        (ask(CtrlType.SET_HASH_ALGORITHM, HashAlgorithm.TOEPLITZ), FREE),
        (ask(CtrlType.SET_HASH_KEY, keys[0], 40), FREE),
        (ask(CtrlType.SET_HASH_FLAGS, ALL), (ALL, KEY, ())),
        (ask(CtrlType.SET_HASH_MAPPING_SIZE, 8), (ALL, KEY, [0] * 8)),
        (ask(CtrlType.SET_HASH_MAPPING, table(first), 8, 0), (ALL, KEY, first)),
        (ask(CtrlType.SET_HASH_MAPPING, table(second), 4, 2), (ALL, KEY, [*first[:2], *second, *first[6:]])),
        (ask(CtrlType.SET_HASH_KEY, keys[1], 40), (ALL, OTHER_KEY, [*first[:2], *second, *first[6:]])),
        (
            ask(CtrlType.SET_HASH_FLAGS, HashType.IPV4),
            (HashType.IPV4, OTHER_KEY, [*first[:2], *second, *first[6:]]),
        ),
        (ask(CtrlType.SET_HASH_ALGORITHM, HashAlgorithm.NONE), FREE),
    ]


async def test_changes_under_traffic(xen: Path, network: PythonNetwork) -> None:
    """No frame is lost or comes twice; a flow is in order in each queue, and changes its queue only as the rules do."""
    async with running(xen, network) as backend, guest_of_two(xen, network, backend) as guest:
        stop = asyncio.Event()

        async def traffic() -> None:
            while not stop.is_set():
                await guest.send_all(1)
                await guest.until(lambda: sum(guest.sent.values()) - len(guest.came) < 32 * FLOWS)

        async def more() -> None:
            """Let some frames pass under the rule in force."""
            target = len(guest.came) + 4 * FLOWS
            await guest.until(lambda: len(guest.came) >= target)

        sending = asyncio.create_task(traffic())
        rules = [FREE]
        for change, rule in steps(guest.control):
            await more()
            await change()
            rules.append(rule)
        await more()
        stop.set()
        await sending
        await guest.all_came()
        assert counted(backend, "rx_inbox_full") == 0
        for flow in range(FLOWS):
            came = guest.of(flow)
            for place in (0, 1):
                numbers = [number for at, number in came if at == place]
                assert numbers == sorted(set(numbers))
            assert sorted(number for _, number in came) == list(range(guest.sent[flow]))
            by_number = [place for place, _ in sorted(came, key=lambda each: each[1])]
            wanted = [place for place, _ in groupby(queue(flow, rule) for rule in rules)]
            assert [place for place, _ in groupby(by_number)] == wanted


async def test_a_queue_that_takes_nothing_stops_no_other(xen: Path, network: PythonNetwork) -> None:
    """Its inbox keeps the first frames, in order, the further ones are lost and counted; it goes on by itself."""
    async with running(xen, network) as backend, guest_of_two(xen, network, backend) as guest:
        places = {queue(flow, FREE): flow for flow in range(FLOWS)}
        guest.readers[1].cancel()
        await asyncio.wait(guest.readers[1:])
        rounds = 700
        for _ in range(rounds):
            await guest.send(places[1], 60000)
            await guest.send(places[0], 60000)
            await guest.until(lambda: len(guest.came) >= guest.sent[places[0]])
        assert guest.of(places[0]) == [(0, number) for number in range(rounds)]
        await backend.respond()
        lost = counted(backend, "rx_inbox_full")
        assert 0 < lost < rounds
        guest.readers[1] = asyncio.create_task(guest.read(1))
        await guest.until(lambda: len(guest.of(places[1])) >= rounds - lost)
        numbers = [number for _, number in guest.of(places[1])]
        assert numbers == sorted(set(numbers))
        await guest.send(places[1])
        await guest.until(lambda: guest.of(places[1])[-1:] == [(1, rounds)])


async def test_the_next_backend_steers_as_the_guest_set(xen: Path, network: PythonNetwork) -> None:
    """A guest never sends it again (netif.h)."""
    async with running(xen, network) as first, guest_of_two(xen, network, first) as guest:
        await guest.send_all()
        await guest.all_came()
        mapping = [1, 0, 0, 1, 1]
        await guest.control.set_hash(ALL, KEY, mapping)
        await first.__aexit__(None, None, None)
        guest.forget()
        async with running(xen, network):
            await guest.send_all()
            await guest.all_came()
            guest.check((ALL, KEY, mapping))
            await guest.control.require(CtrlType.SET_HASH_ALGORITHM, HashAlgorithm.NONE)
        guest.forget()
        async with running(xen, network):
            await guest.send_all()
            await guest.all_came()
            guest.check(FREE)


async def test_a_new_connection_is_steered_by_flow(xen: Path, network: PythonNetwork) -> None:
    async with running(xen, network) as backend, guest_of_two(xen, network, backend) as guest:
        await guest.control.set_hash(ALL, KEY, [1])
        await guest.vif.reload()
        await guest.vif.connected()
        await guest.send_all()
        await guest.all_came()
        guest.check(FREE)


async def test_a_guest_that_closes_gets_no_more_frames(xen: Path, network: PythonNetwork) -> None:
    """While this end is Closing the network keeps its frames, and both directions of all queues end in order."""
    async with running(xen, network) as backend, guest_of_two(xen, network, backend) as guest:
        vif = next(iter(backend.devices.values())).vif
        assert vif is not None
        await vif.refuse_rx()
        await guest.send_all(1)
        await guest.control.set_hash(ALL, KEY, [1])
        assert not guest.came
        await guest.inside.ends[1].send(bytes(10) + frame_of(0, 0))
        assert await network.recv() == frame_of(0, 0)
        assert not guest.came
