# SPDX-License-Identifier: Apache-2.0
"""A device's limits: the toolstack's node, changed while frames flow, the configuration, attach, the control socket."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState as State
from netback.abi.xs_wire import Op
from netback.control import Refused
from netback.control.schema import Settings
from netback.daemon import Backend, BackendConfig
from netback.daemon.config import DeviceRule, parse_config
from netback.net.python import PythonNetwork
from netback.vif.rate import Rate, Rates, parse_rate
from netback.xenbus.names import DeviceName
from tests.daemon.talk import client
from tests.vif.guest import FRAME, Guest, exchange, join, serving
from tests.xenbus.refusals import Refusal, RefusingPlatform
from tests.xenbus.toolstack import add, looked, passing

MBIT = Rate(1250, 10_000)
SLOW = Rate(1, 1_000_000)


def rates(backend: Backend, name: DeviceName) -> Rates:
    vif = backend.devices[name].vif
    assert vif is not None
    return vif.rates


async def in_force(backend: Backend, name: DeviceName, wanted: Rates) -> None:
    await passing(backend, lambda: rates(backend, name) == wanted)


def throttled(backend: Backend, name: DeviceName, way: str) -> bool:
    vif = backend.devices[name].vif
    assert vif is not None
    return vif.counters[f"{way}_throttled"] > 0


async def test_the_toolstacks_node(backend: Backend, guest: Guest, network: PythonNetwork) -> None:
    """The limit holds from the first frame on, and a change of the node is applied to the same connection."""
    name = await add(backend.store, guest.domid, rate="1,1000000")
    await guest.connect()
    slot = guest.send(FRAME)
    await passing(backend, lambda: throttled(backend, name, "tx"))
    assert guest.tx.index(2) == slot
    await backend.store.write(f"{name.backend}/rate", "1250,10000")
    assert await network.recv() == FRAME
    assert await guest.answer(slot) == 0
    assert rates(backend, name) == Rates(tx=MBIT)
    await exchange(guest, network)
    await backend.store.rm(f"{name.backend}/rate")
    await in_force(backend, name, Rates())
    await exchange(guest, network)


async def test_what_the_guest_receives(backend: Backend, guest: Guest, network: PythonNetwork) -> None:
    name = await add(backend.store, guest.domid, rx_rate="1,1000000")
    await guest.connect()
    slot = guest.post()
    await network.send(FRAME)
    await passing(backend, lambda: throttled(backend, name, "rx"))
    await backend.store.write(f"{name.backend}/rx-rate", "none")
    assert await guest.receive(slot) == (0, FRAME)


@pytest.mark.parametrize("bad", ["10Mb/s", "", "1250", "62500,0", "\udcff", "x" * 3000])
async def test_a_bad_value_is_said_once_and_limits_nothing(
    backend: Backend, guest: Guest, network: PythonNetwork, caplog: pytest.LogCaptureFixture, bad: str
) -> None:
    name = await add(backend.store, guest.domid, rate=bad)
    await guest.connect()
    for _ in range(3):
        await backend.store.write(f"{name.backend}/rate", bad)
        await exchange(guest, network)
    said = [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and "is no rate, so it limits nothing" in record.getMessage()
    ]
    assert len(said) == 1
    assert said[0].startswith(f"{name}: rate ")
    assert len(said[0]) < 200
    assert backend.devices[name].error == ""


@pytest.mark.parametrize("way", ["tx", "rx"])
async def test_a_rate_of_0_lets_nothing_pass(
    backend: Backend, guest: Guest, network: PythonNetwork, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    """As Linux's backend does: xl writes it for less than a byte in an interval. The log says so once."""
    node = {"tx": "rate", "rx": "rx-rate"}[way]
    name = await add(backend.store, guest.domid, **{node: "0,50000"})
    await guest.connect()
    sent, posted = guest.send(FRAME), guest.post()
    await network.send(FRAME)
    await passing(backend, lambda: throttled(backend, name, way))
    if way == "tx":
        assert await guest.receive(posted) == (0, FRAME)
        assert guest.tx.index(2) == sent
    else:
        assert await network.recv() == FRAME
        assert guest.rx.index(2) == posted
    await backend.store.write(f"{name.backend}/{node}", "0,1")
    await in_force(backend, name, Rates(**{way: Rate(0, 1)}))
    await backend.store.write(f"{name.backend}/{node}", "62500,50000")
    if way == "tx":
        assert await network.recv() == FRAME
    else:
        assert await guest.receive(posted) == (0, FRAME)
    said = [record.getMessage() for record in caplog.records if "lets nothing pass" in record.getMessage()]
    assert said[0].startswith(f"{name}: {node} '0,50000' lets nothing pass; xl writes it")
    assert len(said) == 2


async def test_a_refused_read_is_tried_again(xen: Path, network: PythonNetwork) -> None:
    with RefusingPlatform(xen) as platform:
        platform.refusals = (Refusal(Op.READ, "/rate", "EINVAL", times=1),)
        config = BackendConfig(xen, networks={"python:lan": network}, workers=1)
        async with Backend(platform, config) as backend, join(xen) as guest:
            name = await add(backend.store, guest.domid, rate="1250,10000")
            await guest.connect()
            await in_force(backend, name, Rates(tx=MBIT))


async def test_the_configuration_and_its_change(
    xen: Path, network: PythonNetwork, backend: Backend, guest: Guest
) -> None:
    """A node goes before the configuration, which a reload changes at once."""
    rule = DeviceRule(net="null", domid=guest.domid, tx_rate="1Mb/s@10ms", rx_rate="8b/s")
    await backend.reconfigure(replace(backend.config, rules=(rule,)))
    name = await add(backend.store, guest.domid, rx_rate="1250,10000")
    await guest.connect()
    assert rates(backend, name) == Rates(tx=MBIT, rx=MBIT)
    await backend.reconfigure(replace(backend.config, rules=()))
    await in_force(backend, name, Rates(rx=MBIT))
    await exchange(guest, network)


def test_a_rate_in_the_configuration() -> None:
    config = parse_config("[[device]]\nnet = 'tap'\ntx_rate = '10Mb/s'\nrx_rate = 'none'\n")
    assert config.device[0].rates == Rates(tx=parse_rate("10Mb/s"))
    with pytest.raises(ValueError, match=r"tx_rate: '10' is not a rate: as in 10Mb/s"):
        parse_config("[[device]]\nnet = 'tap'\ntx_rate = '10'\n")


async def test_attach_with_limits(backend: Backend, guest: Guest, network: PythonNetwork) -> None:
    name = await backend.attach(guest.domid, "python:lan", tx_rate=MBIT, rx_rate=MBIT)
    await guest.connect()
    assert rates(backend, name) == Rates(tx=MBIT, rx=MBIT)
    assert await backend.store.read(f"{name.backend}/rate") == "1250,10000"
    await exchange(guest, network)


async def test_the_control_socket(xen: Path, backend: Backend, guest: Guest, network: PythonNetwork) -> None:
    """The answer comes when the limit is in force; the nodes keep it for the next backend."""
    name = await add(backend.store, guest.domid, rate="1,1000000")
    await guest.connect()
    slot = guest.send(FRAME)
    answer = await client(xen, lambda made: made.set(str(name), tx_rate="none", rx_rate="1Mb/s@10ms"))
    assert answer == Settings(
        device=str(name), tx_rate="none", rx_rate="1Mb/s", carrier=True, link=True, mtu=None
    )
    assert rates(backend, name) == Rates(rx=MBIT)
    assert await network.recv() == FRAME
    assert await guest.answer(slot) == 0
    assert await backend.store.read(f"{name.backend}/rx-rate") == "1250,10000"
    answer = await client(xen, lambda made: made.set(str(name), rx_rate="2Mb/s"))
    assert answer == Settings(
        device=str(name), tx_rate="none", rx_rate="2Mb/s", carrier=True, link=True, mtu=None
    )


@pytest.mark.parametrize(
    ("device", "rate", "reason"),
    [
        ("vif77.0", "1Mb/s", "there is no device vif77.0"),
        ("vif1.0", "fast", "'fast' is not a rate"),
        ("vif1.0", "1" * 300, "set: Expected `str` of length <= 256"),
    ],
)
async def test_a_bad_request_changes_nothing(
    xen: Path, network: PythonNetwork, device: str, rate: str, reason: str
) -> None:
    async with serving(xen, network) as backend, join(xen, domid=1) as guest:
        name = await add(backend.store, guest.domid)
        await guest.connect()
        with pytest.raises(Refused, match=reason):
            await client(xen, lambda made: made.set(device, tx_rate=rate))
        assert rates(backend, name) == Rates()
        assert await backend.store.read_or(f"{name.backend}/rate") is None
        await exchange(guest, network)


async def test_a_limit_outlives_its_connection(backend: Backend, guest: Guest) -> None:
    """And its backend: the next one reads the same nodes."""
    name = await add(backend.store, guest.domid, rate="1,1000000")
    await guest.connect()
    await looked(backend, backend.devices[name], State.CONNECTED)
    vif = backend.devices[name].vif
    assert vif is not None
    await vif.disconnect()  # not before the device has served it: its rings are unmapped now
    assert vif.rates == Rates(tx=SLOW)
