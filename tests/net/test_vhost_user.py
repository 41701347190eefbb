# SPDX-License-Identifier: Apache-2.0
"""vhost-user: a device in another program, and everything that it can do wrong."""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from netback.abi.vhost_user import HEADER as MESSAGE
from netback.abi.vhost_user import VERSION, Feature, Protocol, Request
from netback.abi.virtio_net import HEADER
from netback.dataplane.caps import EVERYTHING, Can
from netback.dataplane.peers.virtqueue import PAIR_SLOTS
from netback.errors import PeerError
from netback.net import vhost_user
from netback.net.vhost_user import VhostUserNetwork
from tests.descriptors import open_descriptors

from ..dataplane.offload_frames import build, with_pseudo
from ..offload_oracle import TCP, intact
from .contract import FilteredNetwork, FrameNetwork, OffloadNetwork, Site, big_tcp, fill, frame, receive
from .far import PATIENCE, await_readable
from .vhost_device import EVERY_FEATURE, EVERY_PROTOCOL, NET_HEADER, Device, Virtqueue, reply

LESS = {
    "everything": {},
    "no event indices": {"features": EVERY_FEATURE & ~Feature.EVENT_IDX},
    "no mergeable buffers": {"features": EVERY_FEATURE & ~Feature.MRG_RXBUF},
    "no acknowledgements": {"protocol": EVERY_PROTOCOL & ~Protocol.REPLY_ACK},
    "no protocol features": {"features": EVERY_FEATURE & ~Feature.PROTOCOL_FEATURES},
    "a client": {"client": True},
}
"""Devices that have everything but this."""
PLAIN = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device.sock"


@pytest.fixture(params=list(LESS), ids=list(LESS))
def site(request: pytest.FixtureRequest, path: Path) -> Iterator[Site]:
    options = LESS[request.param]
    if options.get("client"):
        network = VhostUserNetwork(str(path), server=True)
        device = Device(path, **options)
    else:
        device = Device(path, **options)
        network = VhostUserNetwork(str(path))
    with device:
        await_up(network, device)
        yield Site(network, device)  # type: ignore[arg-type]
        network.remove()


@pytest.fixture
def device(path: Path) -> Iterator[Device]:
    with Device(path) as device:
        yield device


@pytest.fixture
def network(path: Path, device: Device) -> Iterator[VhostUserNetwork]:
    network = VhostUserNetwork(str(path), stall=0.05)
    device.await_ready()
    yield network
    network.remove()


def await_up(network: VhostUserNetwork, device: Device, connection: int = 1) -> None:
    """Wait until the network has the device, by its connection of this number: the peers' descriptors tell."""
    device.await_ready(connection)
    while not network.up:
        await_readable(network.peers[0].fd)


def await_fault(network: VhostUserNetwork, words: str) -> str:
    """Wait until a check of the network fails with these words; returns the line."""
    deadline = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < deadline:
        try:
            network.check()
        except PeerError as error:
            if words in str(error):
                return str(error)
    raise AssertionError(f"no fault has {words!r}")


class TestUnderFilters(FilteredNetwork):
    """With filters around its peers."""


class TestVhostUser(FrameNetwork, OffloadNetwork):
    """With every kind of device."""

    def test_more_frames_than_buffers(self, site: Site) -> None:
        """Descriptors and memory are used again, and every frame is unchanged."""
        for round in range(12):
            sent = [frame(n, 1400 + round) for n in range(16)]
            for message in sent:
                site.far.send(message)
            assert receive(site.network, 16) == sent
            assert site.network.peers[0].send([*sent, frame(round, 60000)]) == (17, 0)
            assert [site.far.recv() for _ in range(17)] == [*sent, frame(round, 60000)]


# ---- features


@pytest.mark.parametrize(
    ("features", "caps"),
    [
        (PLAIN, 0),
        (PLAIN | Feature.CSUM, Can.CSUM4 | Can.CSUM6),
        (PLAIN | Feature.CSUM | Feature.HOST_TSO4, Can.CSUM4 | Can.CSUM6 | Can.TSO4),
        (EVERY_FEATURE, EVERYTHING),
        (1 << 63 | EVERY_FEATURE, EVERYTHING),
    ],
)
def test_offloads_are_those_that_the_device_has(path: Path, features: int, caps: int) -> None:
    with Device(path, features=features) as device:
        network = VhostUserNetwork(str(path))
        device.await_ready()
        network.peers[0].recv()
        assert network.peers[0].caps == caps
        assert device.agreed == features & EVERY_FEATURE
        network.remove()


def test_requests_are_those_that_were_negotiated(path: Path) -> None:
    """passt ends at any other."""
    with Device(path, features=Feature.VERSION_1) as device:
        network = VhostUserNetwork(str(path))
        device.await_ready()
        assert not set(device.requests) & {
            Request.GET_PROTOCOL_FEATURES,
            Request.SET_PROTOCOL_FEATURES,
            Request.GET_QUEUE_NUM,
            Request.SET_VRING_ENABLE,
        }
        network.remove()


def test_a_frame_whose_offloads_the_device_lacks_is_refused(path: Path) -> None:
    """Offloads are done before: this one was prepared for an earlier device."""
    with Device(path, features=PLAIN) as device:
        network = VhostUserNetwork(str(path))
        device.await_ready()
        assert network.peers[0].send([frame(1), big_tcp(4), frame(2)]) == (3, 1)
        assert [device.recv() for _ in range(2)] == [frame(1), frame(2)]
        network.remove()


def test_the_device_sees_no_flag_for_drivers(network: VhostUserNetwork, device: Device) -> None:
    validated = b"\x02" + frame(1)[1:]
    network.peers[0].send([validated])
    assert device.recv() == frame(1)


def test_memory_is_one_sealed_file_without_addresses_of_this_process(
    network: VhostUserNetwork, device: Device
) -> None:
    assert device.base == 1 << 20
    memory = device.rx.memory
    assert memory is not None
    assert memory is device.tx.memory
    with pytest.raises(PermissionError):
        memory.resize(4096)


# ---- queues


def test_a_pair_for_each_queue(path: Path) -> None:
    with Device(path, pairs=4) as device:
        network = VhostUserNetwork(str(path))
        network.set_queues(3)
        await_up(network, device, 2)
        assert len(network.peers) == 3
        for pair, peer in enumerate(network.peers):
            assert peer.send([frame(pair)]) == (1, 0)
            assert device.recv(pair) == frame(pair)
            device.send(frame(pair + 10), pair)
            assert peer.recv() == [frame(pair + 10)]
        network.set_queues(9)
        assert len(network.peers) == 4
        network.set_queues(1)
        assert len(network.peers) == 1
        network.remove()


def test_queues_without_a_pair_send_through_the_first(network: VhostUserNetwork, device: Device) -> None:
    network.set_queues(3)
    (peer,) = network.peers
    further = [peer.duplicate(-1) for _ in range(2)]
    for number, each in enumerate([peer, *further]):
        assert each.send([frame(number)]) == (1, 0)
        assert device.recv() == frame(number)
    assert further[0].caps == peer.caps
    device.send(frame(9))
    assert further[0].recv() == []
    assert receive(network, 1) == [frame(9)]
    assert fill(network) > 20
    assert further[0].send([frame(1)]) == (0, 0)
    assert further[0].blocked
    device.recv()
    assert further[0].send([frame(1)]) == (1, 0)


def test_a_device_that_comes_back_with_fewer_queues(path: Path) -> None:
    with Device(path, pairs=2) as device:
        network = VhostUserNetwork(str(path))
        network.set_queues(2)
        await_up(network, device, 2)
        device.pairs = 1
        device.drop()
        assert await_fault(network, "it has queues for 1 of the 2 that the guest uses")
        network.remove()


# ---- connections


def test_nothing_listens(path: Path) -> None:
    with pytest.raises(PeerError, match=f"vhost-user:{path}: cannot connect: No such file"):
        VhostUserNetwork(str(path))
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
        with pytest.raises(PeerError, match="cannot connect: Connection refused"):
            VhostUserNetwork(str(path))


def test_a_server_waits_for_its_device(path: Path) -> None:
    network = VhostUserNetwork(str(path), server=True)
    assert not network.up
    with pytest.raises(PeerError, match="it has not connected yet"):
        network.check()
    assert network.peers[0].send([frame(1)]) == (1, 1)
    assert network.peers[0].down
    with Device(path, client=True) as device:
        await_up(network, device)
        assert network.check() is False
        assert network.peers[0].send([frame(1)]) == (1, 0)
        assert device.recv() == frame(1)
        assert not network.peers[0].down
        network.remove()
    assert not path.exists()


def test_a_server_replaces_the_socket_of_a_killed_one_and_no_other(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    network = VhostUserNetwork(str(path), server=True)
    with pytest.raises(PeerError, match="another process listens there"):
        VhostUserNetwork(str(path), server=True)
    network.remove()
    with pytest.raises(PeerError, match="cannot listen: No such file"):
        VhostUserNetwork(str(path / "no" / "directory"), server=True)


def test_a_device_that_restarts(network: VhostUserNetwork, device: Device) -> None:
    """A new connection has new memory: an earlier device has no part in it. What it had not taken is lost."""
    (peer,) = network.peers
    assert peer.send([frame(1)] * 5) == (5, 0)
    device.recv()
    before = device.tx.memory
    assert before is not None
    device.drop()
    await_fault(network, "it closed the connection")
    await_up(network, device, 2)
    assert network.check() is False
    assert peer.send([frame(2, 1000)]) == (1, 4)
    assert device.recv() == frame(2, 1000)
    assert frame(2, 1000)[10:] not in before[:]
    device.send(frame(3))
    assert receive(network, 1) == [frame(3)]


def test_frames_are_refused_without_a_device(network: VhostUserNetwork, device: Device) -> None:
    device.close()
    await_fault(network, "cannot connect: No such file")
    assert not network.up
    (peer,) = network.peers
    assert peer.send([frame(1)] * 3) == (3, 3)
    assert peer.recv() == []
    assert peer.down
    assert not peer.closed


# ---- a device that lies while it is set up


def silence(_: socket.socket) -> None:
    """No answer."""


def end(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def with_descriptors(connection: socket.socket) -> None:
    """The right answer in single bytes, each with as many descriptors as a message takes."""
    fds = struct.pack("250i", *[connection.fileno()] * 250)
    for byte in reply(Request.GET_FEATURES, EVERY_FEATURE):
        connection.sendmsg([bytes([byte])], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])


ANOTHER = "it answers GET_FEATURES with another message"
LIES: dict[str, tuple[Request, bytes | Callable[[socket.socket], object], str]] = {
    "silent": (Request.GET_FEATURES, silence, "it does not answer GET_FEATURES"),
    "silent later": (Request.SET_MEM_TABLE, silence, "it does not answer SET_MEM_TABLE"),
    "half": (Request.GET_FEATURES, reply(Request.GET_FEATURES, 0)[:15], "it does not answer GET_FEATURES"),
    "closes": (Request.SET_VRING_KICK, end, "it closed the connection at SET_VRING_KICK"),
    "old": (Request.GET_FEATURES, reply(Request.GET_FEATURES, 0), "it offers no VERSION_1"),
    "refuses": (Request.SET_VRING_ADDR, reply(Request.SET_VRING_ADDR, 22), "it refuses SET_VRING_ADDR"),
    "another request": (Request.GET_FEATURES, reply(Request.SET_OWNER, 1 << 32), ANOTHER),
    "no reply": (Request.GET_FEATURES, reply(Request.GET_FEATURES, 1 << 32, flags=VERSION), ANOTHER),
    "version 2": (Request.GET_FEATURES, reply(Request.GET_FEATURES, 1 << 32, flags=6), ANOTHER),
    "huge": (
        Request.GET_FEATURES,
        MESSAGE.pack(Request.GET_FEATURES, 5, 0xFFFFFFFF) + bytes(100_000),
        ANOTHER,
    ),
    "empty": (Request.GET_FEATURES, MESSAGE.pack(Request.GET_FEATURES, 5, 0), ANOTHER),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_while_it_is_set_up(path: Path, monkeypatch: pytest.MonkeyPatch, lie: str) -> None:
    """One clear line, and no descriptor is left."""
    request, answer, words = LIES[lie]
    monkeypatch.setattr(vhost_user, "HANDSHAKE_SECONDS", 0.2)
    with Device(path) as device:
        device.lies[request] = answer
        before = open_descriptors()
        with pytest.raises(PeerError, match=words) as caught:
            VhostUserNetwork(str(path))
        assert str(caught.value).startswith(f"vhost-user:{path}: ")
        assert open_descriptors() <= before + DEVICE_DESCRIPTORS


DEVICE_DESCRIPTORS = 16
"""A device's connection and what it was given of one pair, by two attempts."""


def test_descriptors_that_come_with_an_answer_are_closed(path: Path) -> None:
    with Device(path) as device:
        device.lies[Request.GET_FEATURES] = with_descriptors
        before = open_descriptors()
        network = VhostUserNetwork(str(path))
        await_up(network, device)
        assert open_descriptors() < before + 50
        network.remove()


def test_a_device_that_claims_any_number_of_queues(path: Path) -> None:
    with Device(path) as device:
        device.lies[Request.GET_QUEUE_NUM] = reply(Request.GET_QUEUE_NUM, (1 << 64) - 1)
        network = VhostUserNetwork(str(path))
        await_up(network, device)
        network.set_queues(1)
        assert len(network.peers) == 1
        network.remove()


@pytest.mark.parametrize("message", [b"x", bytes(200_000)], ids=["a byte", "a flood"])
def test_a_message_that_nobody_asked_for(network: VhostUserNetwork, device: Device, message: bytes) -> None:
    assert device.connection is not None
    with suppress(OSError):  # it is closed at the first byte
        device.connection.sendall(message)
    await_fault(network, "it sent a message that nobody asked for")


# ---- a device that lies about its virtqueues


def jump(queue: Virtqueue) -> None:
    queue.publish(queue.done + PAIR_SLOTS + 1)


def jump_back(queue: Virtqueue) -> None:
    queue.publish(queue.done - 1)


def unknown_id(queue: Virtqueue) -> None:
    queue.put((PAIR_SLOTS, NET_HEADER + 60))


def huge_id(queue: Virtqueue) -> None:
    queue.put((0xFFFFFFFF, NET_HEADER + 60))


def twice(queue: Virtqueue) -> None:
    id = queue.take()
    queue.put((id, NET_HEADER + 60))
    queue.put((id, NET_HEADER + 60))


def too_long(queue: Virtqueue) -> None:
    id = queue.take()
    queue.put((id, queue.buffer(id)[1] + 1))


def longest(queue: Virtqueue) -> None:
    queue.put((queue.take(), 0xFFFFFFFF))


def too_short(queue: Virtqueue) -> None:
    queue.put((queue.take(), NET_HEADER - 1))


def merged(count: int, more: int) -> Callable[[Virtqueue], None]:
    """A frame that claims `count` buffers, with `more` after the first."""

    def lie(queue: Virtqueue) -> None:
        assert queue.memory is not None
        ids = [queue.take() for _ in range(1 + more)]
        at, length = queue.buffer(ids[0])
        queue.memory[at : at + NET_HEADER] = bytes(HEADER.size) + struct.pack("<H", count)
        queue.put(*((id, length) for id in ids))

    return lie


INDEX, ID = "an impossible index in a used ring", "it used a descriptor that it does not have"
LENGTH, BUFFERS = "a used buffer has an impossible length", "a frame has an impossible number of buffers"
RX_LIES: dict[str, tuple[Callable[[Virtqueue], None], str]] = {
    "index ahead": (jump, INDEX),
    "index behind": (jump_back, INDEX),
    "unknown id": (unknown_id, ID),
    "huge id": (huge_id, ID),
    "too long": (too_long, LENGTH),
    "longest": (longest, LENGTH),
    "too short": (too_short, LENGTH),
    "no buffers": (merged(0, 0), BUFFERS),
    "buffers that are not used": (merged(2, 0), BUFFERS),
    "65535 buffers": (merged(65535, 3), BUFFERS),
}
TX_LIES: dict[str, tuple[Callable[[Virtqueue], None], str]] = {
    "index ahead": (jump, INDEX),
    "index behind": (jump_back, INDEX),
    "unknown id": (unknown_id, ID),
    "huge id": (huge_id, ID),
    "an id twice": (twice, ID),
}


def check_broken(network: VhostUserNetwork, device: Device, words: str) -> None:
    """The peer is broken with this line, refuses frames, and works with the next connection."""
    (peer,) = network.peers
    assert peer.down
    await_fault(network, words)
    await_up(network, device, 2)
    device.send(frame(7))
    assert receive(network, 1) == [frame(7)]
    assert peer.send([frame(8)])[0] == 1
    assert device.recv() == frame(8)


@pytest.mark.parametrize("lie", RX_LIES)
def test_a_lie_about_rx(network: VhostUserNetwork, device: Device, lie: str) -> None:
    act, words = RX_LIES[lie]
    device.send(frame(1))
    assert network.peers[0].recv() == [frame(1)]
    act(device.rx)
    assert network.peers[0].recv() == []
    check_broken(network, device, words)


def test_an_rx_buffer_that_is_used_twice(network: VhostUserNetwork, device: Device) -> None:
    device.send(frame(1))
    merged(1, 0)(device.rx)
    device.rx.put((1, NET_HEADER + 60))
    assert len(network.peers[0].recv()) == 2
    check_broken(network, device, ID)


@pytest.mark.parametrize("lie", TX_LIES)
def test_a_lie_about_tx(network: VhostUserNetwork, device: Device, lie: str) -> None:
    act, words = TX_LIES[lie]
    (peer,) = network.peers
    peer.send([frame(1)] * 4)
    device.tx.await_waiting()
    act(device.tx)
    assert peer.send([frame(2)] * 2) == (2, 2 + 4 - (lie == "an id twice"))
    check_broken(network, device, words)


def test_a_lie_that_a_further_queue_finds(network: VhostUserNetwork, device: Device) -> None:
    (peer,) = network.peers
    further = peer.duplicate(-1)
    peer.send([frame(1)])
    device.tx.await_waiting()
    jump(device.tx)
    assert further.send([frame(2)]) == (1, 2)
    assert further.down
    assert peer.recv() == []
    check_broken(network, device, INDEX)


def test_a_frame_longer_than_any(network: VhostUserNetwork, device: Device) -> None:
    """It is lost, and the next one is whole."""
    merged(40, 39)(device.rx)
    device.send(frame(1))
    assert receive(network, 1) == [frame(1)]
    assert network.up


def test_a_header_without_a_frame(network: VhostUserNetwork, device: Device) -> None:
    assert device.rx.memory is not None
    id = device.rx.take()
    at, _ = device.rx.buffer(id)
    device.rx.memory[at + HEADER.size] = 1
    device.rx.put((id, NET_HEADER))
    device.send(frame(1))
    assert network.peers[0].recv() == [frame(1)]


def test_descriptors_used_in_any_order(network: VhostUserNetwork, device: Device) -> None:
    (peer,) = network.peers
    for round in range(40):
        assert peer.send([frame(n, 1000 + round) for n in range(16)]) == (16, 0)
        ids = [device.tx.take() for _ in range(16)]
        for id in (*ids[::2], *reversed(ids[1::2])):
            device.tx.put((id, 0))
    assert peer.send([frame(5)]) == (1, 0)
    assert device.recv() == frame(5)


def test_frames_that_lie_in_the_virtqueue_stay_unchanged(network: VhostUserNetwork, device: Device) -> None:
    """Of any length, while the device has any number of them, over the end of the memory and of the indices."""
    (peer,) = network.peers
    rng = random.Random(3)
    waiting: list[bytes] = []
    for round in range(600):
        burst = [
            frame(round * 7 + n, rng.choice((60, 1514, 1514, 9000, 65000))) for n in range(rng.randint(1, 64))
        ]
        done, refused = peer.send(burst)
        assert refused == 0
        waiting += burst[:done]
        for _ in range(rng.randint(0, len(waiting))):
            assert device.recv() == waiting.pop(0)


def test_a_checksum_that_the_device_vouches_for_is_requested(
    network: VhostUserNetwork, device: Device
) -> None:
    """passt sets DATA_VALID on every frame and computes no checksum: a guest that checks would drop them."""
    arp = b"\x02" + frame(1)[1:]
    device.send(arp)
    assert receive(network, 1) == [frame(1)]
    for version in (4, 6):
        l4 = 14 + (20 if version == 4 else 40)
        segment = build(version, TCP, b"data" * 20)
        at = l4 + 16
        blank = segment[:at] + b"\0\0" + segment[at + 2 :]
        device.send(HEADER.pack(2, 0, 0, 0, 0, 0) + blank)
        (got,) = receive(network, 1)
        assert HEADER.unpack_from(got) == (1, 0, 0, 0, l4, 16)
        addresses = segment[26:34] if version == 4 else segment[22:54]
        assert got[HEADER.size :] == with_pseudo(segment, l4, TCP, addresses)
        device.send(HEADER.pack(2, 0, 0, 0, 0, 0) + blank + bytes(6))
        (got,) = receive(network, 1)
        assert got[: HEADER.size] == bytes(HEADER.size)
        assert intact(got[HEADER.size :])
        assert len(got) == HEADER.size + len(segment) + 6
