# SPDX-License-Identifier: Apache-2.0
"""Changes to links, as followers are called for them."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import closing

import pytest

from netback.net.monitor import LinkMonitor
from netback.net.rtnetlink import add_altname, set_mtu

from .namespace import bring_back, ip, new_network, other_network, send_to, veth

SECONDS = 10


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with new_network():
        yield


@pytest.fixture
async def monitor(namespace: None) -> AsyncIterator[LinkMonitor]:
    with closing(LinkMonitor()) as monitor:
        yield monitor


class Follower:
    """Counts its calls."""

    def __init__(self, monitor: LinkMonitor, *keys: int | str) -> None:
        self.calls = 0
        self._news = asyncio.Event()
        self._monitor = monitor
        monitor.follow(self.call, keys)

    def call(self) -> None:
        self.calls += 1
        self._news.set()

    async def called(self) -> None:
        """Return at the next call."""
        async with asyncio.timeout(SECONDS):
            await self._news.wait()
        self._news.clear()

    async def hears(self) -> None:
        """Return once it was called, and will be called no more for what the kernel did before this."""
        await self.called()
        await passed(self._monitor)
        self._news.clear()

    async def silent(self) -> None:
        """Check that it was not called for anything the kernel did before this."""
        before = self.calls
        await passed(self._monitor)
        assert self.calls == before


async def passed(monitor: LinkMonitor) -> None:
    """Wait until the monitor has read everything that the kernel did before this."""
    witness = Follower(monitor, "witness0")
    ip("link add witness0 type bridge")
    await witness.called()
    ip("link del witness0")
    await witness.called()
    monitor.follow(witness.call, ())


async def make(monitor: LinkMonitor, name: str) -> int:
    """A link that the monitor has already reported; returns its index."""
    ip(f"link add {name} up type bridge")
    await passed(monitor)
    return socket.if_nametoindex(name)


async def test_a_name_that_appears(monitor: LinkMonitor) -> None:
    follower = Follower(monitor, "late0")
    ip("link add other0 type bridge")
    await follower.silent()
    ip("link add late0 type bridge")
    await follower.hears()
    ip("link del late0")
    await follower.hears()
    ip("link set other0 name late0")
    await follower.hears()


async def test_an_alternative_name_that_appears(monitor: LinkMonitor) -> None:
    """Linux reports it only while the link is up."""
    index = await make(monitor, "dum0")
    follower = Follower(monitor, "a-long-name-of-twenty-and-more-letters")
    add_altname(index, "a-long-name-of-twenty-and-more-letters")
    await follower.hears()


@pytest.mark.parametrize("words", ["link set dum0 name dum1", "link set dum0 mtu 1400", "link del dum0"])
async def test_an_index(monitor: LinkMonitor, words: str) -> None:
    follower = Follower(monitor, await make(monitor, "dum0"))
    await follower.silent()
    ip(words)
    await follower.hears()


async def test_a_link_that_moves(monitor: LinkMonitor) -> None:
    veth("dum0", "dum1")
    await passed(monitor)
    follower = Follower(monitor, "dum0")
    with other_network() as other:
        send_to("dum0", other)
        await follower.hears()
        await follower.silent()
        bring_back("dum0", other)
        await follower.hears()


async def test_following_something_else(monitor: LinkMonitor) -> None:
    follower = Follower(monitor, "a0", "b0")
    monitor.follow(follower.call, {"b0", "c0"})
    ip("link add a0 type bridge")
    await follower.silent()
    for name in ("b0", "c0"):
        ip(f"link add {name} type bridge")
        await follower.hears()
    await follower.silent()
    monitor.follow(follower.call, ())
    ip("link del b0")
    await follower.silent()


async def test_lost_messages_have_everybody_look(monitor: LinkMonitor) -> None:
    """The kernel drops what does not fit the socket's buffer, and says ENOBUFS once."""
    index = await make(monitor, "dum0")
    follower = Follower(monitor, "never0")
    for change in range(1000):  # while the event loop reads nothing
        set_mtu(index, 1400 + change % 2)
    await follower.hears()


async def test_ends(monitor: LinkMonitor) -> None:
    follower = Follower(monitor, "a0")
    monitor.close()
    monitor.close()
    ip("link add a0 type bridge")
    await asyncio.sleep(0)
    assert follower.calls == 0
    assert not monitor.works
