# SPDX-License-Identifier: Apache-2.0
"""Measured samples with their targets, as tables, as JSON and as a picture."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """One quantity, measured for one or more backends in turn."""

    part: str
    name: str
    unit: str
    samples: dict[str, list[float]]
    target: str = ""
    met: bool | None = None
    notes: dict[str, float] = field(default_factory=dict)

    def median(self, backend: str) -> float:
        return median(self.samples[backend])

    def judged(self, target: str, met: bool, notes: dict[str, float] | None = None) -> Row:
        """This row with its target, and the values that the target is compared with."""
        return replace(self, target=target, met=met, notes=notes or {})

    def ratio(self, ours: str, theirs: str) -> float:
        """The median of each round's ratio: a disturbance in a round affects both of its samples."""
        return median(a / b for a, b in zip(self.samples[ours], self.samples[theirs], strict=True))

    @property
    def medians(self) -> dict[str, float]:
        return {backend: median(values) for backend, values in self.samples.items()}

    def as_dict(self) -> dict[str, object]:
        return {
            "part": self.part,
            "name": self.name,
            "unit": self.unit,
            "medians": self.medians,
            "notes": self.notes,
            "target": self.target,
            "met": self.met,
            "samples": self.samples,
        }


def short(value: float) -> str:
    """A number with three or four significant digits."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.3g}"


def verdict(met: bool | None) -> str:
    return {None: "", True: "[green]met[/green]", False: "[red]missed[/red]"}[met]


def show(rows: Iterable[Row], console: Console) -> None:
    """Print a table for each part: the backends' medians, then target and verdict."""
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(row.part, []).append(row)
    for part, members in parts.items():
        console.print(table_of(part, members))


def table_of(part: str, rows: list[Row]) -> Table:
    backends = list(dict.fromkeys(backend for row in rows for backend in row.samples))
    notes = list(dict.fromkeys(note for row in rows for note in row.notes))
    table = Table(title=f"{part} (medians)", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in [*backends, *notes]:
        table.add_column(name, justify="right")
    table.add_column("target")
    table.add_column("")
    for row in rows:
        values = [short(row.median(name)) if name in row.samples else "" for name in backends]
        values += [short(row.notes[name]) if name in row.notes else "" for name in notes]
        table.add_row(f"{row.name}, {row.unit}", *values, row.target, verdict(row.met))
    return table


def machine() -> dict[str, object]:
    return {"cpus": os.cpu_count(), "machine": platform.machine(), "kernel": platform.release()}


def write_json(rows: list[Row], path: Path) -> None:
    path.write_text(
        json.dumps({"machine": machine(), "rows": [row.as_dict() for row in rows]}, indent=1) + "\n"
    )


def draw(rows: list[Row], path: Path) -> None:
    """Draw a bar chart for each row, since units differ. matplotlib is imported here because its import is slow."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = 4
    height = (len(rows) + columns - 1) // columns
    figure, axes = pyplot.subplots(height, columns, figsize=(4 * columns, 2.6 * height), squeeze=False)
    for axis in axes.flat[len(rows) :]:
        axis.axis("off")
    for axis, row in zip(axes.flat, rows, strict=False):
        names = list(row.samples)
        axis.bar(
            names, [row.median(name) for name in names], color=["#4878a8", "#a0a0a0", "#c8c8c8"][: len(names)]
        )
        for at, name in enumerate(names):
            axis.plot([at] * len(row.samples[name]), row.samples[name], "k.", markersize=2, alpha=0.4)
        axis.set_title(f"{row.part}: {row.name}", fontsize=8)
        axis.set_ylabel(row.unit, fontsize=7)
        axis.set_ylim(0, 1.6 * max(row.median(name) for name in names) or 1)
        axis.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
