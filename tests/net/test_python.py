# SPDX-License-Identifier: Apache-2.0
"""A network that is a Python object: the public way to write one."""

import asyncio
from collections.abc import Iterator

import pytest

from netback.dataplane.caps import EVERYTHING
from netback.net.python import PythonNetwork

from .contract import (
    FillableNetwork,
    FilteredNetwork,
    FrameNetwork,
    OffloadNetwork,
    Site,
    await_readable,
    frame,
    receive,
)
from .far import FarSocket


@pytest.fixture
def site() -> Iterator[Site]:
    network = PythonNetwork("sandbox", vnet_hdr=True)
    far = FarSocket(network.socket)

    def empty() -> None:
        while True:
            try:
                network.socket.recv(1)
            except BlockingIOError:
                return

    yield Site(network, far, release=empty)
    network.remove()


class TestUnderFilters(FilteredNetwork):
    """With filters around its peers."""


class TestPython(FrameNetwork, OffloadNetwork, FillableNetwork):
    """Over the socketpair with virtio_net_hdr."""

    def test_takes_a_burst_of_the_largest_frames(self, site: Site) -> None:
        assert site.network.peers[0].send([frame(0, 65535)] * 40) == (40, 0)

    def test_end_of_the_far_side(self, site: Site) -> None:
        site.far.send(frame(1))
        site.far.close()
        assert receive(site.network, 1) == [frame(1)]
        assert site.network.peers[0].recv() == []
        assert site.network.peers[0].closed
        assert site.network.peers[0].send([frame(2)]) == (1, 1)


@pytest.fixture
def plain() -> Iterator[PythonNetwork]:
    network = PythonNetwork()
    yield network
    network.remove()


async def test_without_a_header_frames_are_plain(plain: PythonNetwork) -> None:
    assert plain.peers[0].caps == 0
    plain.peers[0].send([frame(1)])
    assert await plain.recv() == frame(1)[10:]
    await plain.send(frame(2)[10:])
    assert receive(plain, 1) == [frame(2)]


async def test_send_waits_for_room(plain: PythonNetwork) -> None:
    async def flood() -> int:
        for _ in range(1000):
            await plain.send(frame(3, 65535)[10:])
        return 1000

    sending = asyncio.create_task(flood())
    taken = 0
    while taken < 1000:
        await asyncio.to_thread(await_readable, plain.peers[0].fd)
        taken += len(plain.peers[0].recv(16))
    assert await sending == 1000


async def test_recv_ends_when_the_vif_closes(plain: PythonNetwork) -> None:
    plain.peers[0].send([frame(1)])
    plain.close()
    assert await plain.recv() == frame(1)[10:]
    with pytest.raises(EOFError, match="python"):
        await plain.recv()
    with pytest.raises(BrokenPipeError):
        await plain.send(frame(1))


@pytest.mark.parametrize("vnet_hdr", [False, True])
async def test_an_empty_frame_is_refused(vnet_hdr: bool) -> None:
    network = PythonNetwork(vnet_hdr=vnet_hdr)
    assert network.peers[0].caps == (EVERYTHING if vnet_hdr else 0)
    with pytest.raises(ValueError, match="empty"):
        await network.send(bytes(10) if vnet_hdr else b"")
    network.remove()
