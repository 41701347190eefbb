# SPDX-License-Identifier: Apache-2.0
"""The emulated store on one core: pipelined requests, and many watches on one path.

The client sends prepared bytes and only counts messages, so that the store's work dominates.
"""

from __future__ import annotations

import select
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import Progress

from netback.abi.xs_wire import Op
from netback.platforms.emulated.protocol import STORE_SOCKET
from netback.xenstore.wire import Packet, Parser, joined

from .backends import CPU_A, CPU_B, emulator
from .report import Row
from .rings import pinned

REQUESTS = 10_000
NODES = 100
WATCHES = 1_000
PER_SECOND = 10_000
FIRED_MS = 100
HOME = "/bench"


def node(number: int) -> bytes:
    return f"{HOME}/{number % NODES}/value".encode()


def encoded(op: Op, number: int, payload: bytes) -> bytes:
    return Packet(op, number, 0, payload).encode()


REQUEST: dict[str, Callable[[int], bytes]] = {
    "writes": lambda number: encoded(Op.WRITE, number, joined(node(number)) + b"%d" % number),
    "reads": lambda number: encoded(Op.READ, number, joined(node(number))),
    "directories": lambda number: encoded(Op.DIRECTORY, number, joined(HOME.encode())),
}


class Client:
    """A connection for prepared bytes."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(path))
        self._socket.setblocking(False)
        self._parser = Parser()

    def close(self) -> None:
        self._socket.close()

    def exchange(self, requests: bytes, replies: int, kind: int | None = None) -> None:
        """Send the bytes and receive until so many messages (of one type where given) have come."""
        left = memoryview(requests)
        while replies > 0:
            readable, writable, _ = select.select([self._socket], [self._socket] if left else [], [], 10)
            if not readable and not writable:
                raise RuntimeError("the store does not answer")
            if writable:
                left = left[self._socket.send(left) :]
            if readable:
                replies -= self._take(kind)

    def _take(self, kind: int | None) -> int:
        data = self._socket.recv(1 << 20)
        if not data:
            raise RuntimeError("the store closed the connection")
        self._parser.feed(data)
        taken = 0
        while (packet := self._parser.next_packet()) is not None:
            if packet.type == Op.ERROR:
                raise RuntimeError(f"the store answers {packet.payload!r}")
            taken += kind is None or packet.type == kind
        return taken


@contextmanager
def client(path: Path) -> Iterator[Client]:
    made = Client(path)
    try:
        yield made
    finally:
        made.close()


def rate(on: Client, requests: bytes) -> float:
    """Thousands of requests a second."""
    start = time.perf_counter()
    on.exchange(requests, REQUESTS)
    return REQUESTS / (time.perf_counter() - start) / 1e3


def firing(watcher: Client, writer: Client) -> float:
    """Milliseconds from a write to the last of its events."""
    start = time.perf_counter()
    writer.exchange(encoded(Op.WRITE, 1, joined(f"{HOME}/watched".encode()) + b"x"), 1)
    watcher.exchange(b"", WATCHES, Op.WATCH_EVENT)
    return (time.perf_counter() - start) * 1e3


def watch_all(on: Client) -> None:
    """Watch one path under many tokens; each gets a reply and a first event."""
    path = f"{HOME}/watched".encode()
    requests = (encoded(Op.WATCH, number, joined(path, b"%d" % number)) for number in range(WATCHES))
    on.exchange(b"".join(requests), 2 * WATCHES)


def measure(rounds: int, seconds: float, progress: Progress) -> list[Row]:
    turns = 2 * rounds + 1
    task = progress.add_task("store", total=turns)
    batches = {kind: b"".join(make(number) for number in range(REQUESTS)) for kind, make in REQUEST.items()}
    rates: dict[str, list[float]] = {kind: [] for kind in REQUEST}
    fired: list[float] = []
    with tempfile.TemporaryDirectory(prefix="nbb") as name, emulator(Path(name), cpu=CPU_A), pinned(CPU_B):
        path = Path(name) / STORE_SOCKET
        with client(path) as asking, client(path) as watcher:
            rate(asking, batches["writes"])  # makes the nodes
            watch_all(watcher)
            for _ in range(turns):
                for kind, batch in batches.items():
                    rates[kind].append(rate(asking, batch))
                fired.append(firing(watcher, asking))
                progress.advance(task)
    return [rate_row(kind, samples) for kind, samples in rates.items()] + [watch_row(fired)]


def rate_row(kind: str, samples: list[float]) -> Row:
    row = Row("store", f"pipelined {kind}", "thousand/s", {"netback": samples})
    target = PER_SECOND / 1e3
    return row.judged(f">= {target:.0f}", row.median("netback") >= target)


def watch_row(samples: list[float]) -> Row:
    row = Row("store", f"{WATCHES} watches fire", "ms", {"netback": samples})
    return row.judged(f"<= {FIRED_MS}", row.median("netback") <= FIRED_MS)
