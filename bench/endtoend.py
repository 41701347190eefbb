# SPDX-License-Identifier: Apache-2.0
"""TCP, UDP and ping between two namespaces by iperf3 and ping(8), through each backend in turn."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from .backends import BACKENDS, OTHER
from .report import Row
from .topology import GUEST_ADDRESS, Namespace, Topology, await_line, running, topology

BASELINE = "relay, two"
COPYING = "relay, copy"
TO_GUEST: tuple[str, ...] = ()
TO_HOST = ("-R",)


@dataclass(frozen=True, slots=True)
class Measure:
    name: str
    unit: str
    of: Callable[[Topology, float], float]
    target: float
    """The least ratio to the baseline."""
    less_is_better: bool = False


@contextmanager
def iperf_server(where: Namespace) -> Iterator[None]:
    command = where.command("iperf3", "-s", "--forceflush")
    with running(command, quiet=True, stdout=subprocess.PIPE) as server:
        await_line(server, "listening")
        yield


def iperf(
    client: Namespace, server: Namespace, address: str, seconds: float, *options: str
) -> dict[str, float]:
    """The receiver's result, from the server's report; `address` is the server's."""
    words = ("iperf3", "-c", address, "-J", "-t", str(seconds), *options)
    with iperf_server(server):
        answer = json.loads(client.run(*words, check=False, timeout=seconds + 30))
    if "error" in answer:
        raise RuntimeError(f"iperf3: {answer['error']}")
    received: dict[str, float] = answer["end"]["sum_received"]
    return received


def between(at: Topology, seconds: float, *options: str) -> dict[str, float]:
    return iperf(at.host, at.guest, GUEST_ADDRESS, seconds, *options)


def tcp(way: tuple[str, ...]) -> Callable[[Topology, float], float]:
    return lambda at, seconds: between(at, seconds, *way)["bits_per_second"] / 1e9


def udp(length: int, way: tuple[str, ...]) -> Callable[[Topology, float], float]:
    def measure(at: Topology, seconds: float) -> float:
        return (
            between(at, seconds, "-u", "-b", "0", "-l", str(length), *way)["bits_per_second"]
            / 8
            / length
            / 1e3
        )

    return measure


def ping(at: Topology, seconds: float) -> float:
    """The mean round trip of a flood ping in µs."""
    output = at.host.run("ping", "-f", "-q", "-c", str(int(2500 * seconds)), GUEST_ADDRESS)
    found = re.search(r"= [\d.]+/([\d.]+)/", output)
    if found is None:
        raise RuntimeError(f"ping: {output}")
    return float(found.group(1)) * 1e3


MEASURES = (
    Measure("TCP host to guest", "Gbit/s", tcp(TO_GUEST), 0.95),
    Measure("TCP guest to host", "Gbit/s", tcp(TO_HOST), 0.95),
    Measure("UDP 64 to guest", "kpps", udp(64, TO_GUEST), 1.0),
    Measure("UDP 64 to host", "kpps", udp(64, TO_HOST), 1.0),
    Measure("UDP 1400 to guest", "kpps", udp(1400, TO_GUEST), 0.8),
    Measure("UDP 1400 to host", "kpps", udp(1400, TO_HOST), 0.8),
    Measure("flood ping", "µs", ping, 0.8, less_is_better=True),
)


def judge(measure: Measure, samples: dict[str, list[float]]) -> Row:
    row = Row("end to end", measure.name, measure.unit, samples)
    if not {"netback", BASELINE, COPYING} <= samples.keys():
        return row

    def ratio(other: str) -> float:
        return row.ratio(other, "netback") if measure.less_is_better else row.ratio("netback", other)

    notes = {"to copy": ratio(COPYING)}
    notes |= {f"to {name.removeprefix(OTHER)}": ratio(name) for name in samples if name.startswith(OTHER)}
    met = ratio(BASELINE) >= measure.target
    return row.judged(f">= {measure.target}", met, {"ratio": ratio(BASELINE), **notes})


def measure(rounds: int, seconds: float, progress: Progress, only: tuple[str, ...] = ()) -> list[Row]:
    """Rounds of every backend in turn; each runs all measurements."""
    backends = {name: each for name, each in BACKENDS.items() if not only or name in only}
    samples: dict[str, dict[str, list[float]]] = {each.name: {} for each in MEASURES}
    task = progress.add_task("end to end", total=rounds * len(backends) * len(MEASURES))
    with tempfile.TemporaryDirectory(prefix="nbb") as directory, topology(Path(directory)) as at:
        for _ in range(rounds):
            for name, backend in backends.items():
                with backend(at):
                    for each in MEASURES:
                        progress.update(task, description=f"end to end: {name}, {each.name}")
                        samples[each.name].setdefault(name, []).append(each.of(at, seconds))
                        progress.advance(task)
    return [judge(each, samples[each.name]) for each in MEASURES]
