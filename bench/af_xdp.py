# SPDX-License-Identifier: Apache-2.0
"""What a frame costs a core between a guest's ring and a link, by `af_xdp:` and by `packet:`, in turn.

Each has an end of a veth pair of its own. TX ends where the far end's stack drops the frame; RX begins in another ring,
whose queue sends by a plain packet socket at the far end, and contains that, alike for all.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter_ns

from rich.progress import Progress

from netback.dataplane.peers.socket import SocketPeer
from netback.net.af_xdp import AfXdpNetwork
from netback.net.base import Network
from netback.net.packet import PacketNetwork

from . import topology
from .backends import until
from .report import Row
from .rig import Ring, Shape
from .rings import CPU, drain, pinned

PART = "af_xdp"
FILLS = 200
SHAPES = {"64 B": Shape(64, gso=False), "1400 B": Shape(1400, gso=False)}
NETWORKS: dict[str, Callable[[str], Network]] = {
    "af_xdp": lambda link: AfXdpNetwork(link, mode="driver"),
    "af_xdp, skb": lambda link: AfXdpNetwork(link, mode="skb"),
    "packet": PacketNetwork,
}
LOST_NS = 2 * 10**9


@dataclass
class Case:
    """A network, and the rings of one shape at its two ends."""

    to_link: Ring
    to_guest: Ring
    far: Ring

    def tx(self) -> int:
        return drain(self.to_link)

    def rx(self) -> int:
        """Nanoseconds until every frame of the far ring is in the guest's."""
        step, queue = self.to_guest.worker.step, self.to_guest.queue
        self.to_guest.fill()
        end = (self.to_guest.answered + self.far.shape.frames) & 0xFFFFFFFF
        start = perf_counter_ns()
        drain(self.far)
        while step(queue) or self.to_guest.answered != end:
            if perf_counter_ns() > start + LOST_NS:
                raise RuntimeError("frames were lost on the link")
        return perf_counter_ns() - start

    def check(self) -> None:
        for ring in (self.to_link, self.to_guest, self.far):
            ring.check()


@contextmanager
def inside(pid: int) -> Iterator[None]:
    """This thread in the network namespace of a process."""
    own, other = (os.open(f"/proc/{each}/ns/net", os.O_RDONLY | os.O_CLOEXEC) for each in ("self", pid))
    libc = ctypes.CDLL(None)
    libc.setns(other, 0)
    try:
        yield
    finally:
        libc.setns(own, 0)
        for fd in (own, other):
            os.close(fd)


def link_pair(number: int) -> tuple[str, str]:
    """Two links joined by a cable."""
    near, far = f"near{number}", f"far{number}"
    subprocess.run(["ip", "link", "add", near, "type", "veth", "peer", "name", far], check=True)
    for link in (near, far):
        subprocess.run(["ip", "link", "set", link, "up"], check=True)
    for link in (near, far):
        until(lambda: "LOWER_UP" in show_link(link), f"the carrier of {link}")  # noqa: B023
    return near, far


def show_link(link: str) -> str:
    return subprocess.run(["ip", "link", "show", link], check=True, text=True, stdout=subprocess.PIPE).stdout


@contextmanager
def cases() -> Iterator[dict[tuple[str, str], Case]]:
    """A case for each network and shape; the rings of one network share its link."""
    with ExitStack() as stack:
        made = {}
        for number, (name, make) in enumerate(NETWORKS.items()):
            near, far = link_pair(number)
            network = make(near)
            stack.callback(network.close)
            sock = stack.enter_context(
                socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
            )
            sock.bind((far, 0))
            (peer,) = network.peers
            for size, shape in SHAPES.items():
                sender = SocketPeer(sock.fileno(), owner=sock)
                made[name, size] = Case(
                    Ring(shape, tx=True, peer=peer),
                    Ring(shape, tx=False, peer=peer),
                    Ring(shape, tx=True, peer=sender),
                )
        yield made


def measure(rounds: int, seconds: float, progress: Progress) -> list[Row]:
    turns = max(3, round(rounds * seconds))
    task = progress.add_task(PART, total=turns)
    samples: dict[str, dict[str, list[float]]] = {}
    with topology.namespace() as place, inside(place.pid), cases() as made, pinned(CPU):
        for _ in range(turns):
            for (name, size), case in made.items():
                for way, run in (("TX", case.tx), ("RX", case.rx)):
                    cost = median(run() for _ in range(FILLS)) / case.far.shape.frames
                    samples.setdefault(f"{way} {size}", {}).setdefault(name, []).append(cost)
                case.check()
            progress.advance(task)
    return [judge(name, each) for name, each in samples.items()]


def judge(name: str, samples: dict[str, list[float]]) -> Row:
    row = Row(PART, name, "ns/frame", samples)
    notes = {"packet/xdp": row.ratio("packet", "af_xdp"), "packet/skb": row.ratio("packet", "af_xdp, skb")}
    return row.judged("", None, notes)
