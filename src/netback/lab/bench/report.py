# SPDX-License-Identifier: Apache-2.0
"""The bench's results: medians, ratios, a table, a file and a picture."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from netback.lab.bench.backends import LabBackend
from netback.lab.bench.rows import ROWS, Row, Sample


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
    of = {
        backend.name: [
            one
            for one in samples
            if (one.row, one.backend) == (row.name, backend.name) and not math.isnan(one.value)
        ]
        for backend in backends
    }
    known = {name: taken for name, taken in of.items() if taken}
    return Line(
        row,
        {name: statistics.median(one.value for one in taken) for name, taken in known.items()},
        {name: _spread([one.value for one in taken]) for name, taken in known.items()},
        {name: statistics.median(one.cpu for one in taken) for name, taken in known.items()},
        {(ours, theirs): _ratio(of[ours], of[theirs], row) for ours, theirs in comparisons(backends)},
    )


def _spread(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _ratio(ours: Sequence[Sample], theirs: Sequence[Sample], row: Row) -> float:
    other = {(one.boot, one.round): one.value for one in theirs}
    ratios = [
        other[at] / one.value if row.less_is_better else one.value / other[at]
        for one in ours
        if (at := (one.boot, one.round)) in other
    ]
    return statistics.median(ratios) if ratios else math.nan


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
        cells.append(f"{line.medians[name]:.4g} ({low:.4g}-{high:.4g})" if name in line.medians else "n/a")
    cells += [f"{line.cpu[name]:.3g} s/{line.row.work}" if name in line.cpu else "n/a" for name in names]
    for (_, theirs), ratio in line.ratios.items():
        wanted = f" ({line.row.targets[theirs]:.3g})" if theirs in line.row.targets else ""
        cells.append("n/a" if math.isnan(ratio) else f"{ratio:.3g}{wanted}")
    return cells


def write(
    samples: Sequence[Sample], lines: Sequence[Line], backends: Sequence[LabBackend], directory: Path
) -> tuple[Path, Path]:
    """Write bench.json and bench.png; returns their paths."""
    result = [
        {
            "row": line.row.name,
            "unit": line.row.unit,
            "medians": line.medians,
            "cpu": line.cpu,
            "ratios": {f"{ours} to {theirs}": ratio for (ours, theirs), ratio in line.ratios.items()},
            "wanted": dict(line.row.targets),
        }
        for line in lines
    ]
    directory.mkdir(parents=True, exist_ok=True)
    data = directory / "bench.json"
    text = json.dumps({"samples": [asdict(sample) for sample in samples], "rows": result}, indent=1)
    data.write_text(text.replace("NaN", "null"))
    return data, _draw(lines, [backend.name for backend in backends], directory / "bench.png")


def _draw(lines: Sequence[Line], names: Sequence[str], path: Path) -> Path:
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
    return path
