# SPDX-License-Identifier: Apache-2.0
"""One backend at a time: a second is refused while the first runs, and takes over while the first dies."""

import random
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from netback.errors import PlatformError
from netback.frontend import FrontConfig
from netback.net.tap import TapNetwork
from netback.platforms.emulated import EmulatedDomain, EmulatedEventChannels, EmulatedPlatform
from netback.vif.queue import Channel, bind_ports
from tests.cli.test_commands import run
from tests.crash.topology import topology
from tests.net.namespace import new_network

REPLACED = 20


async def test_a_second_backend_is_refused_in_one_line(xen: Path) -> None:
    """The first backend's guests notice nothing. This test failed without the lock."""
    async with topology(xen) as made:
        for flow in made.flows:
            flow.run()
        code, out, err = await run("run", "--dir", xen)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "another netback serves domain 0" in err
        await made.goes_on()
        await made.stop_sending()
        assert sum(flow.lost + flow.repeated for flow in made.flows) == 0


async def test_a_new_one_while_the_old_one_dies(xen: Path) -> None:
    """For a moment the old process still holds its lock and ports."""
    rng = random.Random(4)
    async with topology(xen, (FrontConfig(), FrontConfig())) as made:
        for flow in made.flows:
            flow.run()
        for _ in range(REPLACED):
            await made.goes_on(rng.randrange(30))
            made.backends.replace()
            made.check()
        await made.goes_on()
        await made.stop_sending()


class DyingHolder:
    """A predecessor holds the guest's port until the first attempt to bind it has failed."""

    def __init__(self, events: EmulatedEventChannels, holder: EmulatedEventChannels) -> None:
        self.native, self._events, self._holder = events.native, events, holder

    def bind_interdomain(self, domid: int, port: int) -> int:
        try:
            return self._events.bind_interdomain(domid, port)
        except PlatformError:
            self._holder.close()
            raise

    def alloc_unbound(self, domid: int) -> int:
        return self._events.alloc_unbound(domid)

    def unbind(self, port: int) -> None:
        self._events.unbind(port)

    def close(self) -> None:
        self._events.close()


async def test_a_port_that_is_the_old_ones_still(xen: Path) -> None:
    """EINVAL does not end the attempts."""
    with EmulatedDomain.join(xen, pages=16, grant_pages=1) as guest, EmulatedPlatform(xen) as platform:
        port = guest.events.alloc_unbound(0)
        holder = platform.open_events()
        holder.bind_interdomain(guest.domid, port)
        with ExitStack() as undo:
            events = DyingHolder(platform.open_events(), holder)
            undo.callback(events.close)
            (local,) = await bind_ports([Channel(events, port, "event-channel")], guest.domid, undo)
            assert local > 0


def test_a_tap_that_is_the_old_ones_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """EBUSY does not end the attempts: here the old process dies while the new one waits."""
    with new_network():
        old = TapNetwork("host0")
        monkeypatch.setattr("netback.net.tap.time", SimpleNamespace(sleep=lambda _seconds: old.close()))
        new = TapNetwork("host0")
        assert new.name == "host0"
        new.remove()
