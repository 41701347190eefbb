# SPDX-License-Identifier: Apache-2.0
"""A guest that takes no frames: its link loses its carrier, the condition is shown with its duration, and it comes back
by itself.
"""

import logging
from pathlib import Path

import pytest

from netback.daemon.config import parse_config
from netback.daemon.status import describe
from netback.net.python import PythonNetwork
from netback.vif.features import WaitTimes
from tests.vif.guest import FRAME, exchange, join, serving
from tests.xenbus.toolstack import add, passing

SOON = WaitTimes(drain=3600, stall=0.01)


class Link(PythonNetwork):
    """A network with a carrier, and with a kernel that counts lost frames."""

    def __init__(self) -> None:
        super().__init__()
        self.carriers: list[bool] = []

    def carrier(self, on: bool) -> None:
        self.carriers.append(on)

    def drops(self) -> dict[str, int]:
        return {"rx_overflow": 7}

    def queued(self) -> dict[str, int]:
        raise OSError("the link was removed")


async def test_a_stalled_guest_loses_its_carrier_and_comes_back(
    xen: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = Link()
    async with serving(xen, network, times=SOON) as backend, join(xen) as guest:
        name = await add(backend.store, guest.domid)
        await guest.connect()
        device = backend.devices[name]
        vif = device.vif
        assert vif is not None
        await exchange(guest, network)
        assert network.carriers[-1]
        status = describe(device)
        assert (status.stalled, status.drops, status.queued) == (None, {"rx_overflow": 7}, {})
        await network.send(FRAME)
        await passing(backend, lambda: vif.stalled is not None)
        assert network.carriers[-2:] == [True, False]
        first = describe(device).stalled
        assert first is not None
        await passing(backend, lambda: (describe(device).stalled or 0) > first)
        slot = guest.post()
        await passing(backend, lambda: vif.stalled is None)
        assert network.carriers[-2:] == [False, True]
        assert vif.counters["rx_expired"] == 1
        await network.send(FRAME)
        assert await guest.receive(slot) == (0, FRAME)
        await exchange(guest, network)
        said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert said == [
            f"{name}: the guest is stalled: it takes no frames; carrier off",
            f"{name}: the guest takes frames again",
        ]
    network.remove()


async def test_a_new_connection_is_not_stalled(xen: Path) -> None:
    network = Link()
    async with serving(xen, network, times=SOON) as backend, join(xen) as guest:
        name = await add(backend.store, guest.domid)
        await guest.connect()
        vif = backend.devices[name].vif
        config = backend.devices[name].config
        assert vif is not None
        assert config is not None
        await network.send(FRAME)
        await passing(backend, lambda: vif.stalled is not None)
        await vif.connect(config, adopt=True)
        await vif.serve()
        assert vif.stalled is None
        assert network.carriers[-1]
    network.remove()


async def test_without_feature_rx_notify_there_is_no_verdict(xen: Path, network: PythonNetwork) -> None:
    """Frames expire after 30 ms there, whatever the configuration says; the guest is polled."""
    async with serving(xen, network, times=SOON) as backend, join(xen) as guest:
        name = await add(backend.store, guest.domid)
        await guest.connect(feature_rx_notify=None)
        vif = backend.devices[name].vif
        assert vif is not None
        await network.send(FRAME)
        await passing(backend, lambda: vif.counters["rx_expired"] == 1)
        assert vif.stalled is None
        await exchange(guest, network)


async def test_times_of_the_configuration(xen: Path, network: PythonNetwork) -> None:
    config = parse_config("rx_drain_seconds = 0.05\nrx_stall_seconds = 0\n")
    assert parse_config("").times == WaitTimes() == WaitTimes(10, 60)
    for text in (
        "rx_drain_seconds = 0",
        "rx_drain_seconds = 1e9",
        "rx_stall_seconds = -1",
        "rx_stall_seconds = nan",
    ):
        with pytest.raises(ValueError, match=r"rx_(drain|stall)_seconds"):
            parse_config(text)
    async with serving(xen, network, times=config.times) as backend, join(xen) as guest:
        name = await add(backend.store, guest.domid)
        await guest.connect()
        vif = backend.devices[name].vif
        assert vif is not None
        for _ in range(3):
            await network.send(FRAME)
        await passing(backend, lambda: vif.counters["rx_expired"] == 3)
        assert vif.stalled is None
