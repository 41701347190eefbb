# SPDX-License-Identifier: Apache-2.0
"""Who moves frames between the wire's links `a` and `b`: the relays of relay.c, and netback with its emulated Xen and its netfront.

Each is a context, placed alike: what serves `a` on one processor, what serves `b` on another.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from netback.platforms.emulated.protocol import HYPERVISOR_SOCKET

from .native import build
from .topology import GUEST_ADDRESS, Topology, running

CPU_A = 0
CPU_B = 1
GUEST_DOMID = "1"
NETBACK = (sys.executable, "-c", "from netback.cli import main; main()")

Contender = Callable[[Topology], AbstractContextManager[None]]


def await_path(topology: Topology, seconds: float = 20) -> None:
    """Until a ping crosses."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if topology.host.run("ping", "-c", "1", "-W", "1", "-q", GUEST_ADDRESS, check=False).returncode == 0:
            return
        time.sleep(0.1)
    raise RuntimeError("no ping crosses")


def relay(mode: str) -> Contender:
    @contextmanager
    def contender(topology: Topology) -> Iterator[None]:
        command = (str(build("relay.c")), mode, "a", "b", str(CPU_A), str(CPU_B))
        with running(topology.wire.command(*command)):
            await_path(topology)
            yield

    return contender


def await_file(path: Path, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > end:
            raise RuntimeError(f"{path.name} does not appear")
        time.sleep(0.02)


@contextmanager
def emulator(directory: Path, *, cpu: int | None = None) -> Iterator[None]:
    """`netback emulate`, once it can be joined."""
    pinned = ("taskset", "-c", str(cpu)) if cpu is not None else ()
    with running((*pinned, *NETBACK, "emulate", "--dir", str(directory)), stdout=subprocess.DEVNULL):
        await_file(directory / HYPERVISOR_SOCKET)
        yield


@contextmanager
def netback(topology: Topology) -> Iterator[None]:
    """Four processes: emulated Xen, the backend on `a`, the netfront on `b`, and `attach`, which ends at once."""
    with tempfile.TemporaryDirectory(dir=topology.directory) as directory, ExitStack() as stack:
        at = ("--dir", directory)

        def start(*words: str, cpu: int | None = None) -> None:
            command = topology.wire.command(*NETBACK, *words, *at, cpu=cpu)
            stack.enter_context(running(command, stdout=subprocess.DEVNULL))

        stack.enter_context(emulator(Path(directory)))
        start("run", "--platform", "emulated", cpu=CPU_A)
        start("guest", "--domid", GUEST_DOMID, "--net", "packet:b", cpu=CPU_B)
        topology.wire.run(*NETBACK, "attach", GUEST_DOMID, "--net", "packet:a", *at)
        await_path(topology)
        yield


CONTENDERS: dict[str, Contender] = {"netback": netback, "relay, two": relay("two"), "relay, one": relay("one")}
