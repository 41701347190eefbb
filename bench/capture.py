# SPDX-License-Identifier: Apache-2.0
"""What a capture costs: UDP of 64 bytes at full speed with `netback capture` of every frame and without it, and full
rings of 64 B whose frames a reader takes, or does not.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.progress import Progress

from netback.dataplane.capture import CaptureMemory, Sink
from netback.dataplane.capture_reader import CaptureReader

from .backends import NETBACK, netback, until
from .endtoend import TO_GUEST, TO_HOST, udp
from .report import Row
from .rig import SHAPES, Ring
from .rings import CPU, drain, pinned
from .topology import Namespace, Topology, running, topology

LEAST = 0.5
"""The part of the throughput that must be left."""
ABOVE = 60.0
"""ns that a captured frame may cost more in its worker."""
FILLS = 200
RING_BYTES = 1 << 22
WAYS = {"to guest": TO_GUEST, "to host": TO_HOST}


@dataclass(slots=True)
class Counted:
    """What a capture said of itself at its end."""

    frames: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)

    def add(self, said: str) -> None:
        """Add up its last line."""
        frames = re.search(r"(\d+) frames? captured", said)
        if frames is None:
            raise RuntimeError(f"netback capture: {said}")
        self.frames.append(int(frames[1]))
        self.lost.append(sum(map(int, re.findall(r"(\d+) of \S+ \S+ lost", said))))

    @property
    def percent_lost(self) -> float:
        return 100 * sum(self.lost) / max(1, sum(self.frames) + sum(self.lost))


@contextmanager
def captured(wire: Namespace, directory: Path, counted: Counted) -> Iterator[None]:
    """Every frame goes to a file meanwhile."""
    with tempfile.TemporaryDirectory(dir=directory) as name:
        file = Path(name) / "all.pcapng"
        words = (*NETBACK, "capture", "-w", str(file), "--dir", str(directory))
        command = wire.command("sh", "-c", 'exec "$@" 2>&1', "sh", *words)
        with running(command, stdout=subprocess.PIPE) as process:
            until(lambda: file.exists() and file.stat().st_size > 0, "the capture")
            yield
            process.terminate()
            said, _ = process.communicate(timeout=60)
        counted.add(said)


def end_to_end(at: Topology, rounds: int, seconds: float, progress: Progress) -> list[Row]:
    samples: dict[str, dict[str, list[float]]] = {way: {"netback": [], "captured": []} for way in WAYS}
    counted = {way: Counted() for way in WAYS}
    task = progress.add_task("capture", total=rounds * len(WAYS))
    with netback(at) as backend:
        for _ in range(rounds):
            for way, option in WAYS.items():
                measure = udp(64, option)
                samples[way]["netback"].append(measure(at, seconds))
                with captured(at.wire, backend.directory, counted[way]):
                    samples[way]["captured"].append(measure(at, seconds))
                progress.advance(task)
    rows = []
    for way in WAYS:
        row = Row("capture", f"UDP 64 {way}, all captured", "kpps", samples[way])
        ratio = row.ratio("captured", "netback")
        notes = {"ratio": ratio, "% lost": counted[way].percent_lost}
        rows.append(row.judged(f"ratio >= {LEAST}", ratio >= LEAST, notes))
    return rows


def alone(way: str, turns: int) -> Row:
    """A queue on one core: without a capture, with a reader that takes each ring's frames, and with none."""
    ring = Ring(SHAPES["64 B"], tx=way == "TX")
    memory = CaptureMemory(1, RING_BYTES)
    reader = CaptureReader(memory.fd)
    sink = Sink(memory, "vif1.0", 0, ring=0, directions=3, snaplen=65535)
    samples: dict[str, list[float]] = {"netback": [], "captured": [], "all lost": []}

    def per_frame(after: object = None) -> float:
        taken = []
        for _ in range(FILLS):
            taken.append(drain(ring))
            if callable(after):
                after()
        return median(taken) / ring.shape.frames

    for _ in range(turns):
        ring.queue.watch(traced=False)
        samples["netback"].append(per_frame())
        ring.queue.watch(traced=False, sinks=(sink,))
        samples["captured"].append(per_frame(reader.blocks))
        lost = reader.counts(0)[2:]
        while reader.counts(0)[2:] == lost:
            drain(ring)
        samples["all lost"].append(per_frame())
        while reader.blocks():
            pass
    ring.check()
    row = Row("capture", f"rings alone, {way} 64 B", "ns/frame", samples)
    above = row.median("captured") - row.median("netback")
    return row.judged(f"above <= {ABOVE:.0f}", above <= ABOVE, {"above": above})


def measure(rounds: int, seconds: float, progress: Progress) -> list[Row]:
    with pinned(CPU):
        rows = [alone(way, max(3, round(2 * rounds * seconds))) for way in ("TX", "RX")]
    with tempfile.TemporaryDirectory(prefix="nbb") as name, topology(Path(name)) as at:
        return rows + end_to_end(at, rounds, seconds, progress)
