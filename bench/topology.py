# SPDX-License-Identifier: Apache-2.0
"""Three network namespaces in a row, and processes in them that end with this one.

    host (eth0) ===veth=== a  wire  b ===veth=== (eth0) guest

`host` and `guest` have TCP/IP stacks of their own; the backend under comparison runs in `wire` and moves frames between
the links `a` and `b`. A namespace has no name: the kernel removes it, and its links, with its last process, and kills
each child when this process ends.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

HOST_ADDRESS, HOST_MAC = "10.99.0.1", "00:16:3e:00:00:01"
GUEST_ADDRESS, GUEST_MAC = "10.99.0.2", "00:16:3e:00:00:02"
BOUND = ("setpriv", "--pdeathsig", "KILL")
HOLD = (
    "unshare", "-n", "setpriv", "--bounding-set", "-all", "sh", "-c", "echo here; exec sleep infinity",
)  # fmt: skip
"""Without capabilities: pasta gives up most of its own, and may look only at processes that have no more."""
NO_IPV6 = "! test -d /proc/sys/net/ipv6 || echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6"
COMMAND_SECONDS = 60


@contextmanager
def running(
    command: Sequence[str], *, quiet: bool = False, stdout: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the context; `quiet` discards its output."""
    silent = subprocess.DEVNULL if quiet else None
    with subprocess.Popen([*BOUND, *command], stdout=stdout or silent, stderr=silent, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()


def await_line(process: subprocess.Popen[str], word: str) -> None:
    """Wait until a process prints a word."""
    assert process.stdout is not None
    for line in process.stdout:
        if word in line:
            return
    raise RuntimeError(f"{process.args!r} ended without printing {word!r}")


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace that the process `pid` holds."""

    pid: int

    def command(self, *command: str, cpu: int | None = None) -> list[str]:
        """The command line that runs `command` in the namespace, on processor `cpu` where given."""
        pinned = ["taskset", "-c", str(cpu)] if cpu is not None else []
        return ["nsenter", "-t", str(self.pid), "-n", *pinned, *command]

    def run(self, *command: str, check: bool = True, timeout: float = COMMAND_SECONDS) -> str:
        """Run a command: its output."""
        words = [*BOUND, *self.command(*command)]
        done = subprocess.run(words, check=check, timeout=timeout, text=True, stdout=subprocess.PIPE)
        return done.stdout

    def try_run(self, *command: str) -> bool:
        """Run a command: whether it succeeded."""
        words = [*BOUND, *self.command(*command)]
        return subprocess.run(words, capture_output=True, timeout=COMMAND_SECONDS).returncode == 0


@contextmanager
def namespace() -> Iterator[Namespace]:
    with running(HOLD, stdout=subprocess.PIPE) as holder:
        await_line(holder, "here")
        held = Namespace(holder.pid)
        held.run("sh", "-c", NO_IPV6)
        held.run("ip", "link", "set", "lo", "up")
        yield held


@dataclass(frozen=True, slots=True)
class Topology:
    host: Namespace
    wire: Namespace
    guest: Namespace
    directory: Path


def join(stack: Namespace, address: str, mac: str, wire: Namespace, link: str) -> None:
    """A veth pair from a stack's eth0 to a link of the wire."""
    peer = ("peer", "name", "eth0", "address", mac, "netns", str(stack.pid))
    wire.run("ip", "link", "add", "name", link, "type", "veth", *peer)
    wire.run("ip", "link", "set", "dev", link, "up")
    stack.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
    stack.run("ip", "link", "set", "dev", "eth0", "up")


def know(stack: Namespace, address: str, mac: str) -> None:
    """Add a permanent neighbour, so that an idle wire carries no ARP."""
    stack.run("ip", "neighbour", "replace", address, "lladdr", mac, "dev", "eth0", "nud", "permanent")


@contextmanager
def topology(directory: Path) -> Iterator[Topology]:
    with ExitStack() as stack:
        host, wire, guest = (stack.enter_context(namespace()) for _ in range(3))
        join(host, HOST_ADDRESS, HOST_MAC, wire, "a")
        join(guest, GUEST_ADDRESS, GUEST_MAC, wire, "b")
        know(host, GUEST_ADDRESS, GUEST_MAC)
        know(guest, HOST_ADDRESS, HOST_MAC)
        yield Topology(host, wire, guest, directory)
