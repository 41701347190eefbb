# SPDX-License-Identifier: Apache-2.0
"""`netback rings`: every ring of a device, slot by slot, while frames flow."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from netback.cli import options, query
from netback.cli.options import WIDE, echo_json
from netback.cli.target import PlatformName, Target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netback.control.schema import DeviceType
    from netback.observe.slots import Ring, Slot

_NEAR = 8
"""Slots shown before and after rsp_prod."""


@click.command
@query.vif
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help=f"Show all slots, not only {_NEAR} answered and {_NEAR} pending ones.",
)
@options.target
@options.json
def rings(
    vif: str,
    kind: "DeviceType | None",
    index: int | None,
    everything: bool,
    platform: PlatformName | None,
    directory: Path | None,
    json: bool,
) -> None:
    """Show the rings of a guest's device: indices, events, and every slot decoded. Frames flow on meanwhile.

    Needs the running backend.
    """
    with query.connect(Target.choose(platform, directory)) as client:
        answer = client.rings(query.find(client, vif, kind, index))
    if json:
        echo_json(answer.rings)
    elif not answer.rings:
        click.echo(f"{answer.device}: no guest is connected")
    else:
        for ring in answer.rings:
            _show(ring, everything)


def _show(ring: "Ring", everything: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)
    console.print(f"[bold]{ring.ring}[/bold]: {escape(_summary(ring))}")
    shown = ring.slots if everything else _near(ring)
    if not shown:
        return
    table = Table(
        "index", "kind", "id", "gref", "offset", "size", "status", "flags", "says", box=None, pad_edge=False
    )
    for slot in shown:
        words = [slot.type or "", slot.value or "", " ".join(map(str, slot.data))]
        row = (
            slot.index, slot.kind, slot.id, slot.gref, slot.offset, slot.size, slot.status, " ".join(slot.flags),
            " ".join(filter(None, words)),
        )  # fmt: skip
        table.add_row(*(escape("" if cell is None else str(cell)) for cell in row))
    console.print(table)


def _summary(ring: "Ring") -> str:
    indices = ", ".join(f"{name} {value}" for name, value in ring.indices.items())
    pending = (
        "req_prod is impossible" if ring.pending is None else f"{ring.pending} of {ring.slots_total} pending"
    )
    parts = [indices, pending, f"no response for {ring.quiet:.1f} s"]
    if ring.state is not None:
        parts.append(f"{ring.state}: {ring.means}")
    if ring.waiting:
        parts.append(f"{ring.waiting} frames wait for slots, the first for {ring.waiting_for:.1f} s")
    if not ring.consistent:
        parts.append("responses were published meanwhile: slots may be newer than the indices")
    return "; ".join(parts)


def _near(ring: "Ring") -> "Sequence[Slot]":
    pending = ring.pending or 0
    border = len(ring.slots) - pending
    return ring.slots[max(0, border - _NEAR) : border + _NEAR]
