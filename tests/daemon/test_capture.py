# SPDX-License-Identifier: Apache-2.0
"""The topic `frames`: captures by the control socket, for slow, dead and hostile clients, while a guest goes on."""

import asyncio
import json
import mmap
import os
import socket
import sys
import threading
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import islice
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState as State
from netback.control import Client, ControlError
from netback.control.capture import Capture, Frame
from netback.control.rpc import SOCKET, Code
from netback.control.schema import MAX_CAPTURES
from netback.daemon import Backend, BackendConfig
from netback.net.python import PythonNetwork
from netback.platforms.emulated import EmulatedPlatform
from netback.xenbus.names import DeviceName
from tests.capture_oracle import CONTROLS, PAGE
from tests.crash.respawn import until
from tests.daemon.talk import client, talking
from tests.descriptors import open_descriptors
from tests.vif.guest import FRAME, SECONDS, Guest, exchange, join, serving, until_state

EXAMPLE = Path(__file__).parents[2] / "examples" / "slots_of_frames.py"


@pytest.fixture
async def name(backend: Backend, guest: Guest) -> DeviceName:
    made = await backend.attach(guest.domid, "python:lan")
    await until_state(guest.store, made.backend, State.INIT_WAIT)
    await guest.connect()
    return made


@asynccontextmanager
async def capturing(xen: Path, *devices: str, **options: object) -> AsyncIterator[Capture]:
    """A capture of the public client; the server is in this loop, so a thread asks for it."""

    def begin() -> Capture:
        with Client(xen) as made:
            return made.capture(*devices, **options)  # type: ignore[arg-type]

    capture = await asyncio.to_thread(begin)
    try:
        yield capture
    finally:
        capture.close()


async def take(capture: Capture, count: int) -> list[Frame]:
    return await asyncio.wait_for(asyncio.to_thread(lambda: [*islice(capture, count)]), SECONDS)


async def test_frames_with_their_facts(
    xen: Path, name: DeviceName, guest: Guest, network: PythonNetwork
) -> None:
    async with capturing(xen) as capture:
        await exchange(guest, network)
        sent, received = await take(capture, 2)
        assert capture.lost == {}
        assert capture.frames == 2
    assert (sent.device, sent.direction, sent.queue, sent.data, sent.length) == (
        str(name),
        "tx",
        0,
        FRAME,
        60,
    )
    assert (sent.gref, sent.index, sent.slots, sent.flags, sent.status, sent.lost) == (
        guest.grefs[0],
        0,
        1,
        0,
        0,
        0,
    )
    assert (received.direction, received.data, received.gref) == ("rx", FRAME[::-1], guest.grefs[4])
    assert sent.time_ns <= received.time_ns


@pytest.mark.parametrize("direction", ["tx", "rx"])
async def test_a_part_of_them(
    xen: Path, name: DeviceName, guest: Guest, network: PythonNetwork, direction: str
) -> None:
    async with (
        capturing(xen, str(name), direction=direction, snaplen=7) as capture,
        capturing(xen, queue=1) as other,
    ):
        for _ in range(3):
            await exchange(guest, network)
        frames = await take(capture, 3)
        assert {(frame.direction, len(frame.data), frame.length) for frame in frames} == {(direction, 7, 60)}
        assert other.frames == 0
        assert other._reader.devices() == []  # the capture wants no queue that there is


async def test_devices_that_come_later(
    xen: Path, backend: Backend, guest: Guest, network: PythonNetwork
) -> None:
    """And those that connect again."""
    async with capturing(xen) as capture:
        name = await backend.attach(guest.domid, "python:lan")
        for _ in range(2):
            await guest.connect()
            await exchange(guest, network)
            assert {frame.device for frame in await take(capture, 2)} == {str(name)}
            await guest.set_state(State.CLOSED)
            await until_state(guest.store, name.backend, State.CLOSED)
            await guest.set_state(State.INITIALISING)
            await until_state(guest.store, name.backend, State.INIT_WAIT)
            guest.tx, guest.rx = type(guest.tx)(guest.domain, 0), type(guest.rx)(guest.domain, 0)


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"device": "vif9.9"}, Code.REFUSED),
        ({"devices": ["vif9.9"]}, Code.REFUSED),
        ({"devices": ["x"] * 65}, Code.INVALID_PARAMS),
        ({"direction": "up"}, Code.INVALID_PARAMS),
        ({"snaplen": -1}, Code.INVALID_PARAMS),
        ({"snaplen": 65554}, Code.INVALID_PARAMS),
        ({"queue": 65536}, Code.INVALID_PARAMS),
    ],
)
async def test_a_wrong_request(xen: Path, backend: Backend, params: dict[str, object], code: Code) -> None:
    async with talking(xen) as talk:
        talk.call("subscribe", topic="frames", **params)
        assert (await talk.read())["error"]["code"] == code
    assert backend.captures.sinks("vif1.0", 0, 0) == ()


async def test_there_are_so_many_captures(xen: Path, backend: Backend, name: DeviceName) -> None:
    """One more is refused in one line; when one ends another may begin."""
    async with talking(xen) as talk:
        for _ in range(MAX_CAPTURES):
            assert "subscription" in await talk.ask("subscribe", topic="frames")
        async with talking(xen) as more:
            more.call("subscribe", topic="frames")
            assert "8 captures" in (await more.read())["error"]["message"]
            await talk.ask("unsubscribe", subscription=3)
            assert "subscription" in await more.ask("subscribe", topic="frames")
    await until(lambda: backend.captures.sinks(str(name), 0, 0) == ())


async def test_a_slow_client_loses_frames_and_learns_how_many(
    xen: Path, name: DeviceName, guest: Guest, network: PythonNetwork, tmp_path: Path
) -> None:
    """The guest's frames pass meanwhile; every frame is either there or counted."""
    big = FRAME + bytes(4000)
    async with capturing(xen, direction="tx") as capture:
        sent = 0
        while not capture._reader.counts(0)[2]:
            slot = guest.send(big[:4000], page=1)
            assert len(await network.recv()) == 4000
            assert await guest.answer(slot) == 0
            sent += 1
        await exchange(guest, network)
        lost = capture._reader.counts(0)[2]
        frames = await take(capture, sent + 1 - lost)
        assert capture.lost == {f"{name} tx": lost}
        indices = [frame.index for frame in frames]
        assert indices == sorted(set(range(sent + 1)) - set(range(sent - lost + (indices[-1] != sent), sent)))
        assert sum(frame.lost for frame in frames) in (0, lost)


class Hostile:
    """A client without netback's code: it gets the two descriptors and does as it likes."""

    def __init__(self, xen: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(xen / SOCKET))
        request = {"jsonrpc": "2.0", "id": 1, "method": "subscribe", "params": {"topic": "frames"}}
        self.sock.sendall(json.dumps(request).encode() + b"\n")
        self.fds: list[int] = []
        lines = b""
        while lines.count(b"\n") < 2:
            data, fds, _, _ = socket.recv_fds(self.sock, 1 << 16, 8)
            assert data
            lines += data
            self.fds += fds
        self.event = json.loads(lines.splitlines()[1])["params"]["events"][0]

    def close(self) -> None:
        self.sock.close()
        for fd in self.fds:
            os.close(fd)


@asynccontextmanager
async def hostile(xen: Path) -> AsyncIterator[Hostile]:
    made = await asyncio.to_thread(Hostile, xen)
    try:
        yield made
    finally:
        made.close()


def allocated(fd: int) -> int:
    """Bytes that a file takes."""
    return os.fstat(fd).st_blocks * 512


async def test_what_the_line_carries(xen: Path, name: DeviceName) -> None:
    async with hostile(xen) as bad:
        memory, pipe = bad.fds
        assert bad.event == {"bytes": os.fstat(memory).st_size}
        assert os.get_blocking(pipe) is False
        with pytest.raises(PermissionError):
            os.ftruncate(memory, 0)


async def test_a_client_that_keeps_the_memory_does_not_keep_its_pages(
    xen: Path, backend: Backend, name: DeviceName, guest: Guest, network: PythonNetwork
) -> None:
    """Else it could ask again and again until the backend is out of memory."""
    async with hostile(xen) as bad:
        for _ in range(3):
            await exchange(guest, network)
        held = allocated(bad.fds[0])
        bad.sock.close()
        await until(lambda: backend.captures.sinks(str(name), 0, 0) == ())
        await until(lambda: allocated(bad.fds[0]) < held)
        await exchange(guest, network)


async def test_garbage_over_all_of_the_memory(
    xen: Path, backend: Backend, name: DeviceName, guest: Guest, network: PythonNetwork
) -> None:
    """While frames flow, with pages taken away, by a client that also asks to be woken and never reads its pipe."""
    async with hostile(xen) as bad, capturing(xen, str(name)) as good:
        stop = threading.Event()
        shared = mmap.mmap(bad.fds[0], 0)
        writer = threading.Thread(target=scribble, args=(shared, stop))
        writer.start()
        try:
            for _ in range(300):
                await exchange(guest, network)
        finally:
            stop.set()
            await asyncio.to_thread(writer.join)
            shared.close()
        frames = await take(good, 600)
        assert [frame.index for frame in frames if frame.direction == "tx"] == [*range(300)]


def scribble(shared: mmap.mmap, stop: threading.Event) -> None:
    """Overwrite the header, the table and the rings' indices, again and again."""
    number = 0
    while not stop.is_set():
        number += 1
        shared[: 2 * PAGE] = bytes([number & 0xFF]) * (2 * PAGE)
        shared[CONTROLS : CONTROLS + 2 * PAGE] = bytes([(number * 7) & 0xFF]) * (2 * PAGE)


SPARE = 10
"""Descriptors that this process may open once, whatever the clients do."""


async def test_clients_that_die(
    xen: Path, backend: Backend, name: DeviceName, guest: Guest, network: PythonNetwork
) -> None:
    """In the middle of each step; nothing of them stays."""
    before = open_descriptors()
    for _ in range(2 * SPARE):
        async with hostile(xen):
            await exchange(guest, network)
        async with talking(xen) as talk:  # does not take the descriptors
            talk.call("subscribe", topic="frames")
    await until(lambda: backend.captures.sinks(str(name), 0, 0) == ())
    await until(lambda: open_descriptors() <= before + SPARE)


async def test_a_client_that_reads_no_line_gets_no_descriptors_and_blocks_nobody(
    xen: Path, backend: Backend, name: DeviceName, guest: Guest, network: PythonNetwork
) -> None:
    """The answer before them fills its socket."""
    sock = socket.socket(socket.AF_UNIX)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    await asyncio.to_thread(sock.connect, str(xen / SOCKET))
    requests = [{"jsonrpc": "2.0", "id": 1, "method": "list"}] * 16
    requests.append({"jsonrpc": "2.0", "id": 1, "method": "subscribe", "params": {"topic": "frames"}})  # type: ignore[dict-item]
    sock.sendall(json.dumps(requests).encode() + b"\n")
    for _ in range(10):
        await exchange(guest, network)
    assert await client(xen, lambda made: made.info().devices) == 1
    sock.close()
    await until(lambda: backend.captures.sinks(str(name), 0, 0) == ())


async def test_the_memory_of_another_version(xen: Path, backend: Backend, name: DeviceName) -> None:
    """A client of another release says so in one line."""
    async with capturing(xen) as capture:
        memory = os.dup(capture._connection.descriptors[0])
        with mmap.mmap(memory, 0) as shared:
            shared[4] = 2
        connection = capture._connection
        with pytest.raises(ControlError, match="unknown form: use the netback of the backend's version"):
            Capture(connection, "both", 10)
        os.close(memory)


async def test_the_example(xen: Path, name: DeviceName, guest: Guest, network: PythonNetwork) -> None:
    example = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLE), str(name), "4", str(xen), stdout=PIPE
    )
    assert example.stdout is not None
    ended = asyncio.create_task(example.wait())
    while not ended.done():
        await exchange(guest, network)
    out = (await example.stdout.read()).decode()
    assert sum(int(line.split()[-2]) for line in out.splitlines()) == 4
    assert {line.split(":")[0] for line in out.splitlines()} == {"rx   1 slots", "tx   1 slots"}


async def test_workers_each_have_a_ring(xen: Path, network: PythonNetwork) -> None:
    """Frames of devices on different workers are in one capture, in order of time, each with its device."""
    other = PythonNetwork("python:other")
    config = BackendConfig(xen, networks={"python:lan": network, "python:other": other}, workers=3)
    try:
        async with AsyncExitStack() as stack:
            platform = stack.enter_context(EmulatedPlatform(xen))
            backend = await stack.enter_async_context(Backend(platform, config))
            guests = [await stack.enter_async_context(join(xen)) for _ in range(2)]
            names = []
            for guest, net in zip(guests, ("python:lan", "python:other"), strict=True):
                names.append(str(await backend.attach(guest.domid, net)))
                await guest.connect()
            assert sorted(backend.load) == [0, 1, 1]
            async with capturing(xen) as capture:
                for _ in range(10):
                    await exchange(guests[0], network)
                    await exchange(guests[1], other)
                frames = await take(capture, 40)
    finally:
        other.remove()
    assert [frame.time_ns for frame in frames] == sorted(frame.time_ns for frame in frames)
    assert [frame.device for frame in frames] == [names[0], names[0], names[1], names[1]] * 10


async def test_a_backend_that_ends_in_order(xen: Path, network: PythonNetwork) -> None:
    """The client still reads what there was, then learns of the end."""
    async with join(xen) as guest, AsyncExitStack() as stack:
        async with serving(xen, network) as backend:
            await backend.attach(guest.domid, "python:lan")
            await guest.connect()
            capture = await stack.enter_async_context(capturing(xen))
            for _ in range(3):
                await exchange(guest, network)
        frames = iter(capture)
        assert len([next(frames) for _ in range(6)]) == 6
        with pytest.raises(ControlError, match="the backend ended"):
            next(frames)
