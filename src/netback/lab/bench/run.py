# SPDX-License-Identifier: Apache-2.0
"""The lab's bench: Linux's xen-netback, QEMU's qnic and netback serve the same guest in one boot, in turns.

How each backend starts and ends is in backends.py.
"""

import json
import math
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

from netback.errors import ConfigError, NetbackError
from netback.lab.bench.backends import BACKENDS, LabBackend
from netback.lab.host import Guest, Lab, open_lab
from netback.lab.image import Say
from netback.lab.machine import LabError, Options
from netback.lab.tools import iperf, ping, serve_iperf

SUBJECT = "netback"
TRIES = 2
GIVE_UP = 2
"""After so many failures in succession a backend's row is skipped for the rest of the boot: a stall takes a minute."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measured quantity; `targets` are the accepted least ratios to each baseline."""

    name: str
    unit: str
    measure: Callable[[Guest, int], Awaitable[tuple[float, float]]]
    """Returns the figure and the work done: gigabytes or millions of frames."""
    work: str
    less_is_better: bool = False
    targets: Mapping[str, float] = field(default_factory=lambda: {"kernel": 0.9, "qnic": 5.0})


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement; `value` is NaN if the backend crashed or stalled, and `fault` says how."""

    row: str
    backend: str
    boot: int
    round: int
    value: float
    cpu: float
    """dom0's CPU seconds per gigabyte, or per million frames."""
    fault: str = ""


def _tcp(options: str) -> Callable[[Guest, int], Awaitable[tuple[float, float]]]:
    async def measure(guest: Guest, seconds: int) -> tuple[float, float]:
        flow = await iperf(guest, options, seconds=seconds, tries=1)
        return flow.bits / 1e6, flow.bits * seconds / 8e9

    return measure


def _udp(options: str) -> Callable[[Guest, int], Awaitable[tuple[float, float]]]:
    async def measure(guest: Guest, seconds: int) -> tuple[float, float]:
        flow = await iperf(guest, f"-u -b 0 {options}", seconds=seconds, tries=1)
        return flow.packets / 1e3, flow.packets * seconds / 1e6

    return measure


async def _flood(guest: Guest, seconds: int) -> tuple[float, float]:
    count = 300 * seconds
    seen = await ping(guest, f"-f -c {count} -w {5 * seconds}")
    return seen.average, 2 * seen.received / 1e6


ROWS = (
    Row("TCP to guest", "Mbit/s", _tcp(""), "GB", targets={"kernel": 0.75, "qnic": 50}),
    Row("TCP from guest", "Mbit/s", _tcp("-R"), "GB", targets={"kernel": 0.6, "qnic": 50}),
    Row("UDP 64 to guest", "kpps", _udp("-l 64"), "M frames"),
    Row("UDP 64 from guest", "kpps", _udp("-l 64 -R"), "M frames"),
    Row("UDP 1400 to guest", "kpps", _udp("-l 1400"), "M frames"),
    Row("UDP 1400 from guest", "kpps", _udp("-l 1400 -R"), "M frames"),
    Row("flood ping", "ms", _flood, "M frames", True, {"kernel": 1 / 1.2, "qnic": 1}),
)


async def _dom0_seconds(lab: Lab) -> float:
    return float(await lab.dom0("xl list 0 | awk 'NR==2 {print $NF}'"))


async def _sample(guest: Guest, row: Row, backend: LabBackend, at: tuple[int, int], seconds: int) -> Sample:
    """Measure a row, trying twice since iperf3 sometimes loses a test; a failed try counts for nothing."""
    for _ in range(TRIES):
        before = await _dom0_seconds(guest.lab)
        try:
            value, work = await row.measure(guest, seconds)
        except NetbackError as error:
            fault = str(error).splitlines()[0]
            continue
        spent = await _dom0_seconds(guest.lab) - before
        if value > 0:
            return Sample(row.name, backend.name, *at, value, spent / work)
        fault = "nothing arrived"
    return Sample(row.name, backend.name, *at, math.nan, math.nan, fault)


async def make_guest(lab: Lab) -> Guest:
    """A guest without a vif that runs iperf3's server."""
    guest = await lab.create("bench", vif=(), memory=512)
    await serve_iperf(guest)
    return guest


def given_up(samples: Sequence[Sample], row: str, backend: str, at: tuple[int, int]) -> Sample | None:
    """The sample to record instead of another try, if this boot's last tries all failed; else None."""
    key = at[0], row, backend
    faults = [one.fault for one in samples if (one.boot, one.row, one.backend) == key][-GIVE_UP:]
    if len(faults) < GIVE_UP or not all(faults):
        return None
    return Sample(row, backend, *at, math.nan, math.nan, faults[-1])


async def measure_boot(
    lab: Lab,
    samples: list[Sample],
    boot: int,
    rounds: int,
    seconds: int,
    backends: Sequence[LabBackend],
    say: Say,
) -> None:
    """Append every row of every backend to `samples`, round by round; a failure never stops the run."""
    guest = await make_guest(lab)
    for number in range(rounds):
        for backend in backends:
            taken: list[Sample] = []
            if not await lab.succeeds(f"xl domid {guest.name}"):
                say("the guest's kernel has crashed: a new guest")
                guest = await make_guest(lab)
            try:
                async with backend.serving(guest):
                    for row in ROWS:
                        at = boot, number
                        skipped = given_up(samples, row.name, backend.name, at)
                        taken.append(skipped or await _sample(guest, row, backend, at, seconds))
            except NetbackError as error:
                say(f"{backend.name}: {error}")  # this backend's other rows of the round are missing
            samples += taken
            figures = ", ".join(f"{sample.value:.4g}" for sample in taken)
            say(f"boot {boot + 1} round {number + 1} {backend.name:8} {figures}")


@dataclass(frozen=True, slots=True)
class Line:
    """A row's result: medians over all rounds, and the median of the ratios within a round."""

    row: Row
    medians: dict[str, float]
    spread: dict[str, tuple[float, float]]
    cpu: dict[str, float]
    ratios: dict[str, float]
    """netback to each baseline; more is better."""


async def bench(
    directory: Path,
    say: Say,
    *,
    accel: str,
    boots: int,
    rounds: int,
    seconds: int,
    backends: Sequence[LabBackend] = BACKENDS,
) -> tuple[list[Line], Path, Path]:
    """Run all boots; returns the lines and the paths of bench.json and bench.png.

    A machine that dies loses the rest of its boot. The files are written after each boot.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError("the bench draws with matplotlib: pip install 'netback[lab]'")
    samples: list[Sample] = []
    for boot in range(boots):
        place = directory / f"boot-{boot + 1}"
        try:
            async with open_lab(place, say, options=Options(accel=accel), backend="none") as lab:
                await measure_boot(lab, samples, boot, rounds, seconds, backends, say)
        except LabError as error:
            say(f"boot {boot + 1} ended early: {error}")
        lines = evaluate(samples)
        data, picture = write(samples, lines, directory)
    return lines, data, picture


def evaluate(samples: list[Sample], rows: tuple[Row, ...] = ROWS) -> list[Line]:
    """Medians, and the median of ratios taken within a round, since machines are noisy."""
    lines = []
    for row in rows:
        of = {
            backend.name: [s for s in samples if s.row == row.name and s.backend == backend.name]
            for backend in BACKENDS
        }
        values = {name: [s.value for s in taken if not math.isnan(s.value)] for name, taken in of.items()}
        known = {name: got for name, got in values.items() if got}
        lines.append(
            Line(
                row,
                {name: statistics.median(got) for name, got in known.items()},
                {name: (min(got), max(got)) for name, got in known.items()},
                {
                    name: statistics.median(cpus)
                    for name, taken in of.items()
                    if (cpus := [s.cpu for s in taken if not math.isnan(s.cpu)])
                },
                {name: _ratio(of[SUBJECT], of[name], row) for name in of if name != SUBJECT},
            )
        )
    return lines


def _ratio(subject: list[Sample], baseline: list[Sample], row: Row) -> float:
    theirs = {(s.boot, s.round): s.value for s in baseline}
    ratios = [
        theirs[s.boot, s.round] / s.value if row.less_is_better else s.value / theirs[s.boot, s.round]
        for s in subject
        if not math.isnan(s.value) and not math.isnan(theirs.get((s.boot, s.round), math.nan))
    ]
    return statistics.median(ratios) if ratios else math.nan


def render(lines: list[Line]) -> str:
    """A Markdown table: medians (least-most), dom0's CPU seconds, ratios."""
    names = [backend.name for backend in BACKENDS]
    head = ["", *names, *(f"CPU {name}" for name in names)]
    head += [f"to {name} (wanted)" for name in names if name != SUBJECT]
    table = [head, ["---"] * len(head)]
    for line in lines:
        cells = [f"{line.row.name}, {line.row.unit}"]
        for name in names:
            if name in line.medians:
                low, high = line.spread[name]
                cells.append(f"{line.medians[name]:.4g} ({low:.4g}-{high:.4g})")
            else:
                cells.append("n/a")
        cells += [f"{line.cpu[name]:.3g} s/{line.row.work}" if name in line.cpu else "n/a" for name in names]
        for name, ratio in line.ratios.items():
            ratio_text = "n/a" if math.isnan(ratio) else f"{ratio:.3g}"
            cells.append(f"{ratio_text} ({line.row.targets[name]:.3g})")
        table.append(cells)
    return "\n".join("| " + " | ".join(row) + " |" for row in table)


def write(samples: list[Sample], lines: list[Line], directory: Path) -> tuple[Path, Path]:
    """Write bench.json and bench.png; returns their paths."""
    text = [asdict(sample) for sample in samples]
    result = [
        {
            "row": line.row.name,
            "unit": line.row.unit,
            "medians": line.medians,
            "cpu": line.cpu,
            "ratios": line.ratios,
            "wanted": dict(line.row.targets),
        }
        for line in lines
    ]
    directory.mkdir(parents=True, exist_ok=True)
    data = directory / "bench.json"
    data.write_text(json.dumps({"samples": text, "rows": result}, indent=1).replace("NaN", "null"))
    return data, _draw(lines, directory / "bench.png")


def _draw(lines: list[Line], path: Path) -> Path:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(lines), figsize=(2.6 * len(lines), 4))
    names = [backend.name for backend in BACKENDS]
    for axis, line in zip(axes, lines, strict=True):
        for place, name in enumerate(names):
            value = line.medians.get(name)
            if value is None:
                axis.text(place, 0, "n/a", ha="center", va="bottom")
                continue
            low, high = line.spread[name]
            axis.bar(place, value, yerr=[[value - low], [high - value]], capsize=3, color=f"C{place}")
        axis.set_xticks(range(len(names)), names, rotation=30)
        axis.set_title(
            f"{line.row.name}\n{line.row.unit}{', less is better' if line.row.less_is_better else ''}",
            fontsize=9,
        )
    figure.suptitle("the same guest on real Xen under software emulation: medians, least and most")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    return path
