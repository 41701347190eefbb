# SPDX-License-Identifier: Apache-2.0
"""Two guests behind one netback: their vifs on its switch, and on two taps in a Linux bridge, in turn.

    guest A (eth0) = netback guest = rings = netback run = rings = netback guest = (eth0) guest B

Only the network between the two vifs differs. The backend runs on one processor, both guests' ends on the other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from .backends import CPU_A, CPU_B, NETBACK, emulator, until
from .endtoend import TO_GUEST, TO_HOST, iperf
from .report import Row
from .topology import GUEST_ADDRESS, GUEST_MAC, HOST_ADDRESS, HOST_MAC, Namespace, know, namespace, running

PART = "switch"
TARGET = 0.8
GUESTS = ((1, HOST_ADDRESS, HOST_MAC), (2, GUEST_ADDRESS, GUEST_MAC))
WAYS = {"a to b": TO_GUEST, "b to a": TO_HOST}
TRAFFIC: dict[str, tuple[str, ...]] = {
    "TCP": (),
    "UDP 64": ("-u", "-b", "0", "-l", "64"),
    "UDP 1400": ("-u", "-b", "0", "-l", "1400"),
}
NETWORKS: dict[str, Callable[[int], str]] = {
    "switch": lambda domid: "switch:bench",
    "bridge": lambda domid: f"tap:port{domid},bridge=bench",
}


@dataclass(frozen=True, slots=True)
class Guests:
    a: Namespace
    b: Namespace


@contextmanager
def guests(spec: Callable[[int], str]) -> Iterator[Guests]:
    """Two guests of one backend, each with an address, whose devices have the networks that `spec` names."""
    with tempfile.TemporaryDirectory(prefix="nbs") as name, ExitStack() as stack:
        at = ("--dir", name)
        wire, a, b = (stack.enter_context(namespace()) for _ in range(3))
        wire.run("ip", "link", "add", "bench", "type", "bridge")
        wire.run("ip", "link", "set", "bench", "up")
        stack.enter_context(emulator(Path(name)))
        stack.enter_context(running(wire.command(*NETBACK, "run", *at, cpu=CPU_A), quiet=True))
        for stack_of, (domid, address, mac) in zip((a, b), GUESTS, strict=True):
            frontend = (*NETBACK, "guest", "--domid", str(domid), "--net", "tap:eth0", *at)
            stack.enter_context(running(stack_of.command(*frontend, cpu=CPU_B), quiet=True))
            attach = (*NETBACK, "attach", str(domid), "--net", spec(domid), "--mac", mac, *at)
            until(lambda: wire.try_run(*attach), "attaching a device")  # noqa: B023 (called in this round)
            up = ("ip", "link", "set", "eth0", "up")
            until(lambda: stack_of.try_run(*up), "the guest's tap")  # noqa: B023
            stack_of.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        know(a, GUEST_ADDRESS, GUEST_MAC)
        know(b, HOST_ADDRESS, HOST_MAC)
        until(lambda: a.try_run("ping", "-c", "1", "-W", "1", "-q", GUEST_ADDRESS), "a ping between guests")
        yield Guests(a, b)


def judge(name: str, unit: str, samples: dict[str, list[float]]) -> Row:
    row = Row(PART, name, unit, samples)
    ratio = row.ratio("switch", "bridge")
    return row.judged(f">= {TARGET}", ratio >= TARGET, {"ratio": ratio})


def measure(rounds: int, seconds: float, progress: Progress) -> list[Row]:
    """Rounds of both networks in turn, each with new processes."""
    names = {(traffic, way): f"{traffic} {way}" for traffic in TRAFFIC for way in WAYS}
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in names.values()}
    task = progress.add_task(PART, total=rounds * len(NETWORKS) * len(names))
    for _ in range(rounds):
        for network, spec in NETWORKS.items():
            with guests(spec) as at:
                for (traffic, way), name in names.items():
                    progress.update(task, description=f"{PART}: {network}, {name}")
                    options = (*TRAFFIC[traffic], *WAYS[way])
                    received = iperf(at.a, at.b, GUEST_ADDRESS, seconds, *options)
                    speed = received["bits_per_second"] / 1e9
                    if traffic != "TCP":
                        speed *= 1e6 / 8 / float(TRAFFIC[traffic][-1])
                    samples[name].setdefault(network, []).append(speed)
                    progress.advance(task)
    units = {name: "Gbit/s" if traffic == "TCP" else "kpps" for (traffic, _), name in names.items()}
    return [judge(name, units[name], each) for name, each in samples.items()]
