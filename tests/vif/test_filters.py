# SPDX-License-Identifier: Apache-2.0
"""Filters of a vif with two queues: around each queue's peer, and around what steers frames to them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from netback.errors import ConfigError
from netback.net.filters import Addresses, Filters, parse_filters
from netback.net.python import PythonNetwork
from tests.vif.guest import FRAME, Guest
from tests.vif.test_group import TwoPeers, agreement, make_vif, open_workers, two_queues

TAG = b"\x81\0\0\x0a"
TAGGED = FRAME[:12] + TAG + FRAME[12:]


def filters(*texts: str) -> Filters:
    return Filters(parse_filters(texts), Addresses(FRAME[6:12]))


@pytest.fixture
def two() -> Iterator[TwoPeers]:
    made = TwoPeers()
    yield made
    made.remove()


async def sends(queue: Guest, network: PythonNetwork, wanted: bytes) -> None:
    slot = queue.send(FRAME)
    assert await network.recv() == wanted
    assert await queue.answer(slot) == 0


async def test_each_queues_peer(xen: Path, two: TwoPeers) -> None:
    """Set while frames flow, and kept over connections; the counters are those of all queues."""
    with open_workers(xen, 2) as (platform, workers):
        async with two_queues(xen) as queues:
            vif = make_vif(xen, queues[0].domid, two, platform, workers)
            await vif.connect(agreement(*queues), adopt=False)
            await vif.serve()
            for queue, end in zip(queues, two.ends, strict=True):
                await sends(queue, end, FRAME)
            await vif.filter(filters("vlan,access=10"))
            for queue, end in zip(queues, two.ends, strict=True):
                await sends(queue, end, TAGGED)
                slot = queue.post()
                await end.send(FRAME)
                await end.send(TAGGED)
                assert await queue.receive(slot) == (0, FRAME)
            assert vif.counters["rx_vlan_dropped"] == 2
            await vif.filter(filters("vlan,access=10", "antispoof"))
            for queue, end in zip(queues, two.ends, strict=True):
                await sends(queue, end, TAGGED)
            await vif.disconnect()
            assert vif.counters["rx_vlan_dropped"] == 2
            await vif.connect(agreement(*queues), adopt=True)
            await vif.serve()
            await sends(queues[1], two.ends[1], TAGGED)
            await vif.filter(Filters())
            await sends(queues[0], two.ends[0], FRAME)
            assert vif.counters["rx_vlan_dropped"] == 2
            await vif.disconnect()


async def test_a_network_with_one_descriptor(xen: Path) -> None:
    """The queues send through duplicates, and a distributor reads: each has its filters, also after a change."""
    network = PythonNetwork("one")
    with open_workers(xen, 2) as (platform, workers):
        async with two_queues(xen) as queues:
            vif = make_vif(xen, queues[0].domid, network, platform, workers)
            await vif.filter(filters("vlan,access=10"))
            await vif.connect(agreement(*queues), adopt=False)
            await vif.serve()
            for texts, wanted in (
                (("vlan,access=10",), TAGGED),
                ((), FRAME),
                (("faults,loss=0%", "vlan,access=10"), TAGGED),
            ):
                await vif.filter(filters(*texts))
                for queue in queues:
                    await sends(queue, network, wanted)
                slots = [queue.post() for queue in queues]
                before = [queue.rx.index(2) for queue in queues]
                if texts:
                    await network.send(FRAME)
                await network.send(wanted)
                # FRAME is no IP packet, so that it has no flow: the first queue takes it
                assert await queues[0].receive(slots[0]) == (0, FRAME)
                assert queues[1].rx.index(2) == before[1]
            assert vif.counters["rx_vlan_dropped"] == 2
            await vif.disconnect()
    network.remove()


async def test_unknown_addresses_change_nothing(xen: Path, two: TwoPeers) -> None:
    with open_workers(xen, 1) as (platform, workers):
        async with two_queues(xen) as queues:
            vif = make_vif(xen, queues[0].domid, two, platform, workers)
            await vif.connect(agreement(*queues), adopt=False)
            await vif.serve()
            await vif.filter(filters("vlan,access=10"))
            with pytest.raises(ConfigError, match="antispoof: the device has no mac node"):
                await vif.filter(Filters(parse_filters(["antispoof"]), Addresses()))
            assert vif.filters == filters("vlan,access=10")
            await sends(queues[0], two.ends[0], TAGGED)
            await vif.disconnect()
