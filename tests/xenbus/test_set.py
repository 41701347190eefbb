# SPDX-License-Identifier: Apache-2.0
"""What an operator changes while a device works: its link, which then passes nothing, and its tap's MTU."""

from pathlib import Path

import pytest

from netback.control import Refused
from netback.daemon import Backend
from netback.net.python import PythonNetwork
from netback.vif.rate import Rate, Rates
from netback.xenbus.names import DeviceName
from netback.xenbus.nodes import LINK_DOWN
from tests.daemon.talk import client
from tests.net.namespace import ip
from tests.vif.guest import FRAME, Guest, exchange, join, serving, until
from tests.xenbus.toolstack import add, passing

CUT = Rates(Rate(0, 1), Rate(0, 1))


def rates(backend: Backend, name: DeviceName) -> Rates | None:
    """The limits in force; None while the network is not open."""
    vif = backend.devices[name].vif
    return vif.rates if vif is not None else None


def waits(backend: Backend, name: DeviceName, way: str) -> bool:
    vif = backend.devices[name].vif
    return vif is not None and vif.counters.get(f"{way}_throttled", 0) > 0


async def test_a_link_that_is_down_passes_nothing(xen: Path, network: PythonNetwork) -> None:
    """Neither does the next backend, until it is up again; the frames that waited then pass. The limits come back."""
    async with join(xen, domid=1) as guest:
        async with serving(xen, network) as backend:
            name = await add(backend.store, guest.domid, rate="125000000,50000")
            await guest.connect()
            await exchange(guest, network)
            answer = await client(xen, lambda made: made.set("vif1.0", link=False))
            assert (answer.link, answer.carrier) == (False, False)
            await until(guest.store, f"{name.backend}/carrier", lambda value: value == "0")
            sent = guest.send(FRAME)
            await passing(backend, lambda: waits(backend, name, "tx"))
            (device,) = await client(xen, lambda made: made.devices("vif1.0"))
            assert device.link is False
        async with serving(xen, network) as backend:
            await passing(backend, lambda: rates(backend, name) == CUT)
            posted = guest.post()
            await network.send(FRAME)
            await passing(backend, lambda: waits(backend, name, "rx"))
            assert (guest.tx.index(2), guest.rx.index(2)) == (sent, posted)
            answer = await client(xen, lambda made: made.set("vif1.0", link=True))
            assert (answer.link, answer.carrier, answer.tx_rate) == (True, True, "20Gb/s")
            assert await network.recv() == FRAME
            assert await guest.answer(sent) == 0
            assert await guest.receive(posted) == (0, FRAME)
            await backend.store.write(f"{name.backend}/{LINK_DOWN}", "1")
            await passing(backend, lambda: rates(backend, name) == CUT)


@pytest.mark.usefixtures("namespace")
async def test_the_mtu_of_a_tap(xen: Path, backend: Backend, guest: Guest) -> None:
    """The frontend is told; the tap keeps it."""
    name = await add(backend.store, guest.domid, net="tap:m0")
    await guest.connect()
    answer = await client(xen, lambda made: made.set(str(name), mtu=9000))
    assert answer.mtu == 9000
    await until(guest.store, f"{guest.path}/mtu", lambda value: value == "9000")
    (device,) = await client(xen, lambda made: made.devices(str(name)))
    assert (device.mtu, device.network, device.bridge) == (9000, "m0", None)
    ip("link add xenbr0 type bridge")
    ip("link set m0 master xenbr0")
    (device,) = await client(xen, lambda made: made.devices(str(name)))
    assert device.bridge == "xenbr0"


@pytest.mark.usefixtures("namespace")
async def test_an_mtu_that_cannot_be_changed_changes_nothing(xen: Path, backend: Backend) -> None:
    ip("tuntap add own0 mode tap")
    async with join(xen, domid=1) as guest, join(xen, domid=2, index=0) as plain:
        await add(backend.store, guest.domid, net="tap:own0")
        await guest.connect()
        name = await add(backend.store, plain.domid, net="tap:m1")
        await plain.connect(feature_sg="0")
        for device, reason in (
            ("vif1.0", "own0: its MTU stays 1500: only a tap that netback made can be changed"),
            ("vif2.0", "vif2.0: its guest takes no frame larger than a page"),
            ("vif9.0", "there is no device vif9.0"),
        ):
            with pytest.raises(Refused, match=reason):
                await client(xen, lambda made, device=device: made.set(device, mtu=4000, tx_rate="1Mb/s"))
        with pytest.raises(Refused, match="set: Expected `int` >= 68"):
            await client(xen, lambda made: made.set("vif1.0", mtu=60))
        assert rates(backend, name) == Rates()


async def test_a_network_without_a_link_has_no_mtu(xen: Path, backend: Backend, guest: Guest) -> None:
    name = await add(backend.store, guest.domid)
    await guest.connect()
    with pytest.raises(Refused, match="it has no MTU"):
        await client(xen, lambda made: made.set(str(name), mtu=1400))
