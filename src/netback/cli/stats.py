# SPDX-License-Identifier: Apache-2.0
"""`netback stats`: the counters of a device, in total and by queue."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from netback.cli import options, query
from netback.cli.options import WIDE, echo_json
from netback.cli.target import PlatformName, Target

if TYPE_CHECKING:
    from netback.control.schema import DeviceStatus, DeviceType


@click.command
@query.vif
@click.option("--all", "everything", is_flag=True, help="Show the counters that are 0, too.")
@options.target
@options.json
def stats(
    vif: str,
    kind: "DeviceType | None",
    index: int | None,
    everything: bool,
    platform: PlatformName | None,
    directory: Path | None,
    json: bool,
) -> None:
    """Show what was counted for a guest's device, in total and by queue, and what each counter means.

    Needs the running backend, and begins with it; a guest that connects again is counted on.
    """
    with query.connect(Target.choose(platform, directory)) as client:
        (found,) = client.devices(query.find(client, vif, kind, index))
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
