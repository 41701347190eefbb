# SPDX-License-Identifier: Apache-2.0
"""Rings as an SVG image: the slots of each as squares, dark or light as the viewer's system is.

It is readable without colours: a free slot is an outline, a request is full, one that the backend holds has a dot, a
response is half. Each square has a title, which browsers show beside the pointer.
"""

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from netback.cli.ring_text import MARKS, OLD, ROW, WORDS, age_of, places, summary
from netback.observe.owners import Owner

if TYPE_CHECKING:
    from netback.observe.owners import Cell
    from netback.observe.slots import Ring

_STEP, _SIZE = 11, 9
"""Pixels between two slots, and of one."""
_MARGIN, _LABEL, _LINE = 16, 32, 16
_WIDTH = 2 * _MARGIN + _LABEL + ROW * _STEP
_TEXT = 104
"""Characters of a line of text."""
_COLOURS = {
    ".paper, .dot { fill: %s }": ("#ffffff", "#15181c"),
    "text { fill: %s }": ("#1b1f24", "#e6e9ed"),
    ".failed { stroke: %s; stroke-width: 2 }": ("#1b1f24", "#e6e9ed"),
    ".frame { fill: none; stroke: %s }": ("#b4bbc3", "#545c65"),
    ".request { fill: %s }": ("#2f6fb7", "#6cb0f5"),
    ".work { fill: %s }": ("#c2410c", "#ff9a52"),
    ".response { fill: %s }": ("#2e7d4f", "#63c88b"),
}
"""Rules of CSS, in light and in dark surroundings; not as variables, which few programs but browsers know."""
_FONTS = """text { font: 11px system-ui, sans-serif }
.name { font-weight: bold; font-size: 13px }
.mark { font: bold 10px ui-monospace, monospace; text-anchor: middle }
.row { font: 10px ui-monospace, monospace; text-anchor: end }
.age0 { opacity: 0.6 }
.age1 { opacity: 0.8 }"""


def _style() -> Iterator[str]:
    yield _FONTS
    yield from (rule % light for rule, (light, _) in _COLOURS.items())
    yield "@media (prefers-color-scheme: dark) {"
    yield from (f"  {rule % dark}" for rule, (_, dark) in _COLOURS.items())
    yield "}"


def render_svg(device: str, rings: "Sequence[tuple[Ring, Sequence[Cell]]]") -> str:
    """The image of a device's rings and of whose each slot is."""
    body, y = [], _MARGIN
    for ring, cells in rings:
        lines, y = _ring(ring, cells, y)
        body += lines
    body += _legend(y)
    height = y + 2 * _LINE
    described = "; ".join(f"{ring.ring}: {summary(ring)}" for ring, _ in rings) or "no guest is connected"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
            f'viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="title desc">',
            f'<title id="title">The rings of {escape(device)}</title>',
            f'<desc id="desc">{escape(described)}</desc>',
            "<style>",
            *_style(),
            "</style>",
            f'<rect class="paper" width="{_WIDTH}" height="{height}"/>',
            *body,
            "</svg>",
            "",
        ]
    )


def _ring(ring: "Ring", cells: "Sequence[Cell]", y: int) -> tuple[list[str], int]:
    """A ring's elements from the height `y` on, and the height after it."""
    lines = [_text(_MARGIN, y + 10, ring.ring, "name")]
    indices = ", ".join(f"{letter} {name} {ring.indices[name]}" for name, letter in MARKS.items())
    for words in (*textwrap.wrap(summary(ring), _TEXT), indices):
        lines.append(_text(_MARGIN + 48, y + 10, words))
        y += _LINE
    y += 2
    at = places(ring)
    for first in range(0, len(cells), ROW):
        here = {name: place - first for name, place in at.items() if first <= place < first + ROW}
        stacked: dict[int, int] = {}
        for place in here.values():
            stacked[place] = stacked.get(place, 0) + 1
        y += _STEP * max(stacked.values(), default=0)
        for name, place in here.items():
            stacked[place] -= 1
            lines.append(_text(_x(place) + _SIZE // 2, y - 2 - _STEP * stacked[place], MARKS[name], "mark"))
        lines.append(_text(_MARGIN + _LABEL - 6, y + _SIZE - 1, str(first), "row"))
        for place, cell in enumerate(cells[first : first + ROW]):
            lines += _slot(_x(place), y, cell, f"slot {first + place}")
        y += _STEP + 2
    return lines, y + _LINE


def _x(place: int) -> int:
    return _MARGIN + _LABEL + place * _STEP


def _slot(x: int, y: int, cell: "Cell", name: str) -> Iterator[str]:
    words = f"{name}: {WORDS[cell.owner]}"
    if cell.index is not None:
        words += f", index {cell.index}"
    if cell.failed:
        words += ", failed"
    if cell.age:
        words += f", for {cell.age:.1f} s"
    yield f"<g><title>{words}</title>"
    yield f'<rect class="frame" x="{x}.5" y="{y}.5" width="{_SIZE - 1}" height="{_SIZE - 1}"/>'
    yield from _mark(x, y, cell.owner, age_of(cell), failed=cell.failed)
    yield "</g>"


def _mark(x: int, y: int, owner: Owner, age: int, *, failed: bool = False) -> Iterator[str]:
    """What fills a slot's frame."""
    if failed:
        yield f'<path class="failed" d="M{x + 1} {y + 1}l{_SIZE - 2} {_SIZE - 2}"/>'
    if owner is Owner.FREE:
        return
    kind = f'class="{owner.name.lower()} age{age}"'
    half = _SIZE // 2 if owner is Owner.RESPONSE else 0
    yield f'<rect {kind} x="{x}" y="{y + half}" width="{_SIZE}" height="{_SIZE - half}"/>'
    if owner is Owner.WORK:
        yield f'<circle class="dot" cx="{x + _SIZE / 2}" cy="{y + _SIZE / 2}" r="1.8"/>'


def _legend(y: int) -> list[str]:
    lines, x = [], _MARGIN
    entries = [(words, owner, 2, False) for owner, words in WORDS.items()]
    entries += [(f"new: pale until {OLD[1]:.0f} s", Owner.REQUEST, 0, False), ("failed", Owner.FREE, 0, True)]
    for words, owner, age, failed in entries:
        lines.append(f'<rect class="frame" x="{x}.5" y="{y}.5" width="{_SIZE - 1}" height="{_SIZE - 1}"/>')
        lines += _mark(x, y, owner, age, failed=failed)
        lines.append(_text(x + 14, y + _SIZE, words))
        x += 40 + 6 * len(words)
    return lines


def _text(x: int, y: int, words: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x}" y="{y}">{escape(words)}</text>'
