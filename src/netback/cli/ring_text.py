# SPDX-License-Identifier: Apache-2.0
"""A ring as a picture in a terminal: a character for each slot, in rows of 64, with the indices as marks above."""

import sys
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from netback.cli.table import NARROW
from netback.observe.owners import Owner

if TYPE_CHECKING:
    from netback.observe.owners import Cell
    from netback.observe.slots import Ring

ROW = 64
"""Slots of a row."""
GROUP = 16
"""Slots between two gaps."""
OLD = (1.0, 10.0)
"""Seconds from which on a slot is shown as old, and as very old."""
MARKS = {"req_prod": "Q", "rsp_prod": "P", "req_event": "E", "rsp_event": "V"}
"""The letter of each index."""
WORDS = {
    Owner.FREE: "free",
    Owner.REQUEST: "request",
    Owner.WORK: "held by the backend",
    Owner.RESPONSE: "response, perhaps untaken",
}
_LETTERS = {Owner.FREE: "..", Owner.REQUEST: "rR", Owner.WORK: "wW", Owner.RESPONSE: "oO"}
"""New, and old."""
_FAILED = "!"
_COLOURS = {
    Owner.FREE: ("2", "2", "2"),
    Owner.REQUEST: ("96", "36", "34"),
    Owner.WORK: ("93", "33", "31"),
    Owner.RESPONSE: ("92", "32", "35"),
}
"""Parameters of SGR (ECMA-48) by age."""
_BLOCK = "■"
_LABEL = 4
"""Columns of a row's label."""


def age_of(cell: "Cell") -> int:
    """0: new; 1: old; 2: very old."""
    return sum(cell.age >= seconds for seconds in OLD)


def places(ring: "Ring") -> dict[str, int]:
    """The slot at which each index is."""
    return {name: ring.indices[name] % ring.slots_total for name in MARKS}


def legend(*, colour: bool, blocks: bool) -> Iterator[str]:
    """What the characters mean."""
    parts = [
        f"{_paint(_letter(owner, 0, blocks), owner, 0, colour)} {words}" for owner, words in WORDS.items()
    ]
    yield "  ".join([*parts, f"{_FAILED} failed"])
    old = "another colour" if colour else "a capital"
    yield f"{old}: so for {OLD[0]:.0f} s at least, while watched"


def shows_blocks() -> bool:
    """Whether standard output's encoding has them."""
    try:
        _BLOCK.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def draw(
    ring: "Ring", cells: Sequence["Cell"], *, colour: bool = False, blocks: bool = False
) -> Iterator[str]:
    """The lines of one ring, none wider than 80 columns. `blocks`: the terminal has other characters than ASCII."""
    yield from textwrap.wrap(f"{ring.ring}: {summary(ring)}", NARROW, subsequent_indent="  ")
    marks = ", ".join(f"{letter} {name} {ring.indices[name]}" for name, letter in MARKS.items())
    yield f"{'':{_LABEL}}{marks}"
    at = places(ring)
    for first in range(0, len(cells), ROW):
        row = cells[first : first + ROW]
        here = {name: place - first for name, place in at.items() if first <= place < first + len(row)}
        yield from _mark_lines(here)
        groups = [row[start : start + GROUP] for start in range(0, len(row), GROUP)]
        yield f"{first:{_LABEL - 1}} {' '.join(_group(group, colour, blocks) for group in groups)}"


def _group(cells: Sequence["Cell"], colour: bool, blocks: bool) -> str:
    """Slots beside each other; those of one colour are painted at once."""
    runs = groupby(cells, lambda cell: (cell.owner, age_of(cell)))
    return "".join(
        _paint("".join(_glyph(cell, blocks) for cell in run), owner, age, colour)
        for (owner, age), run in runs
    )


def _glyph(cell: "Cell", blocks: bool) -> str:
    return _FAILED if cell.failed else _letter(cell.owner, age_of(cell), blocks)


def summary(ring: "Ring") -> str:
    """What a ring waits for, and since when."""
    pending = (
        "req_prod is impossible" if ring.pending is None else f"{ring.pending} of {ring.slots_total} pending"
    )
    parts = [pending, f"no response for {ring.quiet:.1f} s"]
    if ring.state is not None:
        parts.append(f"{ring.state}: {ring.means}")
    if ring.waiting:
        parts.append(f"{ring.waiting} frames wait for slots, the first for {ring.waiting_for:.1f} s")
    if not ring.consistent:
        parts.append("responses were published meanwhile: slots may be newer than the indices")
    return "; ".join(parts)


def _mark_lines(here: dict[str, int]) -> Iterator[str]:
    """The marks of a row; those at one slot stand above each other."""
    lines: list[list[str]] = []
    for name, place in here.items():
        column = _LABEL + place + place // GROUP
        line = next((line for line in lines if line[column] == " "), None)
        if line is None:
            lines.append(line := [" "] * NARROW)
        line[column] = MARKS[name]
    yield from ("".join(line).rstrip() for line in reversed(lines))


def _letter(owner: Owner, age: int, blocks: bool) -> str:
    if blocks and owner is not Owner.FREE:
        return _BLOCK
    return _LETTERS[owner][min(age, 1)]


def _paint(text: str, owner: Owner, age: int, colour: bool) -> str:
    return f"\x1b[{_COLOURS[owner][age]}m{text}\x1b[0m" if colour else text
