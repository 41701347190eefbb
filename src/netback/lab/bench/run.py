# SPDX-License-Identifier: Apache-2.0
"""How fast: Linux's xen-netback, QEMU's qnic and netback serve the same guest in one boot, in turns.

Knows what is measured and how it is told; each backend's coming and going is in `contenders`.
"""

import json
import math
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

from netback.errors import ConfigError, NetbackError
from netback.lab.bench.backends import CONTENDERS, Contender
from netback.lab.host import Guest, Lab, open_lab
from netback.lab.image import Say
from netback.lab.machine import LabError, Options
from netback.lab.tools import iperf, ping, serve_iperf

SUBJECT = "netback"
TRIES = 2
GIVE_UP = 2
"""A row that failed so often running is not asked of that contender again in that boot: a stall takes a minute."""


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that is measured; `targets` are the least ratios to each baseline that are accepted."""

    name: str
    unit: str
    measure: Callable[[Guest, int], Awaitable[tuple[float, float]]]
    """The figure, and how much work it was: gigabytes or millions of frames."""
    work: str
    less_is_better: bool = False
    targets: Mapping[str, float] = field(default_factory=lambda: {"kernel": 0.9, "qnic": 5.0})


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement; `value` is NaN where the backend crashed or stalled, and `fault` says how."""

    row: str
    contender: str
    boot: int
    round: int
    value: float
    cpu: float
    """dom0's CPU seconds for each gigabyte, or each million frames."""
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


async def _sample(guest: Guest, row: Row, contender: Contender, at: tuple[int, int], seconds: int) -> Sample:
    """Tried twice, as iperf3 loses one now and then; nothing of a try that failed counts."""
    for _ in range(TRIES):
        before = await _dom0_seconds(guest.lab)
        try:
            value, work = await row.measure(guest, seconds)
        except NetbackError as error:
            fault = str(error).splitlines()[0]
            continue
        spent = await _dom0_seconds(guest.lab) - before
        if value > 0:
            return Sample(row.name, contender.name, *at, value, spent / work)
        fault = "nothing arrived"
    return Sample(row.name, contender.name, *at, math.nan, math.nan, fault)


async def make_guest(lab: Lab) -> Guest:
    """A guest without a vif, that takes what iperf3 sends."""
    guest = await lab.create("bench", vif=(), memory=512)
    await serve_iperf(guest)
    return guest


def given_up(samples: Sequence[Sample], row: str, contender: str, at: tuple[int, int]) -> Sample | None:
    """What stands for a sample that is not worth trying, after the faults of this boot so far."""
    key = at[0], row, contender
    faults = [one.fault for one in samples if (one.boot, one.row, one.contender) == key][-GIVE_UP:]
    if len(faults) < GIVE_UP or not all(faults):
        return None
    return Sample(row, contender, *at, math.nan, math.nan, faults[-1])


async def measure_boot(
    lab: Lab,
    samples: list[Sample],
    boot: int,
    rounds: int,
    seconds: int,
    contenders: Sequence[Contender],
    say: Say,
) -> None:
    """Add to `samples` every row by every contender, round after round; one that fails never stops the run."""
    guest = await make_guest(lab)
    for number in range(rounds):
        for contender in contenders:
            taken: list[Sample] = []
            if not await lab.succeeds(f"xl domid {guest.name}"):
                say("the guest's kernel has crashed: a new guest")
                guest = await make_guest(lab)
            try:
                async with contender.serving(guest):
                    for row in ROWS:
                        at = boot, number
                        skipped = given_up(samples, row.name, contender.name, at)
                        taken.append(skipped or await _sample(guest, row, contender, at, seconds))
            except NetbackError as error:
                say(f"{contender.name}: {error}")  # the rest of its rows is not known in this round
            samples += taken
            figures = ", ".join(f"{sample.value:.4g}" for sample in taken)
            say(f"boot {boot + 1} round {number + 1} {contender.name:8} {figures}")


@dataclass(frozen=True, slots=True)
class Line:
    """A row's result: medians over all rounds, and the median of ratios within a round."""

    row: Row
    medians: dict[str, float]
    spread: dict[str, tuple[float, float]]
    cpu: dict[str, float]
    ratios: dict[str, float]
    """netback to each baseline, so that more is better."""


async def bench(
    directory: Path,
    say: Say,
    *,
    accel: str,
    boots: int,
    rounds: int,
    seconds: int,
    contenders: Sequence[Contender] = CONTENDERS,
) -> tuple[list[Line], Path, Path]:
    """All boots: the result, bench.json and bench.png. A machine that dies loses the rest of its boot; what is known is
    written after each.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError("the bench draws with matplotlib: pip install 'netback[lab]'")
    samples: list[Sample] = []
    for boot in range(boots):
        place = directory / f"boot-{boot + 1}"
        try:
            async with open_lab(place, say, options=Options(accel=accel), backend="none") as lab:
                await measure_boot(lab, samples, boot, rounds, seconds, contenders, say)
        except LabError as error:
            say(f"boot {boot + 1} ended early: {error}")
        lines = evaluate(samples)
        data, picture = write(samples, lines, directory)
    return lines, data, picture


def evaluate(samples: list[Sample], rows: tuple[Row, ...] = ROWS) -> list[Line]:
    """Ratios are taken within a round, since machines are noisy, and then their median."""
    lines = []
    for row in rows:
        of = {
            contender.name: [s for s in samples if s.row == row.name and s.contender == contender.name]
            for contender in CONTENDERS
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
    """A Markdown table: medians (least to most), dom0's CPU seconds, ratios."""
    names = [contender.name for contender in CONTENDERS]
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
            told = "n/a" if math.isnan(ratio) else f"{ratio:.3g}"
            cells.append(f"{told} ({line.row.targets[name]:.3g})")
        table.append(cells)
    return "\n".join("| " + " | ".join(row) + " |" for row in table)


def write(samples: list[Sample], lines: list[Line], directory: Path) -> tuple[Path, Path]:
    """bench.json and bench.png."""
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
    names = [contender.name for contender in CONTENDERS]
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
