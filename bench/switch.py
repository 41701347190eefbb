# SPDX-License-Identifier: Apache-2.0
"""Two guests behind one netback: their vifs on its switch, and on two taps in a Linux bridge, in turn. Then the same
without guests: what a frame costs a worker from one vif's ring to the other's.

    guest A (eth0) = netback guest = rings = netback run = rings = netback guest = (eth0) guest B

Only the network between the two vifs differs. The backend runs on one processor, the guests' ends where the scheduler
puts them: on one processor with a sender that nothing slows down, a receiver would lose by a faster network.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.progress import Progress

from netback.net.base import Network
from netback.net.switch import SwitchNetwork
from netback.net.tap import TapNetwork

from .backends import CPU_A, NETBACK, emulator, until
from .endtoend import TO_GUEST, TO_HOST, iperf
from .report import Row
from .rig import ALL_CAPS, SHAPES, Ring, Shape
from .rings import FILLS, drain, pinned
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


NO_FILTERS = "for f in /proc/sys/net/bridge/bridge-nf-call-*; do ! test -w $f || echo 0 > $f; done"
"""With br_netfilter loaded a bridge gives every IP packet to the packet filters."""


def make_bridge(wire: Namespace) -> None:
    """A bridge that does nothing but switch."""
    wire.run("ip", "link", "add", "bench", "type", "bridge", "mcast_snooping", "0")
    wire.run("sh", "-c", NO_FILTERS)
    wire.run("ip", "link", "set", "bench", "up")


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
        make_bridge(wire)
        stack.enter_context(emulator(Path(name)))
        stack.enter_context(running(wire.command(*NETBACK, "run", *at, cpu=CPU_A), quiet=True))
        for stack_of, (domid, address, mac) in zip((a, b), GUESTS, strict=True):
            frontend = (*NETBACK, "guest", "--domid", str(domid), "--net", "tap:eth0", *at)
            stack.enter_context(running(stack_of.command(*frontend), quiet=True))
            attach = (*NETBACK, "attach", str(domid), "--net", spec(domid), "--mac", mac, *at)
            until(lambda: wire.try_run(*attach), "attaching a device")  # noqa: B023 (called in this round)
            up = ("ip", "link", "set", "eth0", "up")
            until(lambda: stack_of.try_run(*up), "the guest's tap")  # noqa: B023
            stack_of.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        know(a, GUEST_ADDRESS, GUEST_MAC)
        know(b, HOST_ADDRESS, HOST_MAC)
        until(lambda: a.try_run("ping", "-c", "1", "-W", "1", "-q", GUEST_ADDRESS), "a ping between guests")
        yield Guests(a, b)


# ---- a worker alone


@contextmanager
def switched() -> Iterator[tuple[Network, Network]]:
    """Two ports of a switch."""
    with closing(SwitchNetwork("bench")) as near, closing(SwitchNetwork("bench")) as far:
        yield near, far


@contextmanager
def bridged() -> Iterator[tuple[Network, Network]]:
    """Two taps in a bridge, in a namespace of their own."""
    with ExitStack() as stack:
        wire = stack.enter_context(namespace())
        make_bridge(wire)
        made: list[Network] = []
        for number in (1, 2):
            name = f"nb{os.getpid()}.{number}"
            made.append(tap := TapNetwork(name))
            stack.callback(tap.remove)
            subprocess.run(["ip", "link", "set", name, "netns", str(wire.pid)], check=True)
            wire.run("ip", "link", "set", name, "master", "bench", "up")
            tap.carrier(True)
            until(lambda: "state UP" in wire.run("ip", "link", "show", name), "the tap's carrier")  # noqa: B023
        yield made[0], made[1]


ALONE = {"switch": switched, "bridge": bridged}


class Pass:
    """Full rings of frames from one vif's TX ring to another one's RX ring."""

    def __init__(self, shape: Shape, near: Network, far: Network) -> None:
        for network in (near, far):
            network.offloads(ALL_CAPS)
            network.carrier(True)
            network.drain()
        self.tx = Ring(shape, tx=True, peer=near.peers[0])
        self.rx = Ring(shape, tx=False, peer=far.peers[0])

    def sample(self) -> float:
        """The median of FILLS full rings, in nanoseconds a frame."""
        times = [drain(self.tx) + drain(self.rx) for _ in range(FILLS)]
        for ring in (self.tx, self.rx):
            ring.check()
        return median(times) / self.tx.shape.frames


def measure_alone(turns: int) -> list[Row]:
    """What a frame costs a worker from ring to ring, in turn."""
    rows = []
    for name, shape in SHAPES.items():
        samples: dict[str, list[float]] = {network: [] for network in ALONE}
        with ExitStack() as stack, pinned(CPU_A):
            ways = {network: Pass(shape, *stack.enter_context(make())) for network, make in ALONE.items()}
            for _ in range(turns):
                for network, way in ways.items():
                    samples[network].append(way.sample())
        row = Row(f"{PART} alone", f"{name}, ring to ring", "ns/frame", samples)
        ratio = row.ratio("bridge", "switch")
        rows.append(row.judged(f">= {TARGET}", ratio >= TARGET, {"ratio": ratio}))
    return rows


# ---- two guests


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
    rows = [judge(name, units[name], each) for name, each in samples.items()]
    return rows + measure_alone(max(3, rounds))
