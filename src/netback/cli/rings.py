# SPDX-License-Identifier: Apache-2.0
"""`netback rings`: every ring of a device as a picture, or slot by slot, while frames flow."""

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from netback.cli import options, query, ring_text
from netback.cli.options import echo_json
from netback.cli.table import CLEAR, NARROW, lay_out_wrapped, terminal_width
from netback.cli.target import PlatformName, Target
from netback.errors import ConfigError
from netback.observe.owners import Ages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netback.control.schema import DeviceType, Rings
    from netback.observe.slots import Ring, Slot

_NEAR = 8
"""Slots shown before and after rsp_prod."""
_HEAD = ("index", "kind", "id", "gref", "offset", "size", "status", "flags, and what it says")


@click.command
@query.vif
@click.option(
    "--slots", is_flag=True, help=f"Decode the {_NEAR} slots on either side of rsp_prod, as a table."
)
@click.option("--all", "everything", is_flag=True, help="Decode every slot.")
@click.option(
    "--watch", is_flag=True, help="Show them again and again, and for how long slots stay the same."
)
@click.option(
    "--interval",
    type=options.INTERVAL,
    default=1.0,
    show_default=True,
    help="Seconds between two looks of --watch.",
)
@click.option(
    "--svg",
    "image",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Write the picture to a file, as SVG; -: to standard output.",
)
@options.target
@options.json
def rings(
    vif: str,
    kind: "DeviceType | None",
    index: int | None,
    slots: bool,
    everything: bool,
    watch: bool,
    interval: float,
    image: Path | None,
    platform: PlatformName | None,
    directory: Path | None,
    json: bool,
) -> None:
    """Show the rings of a guest's device as a picture: a character for each slot, by whose it is, and the indices.
    Frames flow on meanwhile. --slots decodes slots, --json all of them. With --watch a slot's age is shown, and a
    file of --svg is written at each look.

    VIF: the device's name, as in vif3.0, or its guest. Needs the running backend.
    """
    if json + (slots or everything) + (image is not None) > 1:
        raise ConfigError("--json, --slots or --all, and --svg exclude each other: choose one")
    ages = Ages()
    with query.connect(Target.choose(platform, directory)) as client:
        device = query.find(client, vif, kind, index)
        while True:
            answer = client.rings(device)
            if json:
                echo_json(answer.rings, indent=0 if watch else 2)
            elif image is not None:
                _write(image, answer, ages)
            elif watch and sys.stdout.isatty():
                _fill_screen([*_lines(answer, ages, slots, everything)])
            else:
                for line in _lines(answer, ages, slots, everything):
                    click.echo(line)
            if not watch:
                return
            sys.stdout.flush()
            time.sleep(interval)


def _fill_screen(lines: list[str]) -> None:
    """Draw the terminal again, as many lines as it has."""
    height = shutil.get_terminal_size((NARROW, 24)).lines
    click.echo(CLEAR + "\n".join(lines[: height - 1]), color=True)


def _lines(answer: "Rings", ages: Ages, slots: bool, everything: bool) -> Iterator[str]:
    if not answer.rings:
        yield f"{answer.device}: no guest is connected"
        return
    if slots or everything:
        for ring in answer.rings:
            yield from _table(ring, everything)
        return
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    blocks = colour and ring_text.shows_blocks()
    for ring, cells in zip(answer.rings, ages.measure(answer.rings, time.monotonic()), strict=True):
        yield from ring_text.draw(ring, cells, colour=colour, blocks=blocks)
        yield ""
    yield from ring_text.legend(colour=colour, blocks=blocks)


def _write(image: Path, answer: "Rings", ages: Ages) -> None:
    """Write the picture as an image. ConfigError: the file cannot be written."""
    from netback.cli.ring_svg import render_svg

    cells = ages.measure(answer.rings, time.monotonic())
    text = render_svg(answer.device, [*zip(answer.rings, cells, strict=True)])
    try:
        with click.open_file(os.fspath(image), "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"--svg: {image}: {error.strerror}") from error


def _table(ring: "Ring", everything: bool) -> Iterator[str]:
    """The indices, and slots decoded."""
    width = terminal_width()
    indices = ", ".join(f"{name} {value}" for name, value in ring.indices.items())
    yield from textwrap.wrap(f"{ring.ring}: {indices}; {ring_text.summary(ring)}", width or 10**6)
    shown = ring.slots if everything else _near(ring)
    if not shown:
        return
    rows: list[tuple[str, ...]] = [_HEAD]
    for slot in shown:
        cells = (slot.index, slot.kind, slot.id, slot.gref, slot.offset, slot.size, slot.status)
        words = (*slot.flags, slot.type, slot.value, *map(str, slot.data))
        rows.append((*("" if cell is None else str(cell) for cell in cells), " ".join(filter(None, words))))
    yield from lay_out_wrapped(rows, width)


def _near(ring: "Ring") -> "Sequence[Slot]":
    pending = ring.pending or 0
    border = len(ring.slots) - pending
    return ring.slots[max(0, border - _NEAR) : border + _NEAR]
