# SPDX-License-Identifier: Apache-2.0
"""A plain table for a terminal. Rich makes better ones, but loading it alone takes half of the time that `list` has."""

import sys
import textwrap
from collections.abc import Sequence

CLEAR = "\x1b[H\x1b[J"
"""Cursor to the top, then everything below it erased (ECMA-48: CUP, ED)."""
NARROW = 80
"""Columns of a terminal that says nothing, and of text that is not for one."""
_GAP = 2
_MIN = 5
"""Characters of a column that is cut, at least."""
_UNITS = (("G", 10**9), ("M", 10**6), ("k", 10**3))


def lay_out(rows: Sequence[Sequence[str]], width: int | None, cut: Sequence[int] = ()) -> list[str]:
    """Rows as lines of at most `width` characters, None: of any. If they do not fit, the columns `cut` get narrower,
    the widest first; a cell that is cut ends with `~`.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if width is not None:
        _narrow(widths, width - _GAP * (len(widths) - 1), cut)
    lines = [map(_fit, row, widths) for row in rows]
    return [(" " * _GAP).join(cells).rstrip()[:width] for cells in lines]


def _narrow(widths: list[int], room: int, cut: Sequence[int]) -> None:
    while sum(widths) > room and (wide := [column for column in cut if widths[column] > _MIN]):
        widths[max(wide, key=widths.__getitem__)] -= 1


def terminal_width() -> int | None:
    """The columns of the terminal; None where the output is none, so that no line is cut or broken."""
    import shutil  # for a terminal alone: it imports every archive format

    return shutil.get_terminal_size((NARROW, 24)).columns if sys.stdout.isatty() else None


def lay_out_wrapped(rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Rows as lines; the last column goes on below itself where it is too long, down to _MIN characters a line."""
    if not rows:
        return []
    *heads, _ = [max(map(len, column)) for column in zip(*rows, strict=True)]
    indent = sum(heads) + _GAP * len(heads)
    room = None if width is None else max(width - indent, _MIN)
    lines = []
    for *cells, last in rows:
        head = "".join(cell.ljust(size + _GAP) for cell, size in zip(cells, heads, strict=True))
        parts = [last] if room is None else textwrap.wrap(last, room) or [""]
        lines += [f"{head}{parts[0]}".rstrip(), *(" " * indent + part for part in parts[1:])]
    return lines


def short(number: float) -> str:
    """A number in at most five characters, by powers of 1000, as in "12.3k"."""
    for unit, size in _UNITS:
        if number >= size:
            value = number / size
            return f"{value:.0f}{unit}" if value >= 100 else f"{value:.3g}{unit}"
    return f"{number:.0f}"


def _fit(cell: str, size: int) -> str:
    return cell.ljust(size) if len(cell) <= size else f"{cell[: size - 1]}~"
