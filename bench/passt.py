# SPDX-License-Identifier: Apache-2.0
"""TCP between a guest's TCP/IP stack and a host's through passt's sockets: by netback's vhost-user, and by pasta's tap.

    host (eth0) ===veth=== a  wire: passt or pasta  ---  guest (eth0, a tap)

passt needs the virtio-net driver of a hypervisor's guest, which netback is here; pasta has the guest's tap itself. Both
are the same program. $PASST is the command of one that knows --vhost-user, `passt` by default.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from rich.progress import Progress

from .backends import CPU_A, CPU_B, DOMID, NETBACK, emulator, until
from .endtoend import iperf
from .report import Row
from .topology import GUEST_ADDRESS, HOST_ADDRESS, HOST_MAC, Namespace, join, namespace, running

PART = "passt"
WAYS: dict[str, tuple[str, ...]] = {"TCP host to guest": ("-R",), "TCP guest to host": ()}
COMMON = ("-f", "-q", "--runas", "0", "-i", "a", "--no-map-gw")
MTU = "65520"
"""What passt offers by DHCP, and what pasta gives its tap."""
WARM_UP = ("-O", "1")
"""A second that does not count: in slow start passt drops what its sockets do not take, and the guest times out."""
SETTINGS = """
echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range
echo reno > /proc/sys/net/ipv4/tcp_congestion_control
"""
"""passt sends pings by sockets for them. Every kernel has reno; bbr, some machines' default, takes passt's drops for a
path of a few Mbit/s."""

Mover = Callable[[Namespace, Namespace], AbstractContextManager[None]]


def passt() -> list[str]:
    return shlex.split(os.environ.get("PASST", "passt"))


def pasta() -> list[str]:
    """The same program under its other name, by which it chooses what it does."""
    *before, program = passt()
    return [*before, str(Path(program).with_name("pasta"))]


def why_not() -> str:
    """Why this part cannot be measured here; "" if it can."""
    command = os.environ.get("PASST", "passt")
    try:
        told = subprocess.run([*passt(), "--help"], capture_output=True, text=True, timeout=10)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return f"PASST={command}: {getattr(error, 'strerror', None) or error}"
    if "--vhost-user" not in told.stdout + told.stderr:
        return f"PASST={command} has no --vhost-user (that of Debian 13 has)"
    return ""


@contextmanager
def settled() -> Iterator[Namespace]:
    with namespace() as stack:
        stack.run("sh", "-c", SETTINGS)
        yield stack


def await_guest(guest: Namespace) -> None:
    until(lambda: guest.try_run("ping", "-c", "1", "-W", "1", "-q", HOST_ADDRESS), "a ping through passt")


@contextmanager
def by_pasta(wire: Namespace, guest: Namespace) -> Iterator[None]:
    place = ("--config-net", "-I", "eth0", "--netns-only", "--netns", f"/proc/{guest.pid}/ns/net")
    nothing = ("-t", "none", "-u", "none", "-T", "none", "-U", "none")
    with running(wire.command(*pasta(), *COMMON, *nothing, *place, cpu=CPU_A)):
        await_guest(guest)
        yield


@contextmanager
def by_netback(wire: Namespace, guest: Namespace) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="nbp") as name, ExitStack() as stack:
        sock, at = Path(name, "passt.sock"), ("--dir", str(Path(name, "xen")))
        command = wire.command(*passt(), "--vhost-user", *COMMON, "-s", str(sock), cpu=CPU_A)
        stack.enter_context(running(command))
        until(sock.exists, "the socket of passt")
        stack.enter_context(emulator(Path(name, "xen")))
        stack.enter_context(running([*NETBACK, "run", *at], quiet=True))
        frontend = (*NETBACK, "guest", "--domid", str(DOMID), "--net", "tap:eth0", *at)
        stack.enter_context(running(guest.command(*frontend, cpu=CPU_B), quiet=True))
        attach = (*NETBACK, "attach", str(DOMID), "--net", f"vhost-user:{sock}", *at)
        until(lambda: guest.try_run(*attach), "attaching a device")
        until(lambda: guest.try_run("ip", "link", "set", "eth0", "up"), "the guest's tap")
        guest.run("ip", "address", "add", f"{GUEST_ADDRESS}/24", "dev", "eth0")
        await_guest(guest)
        guest.run("ip", "link", "set", "eth0", "mtu", MTU)  # the frontend sets 1500 when it connects
        yield


MOVERS: dict[str, Mover] = {"netback": by_netback, "pasta": by_pasta}


def judge(name: str, samples: dict[str, list[float]]) -> Row:
    row = Row(PART, name, "Gbit/s", samples)
    return row.judged("", None, {"ratio": row.ratio("netback", "pasta")})


def measure(rounds: int, seconds: float, progress: Progress) -> list[Row]:
    """Rounds of both in turn; rows without samples where passt cannot do it."""
    if reason := why_not():
        return [Row(PART, name, "Gbit/s", {}, f"n/a: {reason}") for name in WAYS]
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in WAYS}
    task = progress.add_task(PART, total=rounds * len(MOVERS) * len(WAYS))
    with settled() as host, settled() as wire:
        join(host, HOST_ADDRESS, HOST_MAC, wire, "a")
        wire.run("ip", "address", "add", f"{GUEST_ADDRESS}/24", "dev", "a")
        wire.run("ip", "route", "add", "default", "via", HOST_ADDRESS)
        for _ in range(rounds):
            for name, mover in MOVERS.items():
                with settled() as guest, mover(wire, guest):
                    for way, options in WAYS.items():
                        progress.update(task, description=f"{PART}: {name}, {way}")
                        received = iperf(guest, host, HOST_ADDRESS, seconds, *WARM_UP, *options)
                        samples[way].setdefault(name, []).append(received["bits_per_second"] / 1e9)
                        progress.advance(task)
    return [judge(name, samples[name]) for name in WAYS]
