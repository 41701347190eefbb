# SPDX-License-Identifier: Apache-2.0
"""Vifs of several queues: the negotiation, frames through each queue, and what a restart takes up again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from netback.abi.netif_control import CtrlType, HashAlgorithm, HashType
from netback.abi.xenbus import XenbusState as State
from netback.daemon import Backend, BackendConfig
from netback.frontend import FrontConfig, Frontend
from netback.net.rtnetlink import get_link
from netback.net.tap import TapNetwork
from netback.platforms.emulated import EmulatedPlatform
from netback.xenbus.names import DeviceName
from tests.dataplane.offload_frames import build
from tests.net.far import PLAIN, FarLink
from tests.net.namespace import ip
from tests.offload_oracle import UDP
from tests.vif.guest import SECONDS, Guest, until, until_state
from tests.xenbus.toolstack import add

FLOWS = 32
ROUNDS = 4


def message(flow: int, number: int) -> bytes:
    """A frame of one of many UDP flows, led by its virtio_net_hdr."""
    frame = bytearray(build(4, UDP, bytes([flow, number]) * 20))
    frame[34:36] = (1000 + flow).to_bytes(2, "big")
    frame[:6] = b"\xff" * 6
    return PLAIN + bytes(frame)


def told(got: bytes) -> tuple[int, int] | None:
    """Flow and number of a frame, or None for a frame of others."""
    return (got[52], got[53]) if got[22:24] == b"\x08\x00" and got[52:54] == got[54:56] else None


async def pass_flows(sender: FarLink, receiver: FarLink) -> None:
    """Send frames of all flows; each flow arrives whole and in order."""
    loop = asyncio.get_running_loop()
    receiver.socket.setblocking(False)
    for number in range(ROUNDS):
        for flow in range(FLOWS):
            sender.send(message(flow, number))
    came: dict[int, list[int]] = {flow: [] for flow in range(FLOWS)}
    async with asyncio.timeout(SECONDS):
        while any(len(numbers) < ROUNDS for numbers in came.values()):
            got = await loop.sock_recv(receiver.socket, 70000)
            if (one := told(got)) is not None:
                came[one[0]].append(one[1])
    assert came == {flow: list(range(ROUNDS)) for flow in range(FLOWS)}


@dataclass
class Pair:
    """A guest of several queues and its backend, each with a tap, and the kernel's side of both."""

    backend: Backend
    name: DeviceName
    vif: Frontend
    guest: FarLink
    host: FarLink

    async def both_ways(self) -> None:
        """Pass frames once the links have their carriers: the guest's follows the host's, by way of the store."""
        async with asyncio.timeout(SECONDS):
            while any("state UP" not in ip(f"link show {link}") for link in ("guest0", "host0")):
                await self.backend.store.read("/local/domain/0/name")
        await pass_flows(self.guest, self.host)
        await pass_flows(self.host, self.guest)

    @property
    def used(self) -> set[str]:
        """The rings through which frames have gone."""
        vif = self.backend.devices[self.name].vif
        assert vif is not None
        return {ring for ring, indices in vif.rings.items() if indices["rsp_prod"] and ring != "ctrl"}

    @property
    def received(self) -> dict[str, int]:
        """The responses of each RX ring."""
        vif = self.backend.devices[self.name].vif
        assert vif is not None
        return {ring: indices["rsp_prod"] for ring, indices in vif.rings.items() if ring.startswith("rx")}


@asynccontextmanager
async def running(xen: Path, queues: int | None = 4) -> AsyncIterator[Backend]:
    with EmulatedPlatform(xen) as platform:
        async with Backend(platform, BackendConfig(xen, net="tap", queues=queues, workers=2)) as backend:
            yield backend


@asynccontextmanager
async def guest_of(
    xen: Path,
    backend: Backend,
    queues: int,
    net: str = "tap:host0",
    *,
    far: str = "host0",
    control: bool = False,
) -> AsyncIterator[Pair]:
    """`far`: the link at which the kernel sends to the guest."""
    inside = TapNetwork("guest0", several=True)
    try:
        async with Frontend(xen, inside, config=FrontConfig(queues=queues, control=control)) as vif:
            name = await add(backend.store, vif.guest.domid, net=net)
            async with asyncio.timeout(SECONDS):
                await vif.connected()
            for link in ("guest0", "host0"):
                ip(f"link set {link} up")
            ends = FarLink("guest0"), FarLink(far)
            try:
                yield Pair(backend, name, vif, *ends)
            finally:
                for end in ends:
                    end.close()
    finally:
        inside.remove()


RINGS = {
    1: {"tx", "rx"},
    2: {"tx", "rx", "tx-q1", "rx-q1"},
    4: {"tx", "rx", *(f"{ring}-q{n}" for ring in ("tx", "rx") for n in (1, 2, 3))},
}


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("queues", RINGS)
async def test_frames_pass_through_every_queue(xen: Path, queues: int) -> None:
    """The kernel spreads flows over the queues of a tap, and netback serves them on both workers."""
    async with running(xen) as backend, guest_of(xen, backend, queues) as pair:
        await pair.both_ways()
        assert pair.used == RINGS[queues]
        assert backend.load == {1: [1, 0], 2: [1, 1], 4: [2, 2]}[queues]
        link = get_link("host0")
        assert link is not None
        assert (link.tap_queues or 1) == queues, "the kernel tells none of a tap without IFF_MULTI_QUEUE"
        status = next(status for status in backend.status() if status.device == str(pair.name))
        assert status.queues == queues


@pytest.mark.usefixtures("namespace")
async def test_a_tap_with_one_queue_serves_a_guest_of_several(xen: Path) -> None:
    """All queues send through it, and netback spreads the guest's frames over them."""
    ip("tuntap add host0 mode tap")
    async with running(xen) as backend, guest_of(xen, backend, 2) as pair:
        await pair.both_ways()
        assert pair.used == RINGS[2]
        assert sorted(backend.load) == [1, 2], "one worker also reads the tap"


@pytest.mark.usefixtures("namespace")
async def test_a_packet_network_serves_a_guest_of_several(xen: Path) -> None:
    ip("link add host0 type veth peer name far0")
    ip("link set far0 up")
    async with running(xen) as backend, guest_of(xen, backend, 2, "packet:host0", far="far0") as pair:
        await pair.both_ways()
        assert pair.used == RINGS[2]


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("queues", [1, 2])
async def test_a_guests_mapping_on_a_tap(xen: Path, queues: int) -> None:
    """The kernel spreads a tap's frames by its own hash, so netback spreads them again; the guest's NONE ends that."""
    if queues == 1:
        ip("tuntap add host0 mode tap")
    async with running(xen) as backend, guest_of(xen, backend, 2, control=True) as pair:
        await pair.both_ways()
        control = pair.vif.control
        assert control is not None
        for place in (1, 0):
            await control.set_hash(HashType.IPV4, bytes(range(40)), [place])
            before = pair.received
            await pass_flows(pair.host, pair.guest)
            moved = {ring for ring, index in pair.received.items() if index != before[ring]}
            assert moved == {("rx", "rx-q1")[place]}
            link = get_link("host0")
            assert link is not None
            assert (link.tap_queues or 1) == queues, "the kernel tells none of a tap without IFF_MULTI_QUEUE"
        await control.require(CtrlType.SET_HASH_ALGORITHM, HashAlgorithm.NONE)
        before = pair.received
        await pass_flows(pair.host, pair.guest)
        assert all(index != before[ring] for ring, index in pair.received.items())


@pytest.mark.usefixtures("namespace")
async def test_steering_begins_and_changes_under_traffic(xen: Path) -> None:
    """From the kernel's spreading to the guest's hash and back: every frame comes, once."""
    async with running(xen) as backend, guest_of(xen, backend, 2, control=True) as pair:
        await pair.both_ways()
        control = pair.vif.control
        assert control is not None

        async def switch() -> None:
            for mapping in ([1], [0], [0, 1]):
                await control.set_hash(HashType.IPV4, bytes(range(40)), mapping)
            await control.require(CtrlType.SET_HASH_ALGORITHM, HashAlgorithm.NONE)

        loop, number = asyncio.get_running_loop(), 0
        switching = asyncio.create_task(switch())
        async with asyncio.timeout(SECONDS):
            while number < ROUNDS or not switching.done():
                for flow in range(FLOWS):
                    pair.host.send(message(flow, number % 256))
                came = []
                while len(came) < FLOWS:
                    one = told(await loop.sock_recv(pair.guest.socket, 70000))
                    came += [one] if one is not None else []
                assert sorted(came) == [(flow, number % 256) for flow in range(FLOWS)]
                number += 1
        await switching


@pytest.mark.usefixtures("namespace")
async def test_the_next_backend_takes_up_every_queue(xen: Path) -> None:
    """Also where it offers fewer: the guest was offered more. After a new handshake it has what is offered now."""
    async with running(xen) as first, guest_of(xen, first, 3) as pair:
        await pair.both_ways()
        for queues in (4, 1):
            await first.__aexit__(None, None, None)
            async with running(xen, queues) as pair.backend:
                device = pair.backend.devices[pair.name]
                async with asyncio.timeout(SECONDS):
                    while device.vif is None or not device.vif.connected:
                        await pair.backend.store.read("/local/domain/0/name")
                assert device.vif is not None
                assert set(device.vif.rings) == {"tx", "rx", "tx-q1", "rx-q1", "tx-q2", "rx-q2"}
                await pair.both_ways()
                if queues == 1:
                    await pair.vif.reload()
                    await pair.vif.connected()
                    await pair.both_ways()
                    assert set(device.vif.rings) == {"tx", "rx"}
                    link = get_link("host0")
                    assert link is not None
                    assert link.tap_queues == 1


@pytest.mark.usefixtures("namespace")
async def test_a_guest_comes_back_with_another_number_of_queues(xen: Path) -> None:
    """The keys and journals of queues that it no longer has do not count."""
    async with running(xen) as backend, guest_of(xen, backend, 4) as pair:
        for queues in (1, 3, 2, 4):
            pair.vif.config = FrontConfig(queues=queues)
            await pair.vif.reload()
            await pair.vif.connected()
            keys = await backend.store.directory(pair.name.frontend)
            assert sum(key.startswith("queue-") for key in keys) == (queues if queues > 1 else 0)
            await pair.both_ways()
            vif = backend.devices[pair.name].vif
            assert vif is not None
            assert len(vif.rings) == 2 * queues


async def test_a_number_that_was_not_offered(xen: Path, guest: Guest) -> None:
    async with running(xen, 2) as backend:
        name = await add(backend.store, guest.domid, net="null")
        error = f"{name.errors}/error"
        for count, reason in (
            ("0", "the frontend's multi-queue-num-queues is 0: up to 2 were offered"),
            ("3", "the frontend's multi-queue-num-queues is 3: up to 2 were offered"),
            ("2", "the frontend's queue-0/tx-ring-ref is missing"),
        ):
            await guest.connect(wait=False, multi_queue_num_queues=count)
            await until_state(guest.store, name.backend, State.CLOSING)
            assert await until(backend.store, error, bool) == reason
            await guest.set_state(State.CLOSED)
            await until_state(guest.store, name.backend, State.CLOSED)
            await guest.set_state(State.INITIALISING)
        await guest.connect(multi_queue_num_queues="1")


async def test_two_queues_with_one_event_channel(xen: Path, guest: Guest) -> None:
    """The second cannot bind it: the vif closes and names the key, and neither stays bound."""
    async with running(xen, 2) as backend:
        name = await add(backend.store, guest.domid, net="null")
        await until_state(guest.store, name.backend, State.INIT_WAIT)
        guest.port = guest.domain.events.alloc_unbound(0)
        for number in range(2):
            for key in ("tx-ring-ref", "rx-ring-ref", "event-channel"):
                await guest.store.write(f"{guest.path}/queue-{number}/{key}", guest.keys[key])
        await guest.say(multi_queue_num_queues="2")
        await until_state(guest.store, name.backend, State.CLOSING)
        reason = await until(backend.store, f"{name.errors}/error", bool)
        assert reason is not None
        assert reason.startswith(f"the frontend's queue-1/event-channel {guest.port} cannot be bound: ")
        assert backend.load == [0, 0]
        assert not guest.domain.still_in_use(guest.tx.gref)
        await guest.set_state(State.CLOSED)
        await until_state(guest.store, name.backend, State.CLOSED)
        await guest.set_state(State.INITIALISING)
        await guest.connect(multi_queue_num_queues="1")
