# SPDX-License-Identifier: Apache-2.0
"""Three network namespaces in a row, and processes in them, none of which outlives this one.

    host (eth0) ===veth=== a  wire  b ===veth=== (eth0) guest

`host` and `guest` have TCP/IP stacks of their own; who is measured runs in `wire` and moves frames between the links `a` and `b`.
A namespace has no name, only a process that holds it: with its last process it is gone, and its links with it. Each child is killed by
the kernel when we end, however we end.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

HOST_ADDRESS = "10.99.0.1"
GUEST_ADDRESS = "10.99.0.2"
BOUND = ("setpriv", "--pdeathsig", "KILL")
HOLD = ("unshare", "-n", "sh", "-c", "echo here; exec sleep infinity")


@contextmanager
def running(
    command: Sequence[str], *, stdout: int | None = None, stderr: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process for as long as the context."""
    with subprocess.Popen([*BOUND, *command], stdout=stdout, stderr=stderr, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace, held by the process `pid`."""

    pid: int

    def command(self, *command: str, cpu: int | None = None) -> list[str]:
        """`command` as it runs in here, on one processor if asked."""
        pinned = ["taskset", "-c", str(cpu)] if cpu is not None else []
        return ["nsenter", "-t", str(self.pid), "-n", *pinned, *command]

    def run(self, *command: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*BOUND, *self.command(*command)], check=check, timeout=timeout, text=True, stdout=subprocess.PIPE
        )


@contextmanager
def namespace() -> Iterator[Namespace]:
    with running(HOLD, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        if not holder.stdout.readline():
            raise RuntimeError("cannot make a network namespace: root is needed")
        held = Namespace(holder.pid)
        held.run("sh", "-c", "! test -d /proc/sys/net/ipv6 || echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
        held.run("ip", "link", "set", "lo", "up")
        yield held


@dataclass(frozen=True, slots=True)
class Topology:
    host: Namespace
    wire: Namespace
    guest: Namespace
    directory: Path


def join(stack: Namespace, address: str, wire: Namespace, link: str) -> None:
    """A veth pair from a stack's eth0 to a link of the wire."""
    wire.run("ip", "link", "add", "name", link, "type", "veth", "peer", "name", "eth0", "netns", str(stack.pid))
    wire.run("ip", "link", "set", "dev", link, "up")
    stack.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
    stack.run("ip", "link", "set", "eth0", "up")


@contextmanager
def topology(directory: Path) -> Iterator[Topology]:
    with ExitStack() as stack:
        host, wire, guest = (stack.enter_context(namespace()) for _ in range(3))
        join(host, HOST_ADDRESS, wire, "a")
        join(guest, GUEST_ADDRESS, wire, "b")
        yield Topology(host, wire, guest, directory)
