# SPDX-License-Identifier: Apache-2.0
"""`netback stats`: the counters of a device, in total and by queue."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from netback.cli.options import WIDE, Directory, Json, Platform, echo_json
from netback.cli.query import Index, Kind, Vif, connect, find
from netback.cli.target import Target

if TYPE_CHECKING:
    from netback.control.schema import DeviceStatus


def stats(
    vif: Vif,
    everything: Annotated[bool, typer.Option("--all", help="Show the counters that are 0, too.")] = False,
    kind: Kind = None,
    index: Index = None,
    platform: Platform = None,
    directory: Directory = None,
    json: Json = False,
) -> None:
    """Show what was counted for a guest's device, in total and by queue, and what each counter means.

    Needs the running backend, and begins with it; a guest that connects again is counted on.
    """
    with connect(Target.choose(platform, directory)) as client:
        (found,) = client.devices(find(client, vif, kind, index))
    if json:
        counted = {"device": found.device, "total": found.counters, "queues": found.queue_counters}
        network = {"drops": found.drops, "queued": found.queued}
        echo_json(counted | network)
    else:
        _show(found, everything)


def _show(device: "DeviceStatus", everything: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from netback.dataplane.counters import BACKEND

    total, queues = device.counters or {}, device.queue_counters or []
    table = Table("counter", "total", *(f"queue {number}" for number in range(len(queues))), "counts",
                  box=None, pad_edge=False)  # fmt: skip
    for name, means in BACKEND.items():
        if everything or total.get(name):
            cells = (str(queue.get(name, "")) for queue in queues)
            table.add_row(name, str(total.get(name, 0)), *cells, means)
    for label, values in (("network drops", device.drops), ("network queue", device.queued)):
        for name, value in values.items():
            table.add_row(f"{label}: {name}", str(value), *("" for _ in queues), "")
    Console(width=None if sys.stdout.isatty() else WIDE, highlight=False).print(table)
