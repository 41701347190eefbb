# SPDX-License-Identifier: Apache-2.0
"""Backends killed while a guest sends under its own address and under another one: no frame passes unfiltered, not even
one that waited in the ring for the next backend.
"""

import asyncio
import random
import select
import socket
import struct
from pathlib import Path

import pytest

from netback.abi.virtio_net import HEADER
from netback.frontend import Frontend
from netback.net.filters import parse_filters
from netback.net.python import PythonNetwork
from netback.xenbus.attach import attach
from netback.xenstore.aio import Store
from tests.crash.respawn import SECONDS, launcher

pytestmark = pytest.mark.timeout(300)
KILLS = 20
STEPS = 4
MAC = bytes.fromhex("00163e112233")
OTHER = bytes.fromhex("00163e112234")
TAG = b"\x81\0\0\x0a"


def frame(source: bytes, number: int) -> bytes:
    return b"\xff" * 6 + source + b"\x88\xb5" + struct.pack(">I", number) + bytes(60)


class Guest:
    """Sends numbered frames, every second one under another's address, as fast as they are taken."""

    def __init__(self, end: socket.socket) -> None:
        self._end, self.number = end, 0

    def send(self, count: int) -> None:
        for _ in range(count):
            try:
                self._end.send(bytes(HEADER.size) + frame((MAC, OTHER)[self.number % 2], self.number))
            except BlockingIOError:
                return
            self.number += 1


class Host:
    """What came: each frame has the tag, and the guest's own address."""

    def __init__(self, end: socket.socket) -> None:
        self._end, self.last = end, -1

    def read(self) -> None:
        while True:
            try:
                got = self._end.recv(1 << 16)
            except BlockingIOError:
                return
            assert got[6:12] == MAC
            assert got[12:16] == TAG
            (self.last,) = struct.unpack_from(">I", got, 18)

    async def hears(self, guest: Guest) -> None:
        """Until a frame comes that the guest sends from now on; a UNIX socket that is full loses some."""
        first = guest.number
        async with asyncio.timeout(SECONDS):
            while self.last < first:
                guest.send(2)
                await asyncio.to_thread(select.select, [self._end], [], [], 0.1)
                self.read()


async def test_no_frame_passes_unfiltered(xen: Path, tmp_path: Path) -> None:
    rng = random.Random(3)
    far = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    far.bind(str(tmp_path / "far"))
    far.setblocking(False)
    with far, launcher(xen) as backends:
        backends.start()
        async with Frontend(xen) as frontend:
            async with await Store.connect(xen / "xenstored.sock") as store:
                await attach(
                    store,
                    frontend.guest.domid,
                    f"dgram:{tmp_path}/far,local={tmp_path}/near",
                    mac="00:16:3e:11:22:33",
                    filters=parse_filters(["antispoof", "vlan,access=10"]),
                )
            async with asyncio.timeout(SECONDS):
                await frontend.connected()
            assert isinstance(frontend.network, PythonNetwork)
            guest, host = Guest(frontend.network.socket), Host(far)
            while backends.kills < KILLS:
                guest.send(rng.randint(2, 40))
                await host.hears(guest)
                await backends.kill()
                guest.send(rng.randint(2, 40))  # these wait in the ring
                host.read()
                if rng.random() < 0.5:
                    backends.start(after=rng.randint(1, STEPS))
                    guest.send(40)
                    await backends.end()
                host.read()
                backends.start()
            await host.hears(guest)
        backends.check()
