# SPDX-License-Identifier: Apache-2.0
"""What a frontend changes while it is connected: netback's own netfront against the backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import permutations
from pathlib import Path

import pytest

from netback.abi.netif import EXTRA_GSO, RX_RESPONSE, RX_SLOT, ExtraType, RxFlag
from netback.abi.xenbus import XenbusState as State
from netback.daemon import Backend, BackendConfig
from netback.frontend import FrontConfig, Frontend
from netback.net.python import PythonNetwork
from netback.platforms.emulated import EmulatedPlatform
from netback.xenbus.names import DeviceName
from netback.xenstore.aio import Store
from tests.vif.guest import FRAME, SECONDS, Guest, serving, until, until_state
from tests.xenbus.test_refusals import driver_domain
from tests.xenbus.toolstack import add, looked, passing

LISTED, OTHER = bytes.fromhex("01005e000001"), bytes.fromhex("333300000001")
UNICAST, BROADCAST = bytes.fromhex("00163e000001"), b"\xff" * 6
REQUEST = "request-multicast-control"


def to(address: bytes) -> bytes:
    """A frame for this address."""
    return address + bytes.fromhex("00163e000002 88b5") + bytes(46)


async def gets(far: PythonNetwork, vif: Frontend, *addresses: bytes, wanted: tuple[bytes, ...]) -> None:
    """Frames to these addresses: the guest gets the wanted ones, and none other, in order."""
    assert isinstance(vif.network, PythonNetwork)
    async with asyncio.timeout(SECONDS):
        for address in (*addresses, UNICAST):
            await far.send(to(address))
        for address in (*wanted, UNICAST):
            assert await vif.network.recv() == bytes(10) + to(address)


async def applied(backend: Backend, name: DeviceName, on: bool, store: Store | None = None) -> None:
    """Wait until the backend follows the guest's key; requests to the store let it run."""

    def follows() -> bool:
        config = backend.devices[name].config
        return config is not None and config.live.multicast_control is on

    async with asyncio.timeout(SECONDS):
        while not follows():
            await (store or backend.store).read("/local/domain/0/name")


@asynccontextmanager
async def attached(
    xen: Path, network: PythonNetwork, config: FrontConfig
) -> AsyncIterator[tuple[Backend, Frontend, DeviceName]]:
    async with serving(xen, network) as backend, Frontend(xen, config=config) as vif:
        name = await backend.attach(vif.guest.domid, "python:lan")
        async with asyncio.timeout(SECONDS):
            await vif.connected()
        yield backend, vif, name


async def test_a_list_from_the_beginning(xen: Path, network: PythonNetwork) -> None:
    """The static feature: the key is there before Connected."""
    async with attached(xen, network, FrontConfig(multicast=frozenset({LISTED}))) as (backend, vif, name):
        vif_back = backend.devices[name].vif
        assert vif_back is not None
        await passing(backend, lambda: vif_back.counters["tx_multicast"] == 1)
        await gets(network, vif, LISTED, OTHER, BROADCAST, wanted=(LISTED, BROADCAST))
        assert vif_back.counters["rx_filtered"] == 1


async def test_a_list_that_changes(xen: Path, network: PythonNetwork) -> None:
    """The dynamic feature: the key comes, the list changes, the key goes; a new connection begins without a list."""
    async with attached(xen, network, FrontConfig()) as (backend, vif, name):
        await gets(network, vif, LISTED, OTHER, wanted=(LISTED, OTHER))
        assert await vif.set_multicast(frozenset({LISTED})) == frozenset()
        await applied(backend, name, True)
        await gets(network, vif, LISTED, OTHER, wanted=(LISTED,))
        await vif.set_multicast(frozenset({OTHER}))
        await gets(network, vif, LISTED, OTHER, wanted=(OTHER,))
        await vif.set_multicast(None)
        await applied(backend, name, False)
        await gets(network, vif, LISTED, OTHER, wanted=(LISTED, OTHER))
        vif.config = FrontConfig(multicast=frozenset())
        await vif.reload()
        async with asyncio.timeout(SECONDS):
            await vif.connected()
        await gets(network, vif, LISTED, OTHER, wanted=())


async def test_a_full_list_is_the_guest_s_to_handle(xen: Path, network: PythonNetwork) -> None:
    groups = frozenset(LISTED[:5] + bytes([i]) for i in range(66))
    async with attached(xen, network, FrontConfig()) as (backend, vif, name):
        refused = await vif.set_multicast(groups)
        assert len(refused) == 2
        assert await vif.set_multicast(groups - refused) == frozenset()
        await applied(backend, name, True)
        await gets(network, vif, *sorted(groups), wanted=tuple(sorted(groups - refused)))


async def test_the_list_outlives_the_backend(xen: Path) -> None:
    """A guest sends its list once, so a new process must know it; with the connection it ends."""
    async with Frontend(xen, config=FrontConfig(multicast=frozenset({LISTED}))) as vif:
        for round_ in range(3):
            far = PythonNetwork()
            async with serving(xen, far) as backend:
                if not round_:
                    await backend.attach(vif.guest.domid, "python:lan")
                async with asyncio.timeout(SECONDS):
                    await vif.connected()
                name = next(iter(backend.devices))
                await applied(backend, name, True)
                served = backend.devices[name].vif
                assert served is not None
                await passing(backend, lambda: vif._listed == {LISTED})
                await gets(far, vif, LISTED, OTHER, wanted=(LISTED,))
                assert (served.counters["tx_multicast"], served.counters["rx_filtered"]) == (
                    int(not round_),
                    1,
                )
            far.remove()
        files = {path.name for path in (xen / "journal").iterdir()}
        assert f"vif-{vif.guest.domid}-0-settings" in files


async def test_a_driver_domain_follows_the_key(xen: Path) -> None:
    """There all devices share one watch."""
    async with (
        driver_domain(xen) as (backend, dom0),
        Frontend(xen) as vif,
    ):
        name = await add(dom0, vif.guest.domid, backend=backend.platform.domid, net="null")
        async with asyncio.timeout(SECONDS):
            await vif.connected()
        for on in (True, False, True):
            await vif.set_multicast(frozenset({LISTED}) if on else None)
            await applied(backend, name, on, dom0)


@pytest.mark.parametrize("value", ["yes", "-1", "4294967296", ""])
async def test_a_wrong_value_closes_the_vif(xen: Path, network: PythonNetwork, value: str) -> None:
    """As on connecting; an empty value counts as none."""
    async with attached(xen, network, FrontConfig()) as (backend, vif, name):
        await vif.store.write(f"{vif.path}/{REQUEST}", value)
        if not value:
            await gets(network, vif, OTHER, wanted=(OTHER,))
            assert backend.devices[name].state is State.CONNECTED
            return
        error = await until(backend.store, f"{name.errors}/error", bool)
        assert error is not None
        assert error.startswith(f"the frontend's {REQUEST} is '{value}'")
        await passing(backend, lambda: vif.state is State.CLOSED)


async def test_a_backend_without_a_device_is_not_asked(xen: Path) -> None:
    with EmulatedPlatform(xen) as platform:
        async with Backend(platform, BackendConfig(xen, workers=1)), Frontend(xen) as vif:
            with pytest.raises(Exception, match="feature-multicast-control"):
                await vif.set_multicast(None)


# ---- XDP headroom

HEADROOM = "xdp-headroom"


async def headroom(backend: Backend, name: DeviceName, bytes_: int) -> None:
    """Wait until the backend leaves that much headroom."""

    def follows() -> bool:
        config = backend.devices[name].config
        return config is not None and config.live.xdp_headroom == bytes_

    await passing(backend, follows)


async def receives(guest: Guest, far: PythonNetwork, offset: int) -> None:
    """A frame arrives at this offset, with an extra info that names it; without one if it is 0."""
    slot, extra = guest.post(), guest.post(page=5)
    await far.send(FRAME)
    assert await guest.receive(slot) == (offset, FRAME)
    flags = RX_RESPONSE.unpack(guest.rx.slot(slot, RX_SLOT))[2]
    assert flags == (RxFlag.EXTRA_INFO if offset else 0)
    if not offset:
        await far.send(FRAME)  # uses the other slot
        assert await guest.receive(extra, page=5) == (0, FRAME)
        return
    await guest.responses(guest.rx, extra)
    assert bytes(guest.rx.slot(extra, RX_SLOT)) == EXTRA_GSO.pack(ExtraType.XDP, 0, offset, 0, 0, 0)


async def test_headroom_from_the_beginning(backend: Backend, guest: Guest, network: PythonNetwork) -> None:
    name = await add(backend.store, guest.domid)
    await guest.connect(xdp_headroom="256")
    assert await backend.store.read(f"{name.backend}/feature-xdp-headroom") == "1"
    await receives(guest, network, 256)


async def test_headroom_in_the_order_of_linux_s_netfront(
    backend: Backend, guest: Guest, network: PythonNetwork
) -> None:
    """The state first, the node after it, and perhaps after the backend's answer; the rings stay."""
    name = await add(backend.store, guest.domid)
    await guest.connect()
    await receives(guest, network, 0)
    for bytes_ in (256, 0, 4082, 256):
        await guest.set_state(State.RECONFIGURING)
        await until_state(guest.store, name.backend, State.RECONFIGURED)
        await guest.store.write(f"{guest.path}/{HEADROOM}", str(bytes_))
        await headroom(backend, name, bytes_)
        if bytes_ != 4082:
            await receives(guest, network, bytes_)
        await guest.set_state(State.CONNECTED)
        await until_state(guest.store, name.backend, State.CONNECTED)
    await receives(guest, network, 256)
    assert guest.rx.index(2) == 10, "the rings are those of the beginning"


@pytest.mark.parametrize("seen", [False, True])
async def test_a_backend_that_ends_in_between(xen: Path, guest: Guest, seen: bool) -> None:
    """Killed before or after Reconfigured; the node is written while no backend runs."""
    far = PythonNetwork()
    async with serving(xen, far) as backend:
        name = await add(backend.store, guest.domid)
        await guest.connect()
        if seen:
            await guest.set_state(State.RECONFIGURING)
            await until_state(guest.store, name.backend, State.RECONFIGURED)
    await guest.set_state(State.RECONFIGURING)
    await guest.store.write(f"{guest.path}/{HEADROOM}", "128")
    next_far = PythonNetwork()
    async with serving(xen, next_far) as backend:
        await until_state(guest.store, name.backend, State.RECONFIGURED)
        await passing(backend, lambda: name in backend.devices)
        await headroom(backend, name, 128)
        await receives(guest, next_far, 128)
        await guest.set_state(State.CONNECTED)
        await until_state(guest.store, name.backend, State.CONNECTED)
        await receives(guest, next_far, 128)
    for network in (far, next_far):
        network.remove()


ORDERS = list(permutations(("keys", "Reconfiguring", "headroom")))


@pytest.mark.parametrize("hotplug", [False, True], ids=["while the script runs", "after the script"])
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
async def test_headroom_before_the_backend_is_connected(
    backend: Backend, guest: Guest, network: PythonNetwork, order: tuple[str, ...], hotplug: bool
) -> None:
    """An XDP program that is attached before the backend has seen Connected: netfront waits for Reconfigured without a
    limit. Who asks without rings is told which key is missing.
    """
    name = await add(backend.store, guest.domid, script="vif-bridge", hotplug_status="")
    await until_state(guest.store, name.backend, State.INIT_WAIT)
    device = backend.devices[name]

    async def script() -> None:
        await backend.store.write(f"{name.backend}/hotplug-status", "connected")

    async def keys() -> None:
        await guest.say(device.frontend_state)

    steps: dict[str, Callable[[], Awaitable[None]]] = {
        "keys": keys,
        "Reconfiguring": lambda: guest.set_state(State.RECONFIGURING),
        "headroom": lambda: guest.store.write(f"{guest.path}/{HEADROOM}", "256"),
    }
    if hotplug:
        await script()
    for step in order:
        await steps[step]()
        theirs = State.parse(await guest.store.read(f"{guest.path}/state"))
        await looked(backend, device, theirs)
    if not hotplug:
        assert device.state is State.INIT_WAIT
        await script()
    if hotplug and order.index("Reconfiguring") < order.index("keys"):
        await until_state(guest.store, name.backend, State.CLOSING)
        assert device.error == "the frontend's request-rx-copy is missing or 0: it must take frames by copy"
        await guest.set_state(State.CLOSED)
        await until_state(guest.store, name.backend, State.CLOSED)
        await guest.set_state(State.INITIALISING)
        await guest.connect()
    else:
        await until_state(guest.store, name.backend, State.RECONFIGURED)
        await receives(guest, network, 256)
        await guest.set_state(State.CONNECTED)
        await until_state(guest.store, name.backend, State.CONNECTED)
    await receives(guest, network, 256)
    assert device.error == ""


async def test_a_new_kernel_while_headroom_changes(
    backend: Backend, guest: Guest, network: PythonNetwork
) -> None:
    """A kexec before the frontend was Connected again: the new kernel's rings are served, whatever state it writes."""
    name = await add(backend.store, guest.domid)
    await guest.connect()
    for state, answer in ((State.CONNECTED, State.CONNECTED), (State.RECONFIGURING, State.RECONFIGURED)):
        await guest.set_state(State.RECONFIGURING)
        await until_state(guest.store, name.backend, State.RECONFIGURED)
        guest.domain.events.unbind(guest.port)
        former, guest = guest, Guest(guest.domain, guest.store)
        await guest.say(state)
        await passing(
            backend,
            lambda former=former: (
                not any(former.domain.still_in_use(ring.gref) for ring in (former.tx, former.rx))
            ),
        )
        await looked(backend, backend.devices[name], state)  # a new connection discards what the network has
        assert backend.devices[name].state is answer
        await receives(guest, network, 0)


async def test_a_wrong_headroom_is_refused_once(
    backend: Backend, guest: Guest, network: PythonNetwork
) -> None:
    """A frontend that stays Reconfiguring after the error is not connected again and again."""
    name = await add(backend.store, guest.domid)
    await until_state(guest.store, name.backend, State.INIT_WAIT)
    await guest.say(State.RECONFIGURING, xdp_headroom="4083")
    await until_state(guest.store, name.backend, State.CLOSING)
    device = backend.devices[name]
    await guest.store.write(f"{guest.path}/{HEADROOM}", "256")
    for state in (State.CONNECTED, State.RECONFIGURING):
        await guest.set_state(state)
        await looked(backend, device, state)
        assert device.state is State.CLOSING
    assert device.error == "the frontend's xdp-headroom is '4083': not a number below 4083"
    await guest.set_state(State.CLOSED)
    await until_state(guest.store, name.backend, State.CLOSED)
    await guest.set_state(State.INITIALISING)
    await guest.connect()
    await receives(guest, network, 256)


async def test_no_frame_is_lost_while_headroom_changes(xen: Path, network: PythonNetwork) -> None:
    """Frames of one and of several slots, both ways, by netback's own netfront."""
    async with attached(xen, network, FrontConfig()) as (backend, vif, name):
        near = vif.network
        assert isinstance(near, PythonNetwork)

        async def stream(
            sender: PythonNetwork, receiver: PythonNetwork, header: bytes, ended: list[bool]
        ) -> int:
            """Numbered frames until `ended`; each arrives once, in order, as it was."""
            number = 0
            while not ended:
                for seq in range(number, number + 16):
                    await sender.send(header + numbered(seq))
                for seq in range(number, number + 16):
                    assert (await receiver.recv())[-len(numbered(seq)) :] == numbered(seq)
                number += 16
            return number

        ended: list[bool] = []
        async with asyncio.timeout(60):
            ways = [
                asyncio.create_task(stream(network, near, b"", ended)),
                asyncio.create_task(stream(near, network, bytes(10), ended)),
            ]
            for bytes_ in (256, 0, 1024, 0, 256):
                await vif.set_xdp_headroom(bytes_)
                await headroom(backend, name, bytes_)
                await passing(backend, lambda: backend.devices[name].state is State.CONNECTED)
            ended.append(True)
            assert all(count > 0 for count in await asyncio.gather(*ways))


def numbered(number: int) -> bytes:
    """A frame that identifies itself in every part; one in four has several slots."""
    return (
        UNICAST
        + bytes.fromhex("00163e000002 88b5")
        + number.to_bytes(4, "big") * (900 if number % 4 else 3000)
    )


@pytest.mark.parametrize("value", ["4083", "32767", "-1", "lots"])
async def test_headroom_that_cannot_be(backend: Backend, guest: Guest, value: str) -> None:
    """Behind it an Ethernet header must fit into the page: on connecting, and while connected."""
    name = await add(backend.store, guest.domid)
    await guest.connect()
    await guest.store.write(f"{guest.path}/{HEADROOM}", value)
    error = await until(backend.store, f"{name.errors}/error", bool)
    assert error == f"the frontend's xdp-headroom is '{value}': not a number below 4083"
    await until_state(guest.store, name.backend, State.CLOSING)
    await guest.set_state(State.CLOSED)
    await until_state(guest.store, name.backend, State.CLOSED)
    await guest.set_state(State.INITIALISING)
    await guest.connect(wait=False, xdp_headroom=value)
    await until_state(guest.store, name.backend, State.CLOSING)
