# SPDX-License-Identifier: Apache-2.0
"""Devices joined to a stream: the other program restarts, lies, comes late; netback restarts. Guests see a pause."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from netback.daemon import Backend
from netback.frontend import FrontConfig, Frontend
from netback.net.python import PythonNetwork
from netback.xenbus.names import DeviceName
from tests.net.far import PLAIN
from tests.net.program import Program, wire
from tests.vif.guest import FRAME, SECONDS, Guest, join, serving
from tests.xenbus.test_links import connect, fault, mac_frame, mended, unchanged
from tests.xenbus.toolstack import add


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stream.sock"


@pytest.fixture
def program(path: Path) -> Iterator[Program]:
    with Program(path) as program:
        yield program


async def pass_frames(program: Program, guest: Guest, slot: int) -> int:
    """Pass one frame each way between the guest and the program; `slot` is the one that the guest has posted. Returns
    the next one: a worker waits for frames, and for the end, only if the guest can take them.
    """
    assert await guest.answer(guest.send(mac_frame(1))) == 0
    assert await asyncio.to_thread(program.recv) == PLAIN + mac_frame(1)
    await asyncio.to_thread(program.send, PLAIN + mac_frame(2))
    assert (await guest.receive(slot))[1] == mac_frame(2)
    return guest.post()


async def pass_again(backend: Backend, name: DeviceName, program: Program, guest: Guest, slot: int) -> int:
    """Wait for the next connection, and pass frames."""
    await asyncio.to_thread(lambda: program.connection)
    await mended(backend, name)
    return await pass_frames(program, guest, slot)


async def test_a_program_that_restarts(backend: Backend, guest: Guest, program: Program) -> None:
    name = await connect(backend, guest, f"stream:{program.address}")
    slot = await pass_frames(program, guest, guest.post())
    for _ in range(2):
        program.drop()
        await fault(backend, name, f"stream:{program.address}: it closed the connection")
        slot = await pass_again(backend, name, program, guest, slot)
    await unchanged(guest, name, 3)


async def test_a_program_that_lies_and_the_neighbour(
    backend: Backend, guest: Guest, program: Program, network: PythonNetwork, xen: Path
) -> None:
    name = await connect(backend, guest, f"stream:{program.address}")
    slot = await pass_frames(program, guest, guest.post())
    async with join(xen) as other:
        await connect(backend, other, "python:lan")
        program.connection.sendall(b"\xff" * 5000)
        assert await other.answer(other.send(FRAME)) == 0
        assert await network.recv() == FRAME
        await fault(backend, name, "it broke the protocol: a frame longer than 66048 bytes")
        program.drop()
        await pass_again(backend, name, program, guest, slot)
    await unchanged(guest, name, 2)


async def test_a_program_that_comes_late(backend: Backend, guest: Guest, path: Path) -> None:
    name = await add(backend.store, guest.domid, net=f"stream:{path}")
    await fault(backend, name, "cannot connect: No such file or directory")
    with Program(path) as program:
        await guest.connect()
        await pass_again(backend, name, program, guest, guest.post())


async def test_a_program_that_connects_to_netback(backend: Backend, guest: Guest, path: Path) -> None:
    name = await connect(backend, guest, f"stream:{path},server")
    await fault(backend, name, "it has not connected yet")
    with Program(path, client=True) as program:
        await pass_again(backend, name, program, guest, guest.post())


async def test_netback_restarts(xen: Path, guest: Guest, network: PythonNetwork, program: Program) -> None:
    """The next process goes on with the rings, over a new connection."""
    async with serving(xen, network) as backend:
        name = await connect(backend, guest, f"stream:{program.address}")
        slot = await pass_frames(program, guest, guest.post())
    with pytest.raises(EOFError):
        program.recv()
    program.drop()
    sent = guest.send(mac_frame(3))
    async with serving(xen, network):
        assert await guest.answer(sent) == 0
        assert await asyncio.to_thread(program.recv) == PLAIN + mac_frame(3)
        await pass_frames(program, guest, slot)
        await unchanged(guest, name, 2)


async def test_a_guest_of_several_queues(xen: Path, network: PythonNetwork, program: Program) -> None:
    """They share the connection, whichever worker serves them: no frame is torn, lost or repeated."""
    count = 600
    async with (
        serving(xen, network, queues=4) as backend,
        Frontend(xen, config=FrontConfig(queues=4)) as guest,
    ):
        await add(backend.store, guest.guest.domid, net=f"stream:{program.address}")
        async with asyncio.timeout(SECONDS):
            await guest.connected()
        assert isinstance(guest.network, PythonNetwork)
        frames = sorted(PLAIN + mac_frame(n % 256) + n.to_bytes(2, "big") * n for n in range(count))
        got, _ = await asyncio.gather(
            asyncio.to_thread(lambda: [program.recv() for _ in frames]),
            send_all(guest.network, frames),
        )
        assert sorted(got) == frames
        await asyncio.to_thread(program.connection.sendall, wire(*frames))
        assert sorted([await guest.network.recv() for _ in frames]) == frames


async def send_all(network: PythonNetwork, frames: list[bytes]) -> None:
    for frame in frames:
        await network.send(frame)
