# SPDX-License-Identifier: Apache-2.0
"""`netback trace`: what happens in devices and on their rings, as it happens."""

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from netback.cli import options, query
from netback.cli.options import warn
from netback.cli.target import PlatformName, Target
from netback.errors import ConfigError

if TYPE_CHECKING:
    from netback.control.schema import TraceEvent

_MICROSECONDS = 1_000_000


def _text(event: "TraceEvent") -> str:
    """As the log shows it, with the local time."""
    whole = time.strftime("%H:%M:%S", time.localtime(event.time))
    values = "".join(f" {name}={value}" for name, value in event.values.items())
    return f"{whole}.{int(event.time % 1 * _MICROSECONDS):06} {event.point}{values}"


def _json(event: "TraceEvent") -> str:
    import msgspec

    return msgspec.json.encode(event).decode()


def _perfetto(event: "TraceEvent") -> str:
    """An instant event of the trace event format, on a track of its device. Perfetto reads an array without its end, so
    the output is whole whenever the command is ended.
    """
    import msgspec

    instant = {"name": event.point, "ph": "i", "s": "t", "ts": event.time * _MICROSECONDS, "pid": "netback",
               "tid": event.values.get("dev", "netback"), "args": event.values}  # fmt: skip
    return msgspec.json.encode(instant).decode() + ","


@click.command
@click.argument("points", metavar="[POINT]...", nargs=-1)
@click.option("--vif", help="The events of this device alone, as in vif3.0, or of its guest's only one.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many events.")
@click.option("--perfetto", is_flag=True, help="As a file for ui.perfetto.dev.")
@options.json
@options.target
def trace(
    points: tuple[str, ...],
    vif: str | None,
    count: int | None,
    perfetto: bool,
    json: bool,
    platform: PlatformName | None,
    directory: Path | None,
) -> None:
    """Show trace points as they are passed: those that are named, as in 'xen_device_*', else all but those of slots.

    Those (xen_netdev_tx, xen_netdev_rx) make each slot a record, which slows the device down. --json: an object a line.
    """
    if json and perfetto:
        raise ConfigError("--json and --perfetto: choose one")
    render = _perfetto if perfetto else _json if json else _text
    with query.connect(Target.choose(platform, directory)) as client:
        device = None if vif is None else query.find(client, vif, None, None)
        with client.trace(*points, device=device) as subscription:
            warn("tracing")  # what happens from here on is shown, however long nothing does
            if perfetto:
                click.echo("[")
            lost = 0
            for events in subscription.moments():
                _show(events[:count], render)
                if subscription.lost > lost:
                    warn(f"{subscription.lost - lost} events were lost: they came faster than they were read")
                    lost = subscription.lost
                if count is not None and (count := count - len(events)) <= 0:
                    return


def _show(events: "Iterable[TraceEvent]", render: "Callable[[TraceEvent], str]") -> None:
    for event in events:
        click.echo(render(event))
    sys.stdout.flush()
