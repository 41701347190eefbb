# SPDX-License-Identifier: Apache-2.0
"""Who moves frames between the wire's links `a` and `b`: the relays of relay.c, and netback with its emulated Xen.

Each is a context, placed alike: what serves `a` on one processor, what serves `b` on another.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from netback.platforms.emulated.protocol import HYPERVISOR_SOCKET

from .native import build
from .topology import GUEST_ADDRESS, Topology, running

CPU_A = 0
CPU_B = 1
DOMID = 1
NETBACK = (sys.executable, "-c", "from netback.cli import main; main()")
PATIENCE = 20.0

Contender = Callable[[Topology], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Netback:
    """A netback that runs: the directory of its emulated Xen, and its backend's process."""

    directory: Path
    backend: int


def until(holds: Callable[[], bool], what: str) -> None:
    """Look until something holds, for as long as patience lasts."""
    end = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: in vain for {PATIENCE:.0f} s")
        time.sleep(0.05)


def await_path(topology: Topology) -> None:
    ping = ("ping", "-c", "1", "-W", "1", "-q", GUEST_ADDRESS)
    until(lambda: topology.host.try_run(*ping), "a ping across")


def relay(mode: str) -> Contender:
    @contextmanager
    def contender(topology: Topology) -> Iterator[None]:
        command = (str(build("relay.c")), mode, "a", "b", str(CPU_A), str(CPU_B))
        with running(topology.wire.command(*command)):
            await_path(topology)
            yield

    return contender


@contextmanager
def emulator(directory: Path, *, cpu: int | None = None) -> Iterator[None]:
    """`netback emulate`, once it can be joined."""
    pinned = ("taskset", "-c", str(cpu)) if cpu is not None else ()
    with running((*pinned, *NETBACK, "emulate", "--dir", str(directory)), quiet=True):
        until((directory / HYPERVISOR_SOCKET).exists, "joining emulated Xen")
        yield


@contextmanager
def netback(topology: Topology) -> Iterator[Netback]:
    """Emulated Xen, the backend on `a`, the netfront on `b`; `attach` makes the device that joins them."""
    with tempfile.TemporaryDirectory(dir=topology.directory) as name, ExitStack() as stack:
        at = ("--dir", name)
        run = topology.wire.command(*NETBACK, "run", *at, cpu=CPU_A)
        guest = topology.wire.command(
            *NETBACK, "guest", "--domid", str(DOMID), "--net", "packet:b", *at, cpu=CPU_B
        )
        stack.enter_context(emulator(Path(name)))
        backend = stack.enter_context(running(run, quiet=True))
        stack.enter_context(running(guest, quiet=True))
        attach = (*NETBACK, "attach", str(DOMID), "--net", "packet:a", *at)
        until(lambda: topology.wire.try_run(*attach), "attaching a device")
        await_path(topology)
        yield Netback(Path(name), backend.pid)


CONTENDERS: dict[str, Contender] = {
    "netback": netback,
    "relay, two": relay("two"),
    "relay, one": relay("one"),
}
