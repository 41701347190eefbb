# SPDX-License-Identifier: Apache-2.0
"""What comes of the bench's samples: medians, ratios, a table, a page and a picture."""

import math
import shlex
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netback.lab.bench.backends import BACKENDS, LabBackend
from netback.lab.bench.results import Plan, Results
from netback.lab.bench.rows import ROWS, At, Row, Sample


@dataclass(frozen=True, slots=True)
class Line:
    """A row's result by backend: medians over all rounds, and the medians of the ratios within a round."""

    row: Row
    medians: dict[str, float]
    spread: dict[str, tuple[float, float]]
    cpu: dict[str, float]
    ratios: dict[tuple[str, str], float]
    """Of each comparison; more is better, NaN if no round has both."""


def comparisons(backends: Sequence[LabBackend]) -> list[tuple[str, str]]:
    """What is compared: netback and its variants to each baseline, then the variants to netback."""
    baselines = [backend.name for backend in backends if backend.baseline]
    plain, *variants = [backend.name for backend in backends if not backend.baseline]
    return [(ours, theirs) for theirs in baselines for ours in (plain, *variants)] + [
        (variant, plain) for variant in variants
    ]


def evaluate(
    samples: Sequence[Sample], backends: Sequence[LabBackend], rows: Sequence[Row] = ROWS
) -> list[Line]:
    """Medians, and the medians of ratios taken within a round, since machines are noisy."""
    return [_evaluate_row(samples, backends, row) for row in rows]


def _evaluate_row(samples: Sequence[Sample], backends: Sequence[LabBackend], row: Row) -> Line:
    values: dict[str, dict[At, float]] = {backend.name: {} for backend in backends}
    cpu: dict[str, list[float]] = {}
    for one in samples:
        if one.row == row.name and one.value is not None and one.cpu is not None:
            values[one.backend][one.boot, one.round] = one.value
            cpu.setdefault(one.backend, []).append(one.cpu)
    known = {name: list(figures.values()) for name, figures in values.items() if figures}
    return Line(
        row,
        {name: statistics.median(figures) for name, figures in known.items()},
        {name: (min(figures), max(figures)) for name, figures in known.items()},
        {name: statistics.median(taken) for name, taken in cpu.items()},
        {(ours, theirs): _ratio(values[ours], values[theirs], row) for ours, theirs in comparisons(backends)},
    )


def _ratio(ours: Mapping[At, float], theirs: Mapping[At, float], row: Row) -> float:
    ratios = [value / theirs[at] for at, value in ours.items() if at in theirs]
    if not ratios:
        return math.nan
    return statistics.median([1 / ratio for ratio in ratios] if row.less_is_better else ratios)


def render(lines: Sequence[Line], backends: Sequence[LabBackend]) -> str:
    """A Markdown table: medians (least-most), dom0's CPU seconds, ratios."""
    names = [backend.name for backend in backends]
    head = ["", *names, *(f"CPU {name}" for name in names)]
    head += [f"{ours} to {theirs} (wanted)" for ours, theirs in comparisons(backends)]
    table = [head, ["---"] * len(head)] + [_cells(line, names) for line in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in table)


def _cells(line: Line, names: Sequence[str]) -> list[str]:
    cells = [f"{line.row.name}, {line.row.unit}"]
    for name in names:
        low, high = line.spread.get(name, (math.nan, math.nan))
        spread = f"({_short(low)}-{_short(high)})"
        cells.append(f"{_short(line.medians[name])} {spread}" if name in line.medians else "n/a")
    cells += [f"{_short(line.cpu[name])} s/{line.row.work}" if name in line.cpu else "n/a" for name in names]
    for (_, theirs), ratio in line.ratios.items():
        wanted = f" ({line.row.targets[theirs]:.3g})" if theirs in line.row.targets else ""
        cells.append("n/a" if math.isnan(ratio) else f"{ratio:.3g}{wanted}")
    return cells


def _short(value: float) -> str:
    """Three significant digits, and no exponent for large numbers."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def summary(lines: Sequence[Line]) -> tuple[dict[str, Any], ...]:
    """The lines as data, for other programs; an unknown ratio is None."""
    return tuple(
        {
            "row": line.row.name,
            "unit": line.row.unit,
            "medians": line.medians,
            "cpu": line.cpu,
            "ratios": {
                f"{ours} to {theirs}": None if math.isnan(ratio) else ratio
                for (ours, theirs), ratio in line.ratios.items()
            },
            "wanted": dict(line.row.targets),
        }
        for line in lines
    )


def page(results: Results, backends: Sequence[LabBackend]) -> str:
    """A page of the documentation: what was measured, of which commit and when, the table, and what is missing."""
    plan = results.plan
    text = f"""<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- Made by the command below with --table; change nothing here. -->
# Figures of the lab's bench

`{command(plan)}`: commit {results.commit}, {results.date}.

Medians (least-most) of {plan.rounds} rounds in each of {plan.boots} boots. A ratio is the median of those
within a round; more is better, and what is wanted stands behind it. kernel is Linux's xen-netback. CPU is dom0's.

{render(evaluate(results.samples, backends), backends)}
"""
    lacks = Counter((one.row, one.backend) for one in results.samples if one.value is None)
    if lacks:
        missing = [f"{row} with {backend} {count}" for (row, backend), count in lacks.items()]
        text += f"\nRounds without a figure, of {plan.boots * plan.rounds}: {', '.join(missing)}.\n"
    return text


def command(plan: Plan) -> str:
    """The command of a run, but for its directories."""
    words = ["netback", "lab", "bench", "--boots", str(plan.boots), "--rounds", str(plan.rounds)]
    words += ["--seconds", str(plan.seconds)]
    for backend in BACKENDS:
        if backend.name not in plan.columns:
            words += ["--without", backend.name]
    for column in plan.columns:
        if "=" in column:
            words += ["--variant", column]
    return shlex.join(words)


def draw(lines: Sequence[Line], backends: Sequence[LabBackend], path: Path) -> None:
    """Write a picture of the lines, a PNG."""
    names = [backend.name for backend in backends]
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(lines), figsize=(2.6 * len(lines), 4))
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
    pyplot.close(figure)
