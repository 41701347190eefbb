# SPDX-License-Identifier: Apache-2.0
"""The backends under comparison: netback on its emulated Xen, and the relays of relay.c in its place.

Each is a context that moves frames between the wire's links `a` and `b`; for each, the process at `a` runs on one
processor and the process at `b` on another.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from netback.platforms.emulated.protocol import HYPERVISOR_SOCKET

from .native import build
from .topology import GUEST_ADDRESS, Topology, running

CPU_A = 0
CPU_B = 1
DOMID = 1
NETBACK = (sys.executable, "-c", "from netback.cli import main; main()")
OTHER = "netback of "
"""Begins the names of backends of other trees."""
WAIT_SECONDS = 20.0

Mover = Callable[[Topology], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Netback:
    """A running netback: the directory of its emulated Xen, and its backend's process id."""

    directory: Path
    backend: int


def until(holds: Callable[[], bool], what: str) -> None:
    """Poll a condition; RuntimeError after WAIT_SECONDS."""
    end = time.monotonic() + WAIT_SECONDS
    while not holds():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not within {WAIT_SECONDS:.0f} s")
        time.sleep(0.05)


def await_path(topology: Topology) -> None:
    ping = ("ping", "-c", "1", "-W", "1", "-q", GUEST_ADDRESS)
    until(lambda: topology.host.try_run(*ping), "a ping across")


def relay(mode: str) -> Mover:
    @contextmanager
    def mover(topology: Topology) -> Iterator[None]:
        command = (str(build("relay.c")), mode, "a", "b", str(CPU_A), str(CPU_B))
        with running(topology.wire.command(*command)):
            await_path(topology)
            yield

    return mover


@contextmanager
def emulator(directory: Path, *, cpu: int | None = None, words: tuple[str, ...] = NETBACK) -> Iterator[None]:
    """`netback emulate`, from the moment when domains can join it."""
    pinned = ("taskset", "-c", str(cpu)) if cpu is not None else ()
    with running((*pinned, *words, "emulate", "--dir", str(directory)), quiet=True):
        until((directory / HYPERVISOR_SOCKET).exists, "joining emulated Xen")
        yield


@contextmanager
def netback(topology: Topology, words: tuple[str, ...] = NETBACK) -> Iterator[Netback]:
    """Emulated Xen, the backend at `a`, the netfront at `b`, and a device between them; `words` run netback."""
    with tempfile.TemporaryDirectory(dir=topology.directory) as name, ExitStack() as stack:
        at = ("--dir", name)
        run = topology.wire.command(*words, "run", *at, cpu=CPU_A)
        guest = topology.wire.command(
            *words, "guest", "--domid", str(DOMID), "--net", "packet:b", *at, cpu=CPU_B
        )
        stack.enter_context(emulator(Path(name), words=words))
        backend = stack.enter_context(running(run, quiet=True))
        stack.enter_context(running(guest, quiet=True))
        attach = (*words, "attach", str(DOMID), "--net", "packet:a", *at)
        until(lambda: topology.wire.try_run(*attach), "attaching a device")
        await_path(topology)
        yield Netback(Path(name), backend.pid)


BACKENDS: dict[str, Mover] = {
    "netback": netback,
    "relay, two": relay("two"),
    "relay, copy": relay("copy"),
    "relay, one": relay("one"),
}


def add_tree(tree: Path) -> None:
    """Compare with the netback of another tree, whose native part is built in place, too."""
    words = ("env", f"PYTHONPATH={tree.resolve() / 'src'}", *NETBACK)
    BACKENDS[OTHER + tree.name] = partial(netback, words=words)
