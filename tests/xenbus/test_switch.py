# SPDX-License-Identifier: Apache-2.0
"""Guests on one switch: frames between them through their rings, a restart of netback, a hostile neighbour, load."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState as State
from netback.daemon import Backend, BackendConfig
from netback.frontend import FrontConfig, Frontend, HashConfig
from netback.net.python import PythonNetwork
from netback.net.switch import SwitchNetwork
from netback.net.tap import TapNetwork
from netback.platforms.emulated import EmulatedPlatform
from netback.xenbus.names import DeviceName
from tests.dataplane.offload_frames import build
from tests.frontend.backend import HandBackend
from tests.frontend.frames import all_on_the_wire
from tests.net.contract import big_tcp
from tests.net.far import PLAIN
from tests.net.namespace import inside, other_network, send_to
from tests.offload_oracle import UDP
from tests.vif.guest import SECONDS, readable
from tests.xenbus.toolstack import add, gone, passing, take_away

ALL = b"\xff" * 6
MEGABYTES = 40
SERVER = """
import hashlib, socket
with socket.create_server(("", 5000)) as listener:
    print("listening", flush=True)
    connection, _ = listener.accept()
    digest = hashlib.sha256()
    while data := connection.recv(1 << 20):
        digest.update(data)
    print(digest.hexdigest(), flush=True)
"""
CLIENT = """
import random, socket, sys
with socket.create_connection((sys.argv[1], 5000), timeout=30) as connection:
    connection.settimeout(30)
    rng = random.Random(7)
    for _ in range(int(sys.argv[2])):
        connection.sendall(rng.randbytes(1 << 20))
"""


def mac(number: int) -> bytes:
    return b"\x02\0\0\0\0" + bytes([number])


def message(to: bytes, sender: bytes, body: bytes) -> bytes:
    """A UDP datagram between two addresses, led by its virtio_net_hdr."""
    return PLAIN + to + sender + build(4, UDP, body)[12:]


def network_of(vif: Frontend) -> PythonNetwork:
    assert isinstance(vif.network, PythonNetwork)
    return vif.network


@asynccontextmanager
async def running(xen: Path, **config: object) -> AsyncIterator[Backend]:
    with EmulatedPlatform(xen) as platform:
        async with Backend(platform, BackendConfig(xen, net="null", workers=2, **config)) as backend:  # type: ignore[arg-type]
            yield backend


async def join(
    undo: AsyncExitStack, xen: Path, backend: Backend, net: str, config: FrontConfig | None = None
) -> tuple[Frontend, DeviceName]:
    """One more guest on this network, connected."""
    vif = await undo.enter_async_context(Frontend(xen, config=config or FrontConfig()))
    name = await add(backend.store, vif.guest.domid, net=net)
    async with asyncio.timeout(SECONDS):
        await vif.connected()
    await passing(backend, lambda: serves(backend, name))
    return vif, name


def serves(backend: Backend, name: DeviceName) -> bool:
    """Whether the port passes frames: it does from the moment when the queues are served."""
    device = backend.devices.get(name)
    return device is not None and device.settled and device.state is State.CONNECTED


async def passes(sender: Frontend, receiver: Frontend, messages: list[bytes]) -> None:
    """What one guest sends is what the other gets, once it is what it would be on a wire."""
    wanted = all_on_the_wire(messages)
    sending = asyncio.create_task(send_all(sender, messages))
    async with asyncio.timeout(SECONDS):
        got: list[bytes] = []
        while len(got) < len(wanted):
            got += all_on_the_wire([await network_of(receiver).recv()])
        await sending
    assert got == wanted


async def send_all(vif: Frontend, messages: list[bytes]) -> None:
    for one in messages:
        await network_of(vif).send(one)


@pytest.fixture
def lan(tmp_path: Path) -> str:
    """A name that no other test uses."""
    return "lan-" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]


@pytest.mark.parametrize("limited", [False, True])
async def test_frames_between_two_guests(xen: Path, lan: str, limited: bool) -> None:
    """Large segments pass whole to a guest that takes them, and are segmented for one that does not."""
    config = (
        FrontConfig(sg=False, gso4=False, gso6=False, csum4=False, csum6=False) if limited else FrontConfig()
    )
    async with running(xen) as backend, AsyncExitStack() as undo:
        a, _ = await join(undo, xen, backend, f"switch:{lan}")
        b, name = await join(undo, xen, backend, f"switch:{lan}", config)
        await passes(a, b, [message(ALL, mac(1), bytes([n]) * (20 + 20 * n)) for n in range(60)])
        await passes(b, a, [message(mac(1), mac(2), bytes([n]) * (20 + 20 * n)) for n in range(60)])
        for version in (4, 6):
            segment = big_tcp(version)
            await passes(a, b, [segment[:10] + mac(2) + mac(1) + segment[22:]])
        vif = backend.devices[name].vif
        assert vif is not None
        assert (vif.counters["rx_segmented"] > 0) is limited
        assert vif.network.drops() == {"rx_overflow": 0}


async def test_netback_restarts(xen: Path, lan: str) -> None:
    """The next process knows no address, floods, and learns again; the guests notice a pause."""
    async with AsyncExitStack() as undo:
        async with running(xen) as backend:
            a, name_a = await join(undo, xen, backend, f"switch:{lan}")
            b, name_b = await join(undo, xen, backend, f"switch:{lan}")
            await passes(a, b, [message(ALL, mac(1), b"before")])
            await passes(b, a, [message(mac(1), mac(2), b"before")])
        async with running(xen) as backend:
            await passing(backend, lambda: serves(backend, name_a) and serves(backend, name_b))
            await passes(b, a, [message(mac(1), mac(2), b"after")])
            await passes(a, b, [message(mac(2), mac(1), b"after")])
            await undo.aclose()


@pytest.mark.parametrize("hash", [None, HashConfig()], ids=["by flow", "by the guest's hash"])
async def test_queues(xen: Path, lan: str, hash: HashConfig | None) -> None:
    """A guest of four queues and one of two: every flow is in order, and none is lost."""
    async with running(xen, queues=4) as backend, AsyncExitStack() as undo:
        a, _ = await join(undo, xen, backend, f"switch:{lan}", FrontConfig(queues=4))
        b, name = await join(undo, xen, backend, f"switch:{lan}", FrontConfig(queues=2, hash=hash))
        async with asyncio.timeout(SECONDS):
            await b.until(lambda: b.hash == hash)
        sent = []
        for number in range(640):
            one = bytearray(message(ALL, mac(1), number.to_bytes(2, "big") * 20))
            one[44:46] = (1000 + number % 32).to_bytes(2, "big")
            sent.append(bytes(one))
        await send_all(a, sent)
        got: dict[bytes, list[bytes]] = {}
        async with asyncio.timeout(SECONDS):
            while sum(map(len, got.values())) < len(sent):
                one = all_on_the_wire([await network_of(b).recv()])[0]
                got.setdefault(one[34:36], []).append(one)
        for flow, frames in got.items():
            assert frames == all_on_the_wire([one for one in sent if one[44:46] == flow])
        vif = backend.devices[name].vif
        assert vif is not None
        assert vif.counters["rx_hashed"] == (0 if hash is None else len(sent))
        assert hash is not None or all(queue["rx_frames"] for queue in vif.queue_counters)


async def test_a_hostile_guest_and_two_others(xen: Path, lan: str) -> None:
    """It sends from thousands of addresses to unknown addresses; the two talk on, and it hears none of it."""
    flooding = b"\x02\2"

    async def between(sender: Frontend, receiver: Frontend, messages: list[bytes]) -> None:
        """As `passes`, beside flooded frames."""
        wanted = all_on_the_wire(messages)
        await send_all(sender, messages)
        async with asyncio.timeout(SECONDS):
            while wanted:
                got = await network_of(receiver).recv()
                if got[16:18] != flooding:
                    assert all_on_the_wire([got]) == [wanted.pop(0)]

    async with running(xen) as backend, AsyncExitStack() as undo:
        a, _ = await join(undo, xen, backend, f"switch:{lan}")
        b, _ = await join(undo, xen, backend, f"switch:{lan}")
        hostile, name = await join(undo, xen, backend, f"switch:{lan}")
        await between(a, b, [message(ALL, mac(1), b"here")])
        await between(b, a, [message(mac(1), mac(2), b"here")])
        for number in range(20):
            flood = [
                message(b"\x02\1\0\0\0\0", flooding + (number * 250 + n).to_bytes(4, "big"), b"flood")
                for n in range(250)
            ]
            await asyncio.gather(
                send_all(hostile, flood),
                between(a, b, [message(mac(2), mac(1), bytes([number]) * 500)] * 10),
                between(b, a, [message(mac(1), mac(2), bytes([number]) * 500)] * 10),
            )
        vif = backend.devices[name].vif
        assert vif is not None
        assert vif.counters["rx_frames"] == 1
        assert vif.network.path is not None
        assert vif.network.path.endswith("and 1016 more")


async def test_a_rate_and_a_guest_that_goes(xen: Path, lan: str) -> None:
    """A neighbour's limit and its end change nothing between the others."""
    async with running(xen) as backend, AsyncExitStack() as undo:
        a, _ = await join(undo, xen, backend, f"switch:{lan}")
        b, _ = await join(undo, xen, backend, f"switch:{lan}")
        slow, name = await join(undo, xen, backend, f"switch:{lan}")
        await backend.store.write(f"{name.backend}/rate", "1000,50000")
        burst = [message(ALL, mac(1), bytes([n]) * 1000) for n in range(60)]
        await passes(a, b, burst)
        await take_away(backend.store, name)
        await passes(a, b, burst)
        async with asyncio.timeout(SECONDS):
            await slow.disconnected()
        await gone(backend, name)
        await passes(a, b, burst)


async def test_linux_stacks(xen: Path, lan: str) -> None:
    """TCP between the TCP/IP stacks of two namespaces, each way."""
    async with running(xen) as backend, AsyncExitStack() as undo:
        pids = []
        for number in (1, 2):
            pid = undo.enter_context(other_network())
            tap = TapNetwork(f"guest{number}")
            undo.callback(tap.remove)
            send_to(f"guest{number}", pid)
            vif = await undo.enter_async_context(Frontend(xen, tap))
            await add(backend.store, vif.guest.domid, net=f"switch:{lan}")
            async with asyncio.timeout(SECONDS):
                await vif.connected()
            inside(pid, f"ip link set guest{number} address {mac(number).hex(':')}")
            inside(pid, f"ip addr add 10.9.0.{number}/24 dev guest{number}")
            inside(pid, f"ip link set guest{number} up")
            pids.append(pid)
        for sender, receiver in ((0, 1), (1, 0)):
            server = await asyncio.create_subprocess_exec(
                "nsenter",
                "-t",
                str(pids[receiver]),
                "-n",
                sys.executable,
                "-c",
                SERVER,
                stdout=subprocess.PIPE,
            )
            assert server.stdout is not None
            assert await server.stdout.readline() == b"listening\n"
            client = await asyncio.create_subprocess_exec(
                "nsenter", "-t", str(pids[sender]), "-n", sys.executable, "-c", CLIENT,
                f"10.9.0.{receiver + 1}", str(MEGABYTES),
            )  # fmt: skip
            async with asyncio.timeout(SECONDS):
                digest = await server.stdout.readline()
                assert await client.wait() == 0
                assert await server.wait() == 0
            assert digest.decode().strip() == expected()


def expected() -> str:
    import random

    rng, digest = random.Random(7), hashlib.sha256()
    for _ in range(MEGABYTES):
        digest.update(rng.randbytes(1 << 20))
    return digest.hexdigest()


async def test_at_the_guest_s_end(xen: Path, lan: str) -> None:
    """A frontend's own network may be a port: its frames lie in granted pages, in pieces."""
    near, far = SwitchNetwork(lan), SwitchNetwork(lan)
    async with AsyncExitStack() as undo:
        for network in (near, far):
            undo.callback(network.remove)
            network.carrier(True)
        vif = await undo.enter_async_context(Frontend(xen, near))
        host = await undo.enter_async_context(HandBackend(xen, vif.guest.domid))
        assert isinstance(host.network, PythonNetwork)
        async with asyncio.timeout(SECONDS):
            await vif.connected()
            segment = big_tcp(4)
            for one in (message(ALL, mac(1), b"out"), segment[:10] + mac(2) + mac(1) + segment[22:]):
                assert far.peers[0].send([one]) == (1, 0)
                assert all_on_the_wire([await host.network.recv()]) == all_on_the_wire([one])
                back = one[:10] + mac(1) + mac(2) + one[22:]
                await host.network.send(back)
                await readable(far.peers[0].fd)
                assert all_on_the_wire(far.peers[0].recv()) == all_on_the_wire([back])
        await vif.close()
