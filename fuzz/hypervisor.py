# SPDX-License-Identifier: Apache-2.0
"""Any message on hypervisor.sock is answered or ends that connection; ports, grants and descriptors add up.

Runs the whole server, with sockets, in one loop. Checks the invariants of its tables, not how a request is served.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import logging
import mmap
import os
import random
import socket
import struct
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from netback.directory import Directory
from netback.platforms.emulated.hypervisor import Hypervisor
from netback.platforms.emulated.protocol import (
    DOMID_ANY,
    MAX_FDS,
    MAX_PAGES,
    MAX_PORTS,
    PAGE_SIZE,
    REPLY_SIZE,
    Hello,
    Op,
    Reply,
    Request,
)
from netback.platforms.emulated.server import HypervisorServer

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
PAGES, GRANT_PAGES = 4, 1
NUMBERS = (0, 1, 2, 3, 4, 5, 8, 511, 512, 4095, 4096, 2**31, 2**32 - 1)
DOMIDS = (0, 1, 1, 1, 2, 2, 3, 77, 0x7FF0, 2**32 - 1)


@dataclass(frozen=True, slots=True)
class Connect:
    """A new connection."""


@dataclass(frozen=True, slots=True)
class Say:
    """A message, and the kinds of its descriptors."""

    at: int
    data: bytes
    fds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Poke:
    """Eight bytes of a connection's own memory, which includes its grant table and event page."""

    at: int
    offset: int
    value: int


@dataclass(frozen=True, slots=True)
class HangUp:
    at: int


Step = Connect | Say | Poke | HangUp


@dataclass(frozen=True, slots=True)
class Case:
    ops: tuple[Step, ...]


WORDS = (Case, Connect, HangUp, Poke, Say)


# --- drawing


def hello(rng: random.Random) -> Hello:
    """Usually a valid hello."""
    good = Hello(
        flags=rng.choice((0, 0, 1)),
        domid=rng.choice((DOMID_ANY, DOMID_ANY, 0, 1, 2)),
        grant_pages=GRANT_PAGES,
    )
    if rng.random() < 0.7:
        return good
    field = rng.choice(("magic", "version", "flags", "domid", "grant_pages", "reserved"))
    return replace(good, **{field: rng.choice(NUMBERS)}, name=rng.choice((b"", b"guest", rng.randbytes(40))))


def greeting(rng: random.Random, at: int) -> Say:
    kinds = [("memory",)] * 8 + [
        (),
        ("unsealed",),
        ("vast",),
        ("pipe",),
        ("null",),
        ("memory", "pipe"),
        ("pipe",) * 3,
    ]
    data = hello(rng).pack()
    return Say(at, data if rng.random() < 0.95 else data[: rng.randrange(len(data))], rng.choice(kinds))


def request(rng: random.Random, at: int) -> Say:
    op = rng.choice((*Op, *Op, *Op, 0, 9, 2**32 - 1))
    data = Request(
        op, rng.choice(DOMIDS), rng.choice(NUMBERS), rng.choice((0, 0, 0, 1, 1, 2, 2**32 - 1))
    ).pack()
    if rng.random() < 0.97:
        return Say(at, data)
    return Say(at, rng.randbytes(rng.choice((1, 15, 17, 63, 64, 65, 4096))), rng.choice(((), ("pipe",))))


def poke(rng: random.Random, at: int) -> Poke:
    if rng.random() < 0.7:
        entry = struct.pack(
            "<HHI", rng.choice((0, 1, 1, 1, 5, 2, 3, 25)), rng.choice(DOMIDS[:6]), rng.choice(NUMBERS)
        )
        return Poke(at, 8 * rng.choice((0, 1, 2, 3, 8, 511)), int.from_bytes(entry, "little"))
    return Poke(at, 8 * rng.randrange(PAGES * PAGE_SIZE // 8), rng.getrandbits(64))


def step(rng: random.Random) -> Step:
    kind, at = rng.random(), rng.randrange(5)
    if kind < 0.05:
        return Connect()
    if kind < 0.15:
        return greeting(rng, at)
    if kind < 0.85:
        return request(rng, at)
    return poke(rng, at) if kind < 0.97 else HangUp(at)


def make(rng: random.Random) -> Case:
    beginning = [Connect(), Connect(), Connect()]
    return Case(
        (*beginning, *(greeting(rng, at) for at in range(3)), *(step(rng) for _ in range(rng.randint(1, 80))))
    )


# --- playing


class Client:
    """One connection, with the memory that it last offered."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.setblocking(False)
        self.sock.connect(str(path))
        self.memory: mmap.mmap | None = None
        self.ended = False

    def descriptor(self, kind: str) -> int:
        if kind == "null":
            return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        if kind == "pipe":
            inward, outward = os.pipe()
            os.close(outward)
            return inward
        fd = os.memfd_create("fuzz", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        os.ftruncate(fd, (2 * MAX_PAGES if kind == "vast" else PAGES) * PAGE_SIZE)
        if kind == "vast":
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        if kind == "memory":
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
            self.release()
            self.memory = mmap.mmap(fd, PAGES * PAGE_SIZE)
        return fd

    def say(self, step: Say) -> None:
        fds = [self.descriptor(kind) for kind in step.fds]
        try:
            socket.send_fds(self.sock, [step.data], fds)
        except (BrokenPipeError, ConnectionResetError):
            self.ended = True
        finally:
            for fd in fds:
                os.close(fd)

    def receive(self) -> tuple[bytes, list[int]]:
        try:
            data, fds, _, _ = socket.recv_fds(self.sock, REPLY_SIZE + 1, MAX_FDS)
        except ConnectionResetError:  # the far end hung up before it read our message
            return b"", []
        return data, fds

    def replies(self) -> list[Reply]:
        found = []
        with suppress(BlockingIOError):
            while True:
                data, fds = self.receive()
                for fd in fds:
                    os.close(fd)
                if not data:
                    self.ended = True
                    break
                assert len(data) == REPLY_SIZE
                found.append(Reply.unpack(data))
        return found

    def release(self) -> None:
        if self.memory is not None:
            self.memory.close()
            self.memory = None

    def close(self) -> None:
        self.ended = True
        self.release()
        self.sock.close()


class Complaints(logging.Handler):
    """Collects log records that no client may cause: errors and tracebacks."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno > logging.WARNING:
            self.found.append(record.getMessage())


class Topology:
    """A server and its clients, in the running loop."""

    def __init__(self, directory: Path) -> None:
        self.alive: set[int] = set()
        self.hypervisor = Hypervisor(lambda domid, _name: self.alive.add(domid), self.alive.remove)
        self.path = directory / "hypervisor.sock"
        with Directory.open(directory) as private:
            self.server = HypervisorServer(self.hypervisor, self.attach, private)
        self.clients: list[Client] = []

    @staticmethod
    def attach(_domid: int) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.close()
        return theirs

    async def apply(self, step: Step) -> None:
        if isinstance(step, Connect):
            self.clients.append(Client(self.path))
            return
        client = self.clients[step.at % len(self.clients)] if self.clients else None
        if client is None or client.ended:
            return
        match step:
            case Say():
                client.say(step)
                await self.answered(client)
            case Poke(_, offset, value) if client.memory is not None:
                struct.pack_into("<Q", client.memory, offset, value)
            case HangUp():
                client.close()
                await run_loop()

    async def answered(self, client: Client) -> None:
        await run_loop()
        replies = client.replies()
        assert len(replies) == 1 or (client.ended and len(replies) < 2), (
            f"{len(replies)} replies to one message"
        )
        for reply in replies:
            assert reply.result == 0 or -reply.result in errno.errorcode

    def check(self) -> None:
        pins = Counter[tuple[int, int, bool]]()
        assert self.alive == set(self.hypervisor.domains) - {0}
        for domain in self.hypervisor.domains.values():
            assert all(
                0 < number < MAX_PORTS and port.number == number for number, port in domain.ports.items()
            )
            assert all(port.far is None or port.far.far is port for port in domain.ports.values())
            assert set(domain.ports.values()) == {port for handle in domain.handles for port in handle.ports}
            for mapped in [mapped for handle in domain.handles for mapped in handle.maps.values()]:
                pins[id(mapped.domain), mapped.gref, mapped.readonly] += 1
        for domain in self.hypervisor.domains.values():
            for gref, (readers, writers) in domain.pins.items():
                assert (pins[id(domain), gref, True], pins[id(domain), gref, False]) == (readers, writers)

    async def close(self) -> None:
        """Disconnect every client; nothing may be left."""
        for client in self.clients:
            client.close()
        await run_loop()
        await run_loop()
        assert set(self.hypervisor.domains) == {0}
        assert not self.hypervisor.domains[0].handles
        assert not self.hypervisor.domains[0].ports
        self.server.close()
        self.path.unlink()


async def run_loop() -> None:
    """Run the loop a few times: it accepts, reads, and notices an end."""
    for _ in range(4):
        await asyncio.sleep(0)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def topology(case: Case, directory: Path) -> None:
    complaints, log = Complaints(), logging.getLogger("netback.emulated")
    unexpected: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unexpected.append(context))
    log.addHandler(complaints)
    log.propagate = False
    before = descriptors()
    try:
        stage = Topology(directory)
        for step in case.ops:
            await stage.apply(step)
            stage.check()
        await stage.close()
    finally:
        log.removeHandler(complaints)
        log.propagate = True
    assert not unexpected, unexpected
    assert not complaints.found, complaints.found
    assert descriptors() == before, "descriptors were left open"


def play(case: Case) -> int:
    with tempfile.TemporaryDirectory(prefix="fuzz") as directory:
        gc.disable()  # it could close, between two counts, what an earlier test has dropped
        try:
            asyncio.run(topology(case, Path(directory)))
        finally:
            gc.enable()
    return len(case.ops)
