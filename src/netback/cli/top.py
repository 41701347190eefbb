# SPDX-License-Identifier: Apache-2.0
"""`netback top`: what every device does, live."""

import shutil
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from netback.cli import options, query
from netback.cli.options import echo_json
from netback.cli.table import CLEAR, lay_out, short
from netback.cli.target import PlatformName, Target
from netback.dataplane.counters import LOSSES

if TYPE_CHECKING:
    from netback.control.schema import DeviceStatistics

_BARS = "▁▂▃▄▅▆▇█"
_HISTORY = 12
"""Snapshots of a sparkline."""
_HEAD = ("device", "tx", "tx/s", "rx", "rx/s", "fill", "notif/s", "drops/s", "")


@dataclass(slots=True)
class _Device:
    """A device over time."""

    last: "DeviceStatistics | None" = None
    rates: Mapping[str, float] = field(default_factory=dict)
    """How much each counter grew a second, by name; `network ...` for the network's own drops."""
    now: "DeviceStatistics | None" = None
    history: deque[float] = field(default_factory=lambda: deque(maxlen=_HISTORY))

    def add(self, now: "DeviceStatistics") -> None:
        """The next snapshot. A device that was made again under its name counts from 0: nothing is shown once."""
        before, self.last, self.now = self.last, now, now
        if before is not None and now.time > before.time:
            seconds = now.time - before.time
            counts, earlier = _counts(now), _counts(before)
            self.rates = {name: max(0, n - earlier.get(name, 0)) / seconds for name, n in counts.items()}
        self.history.append(self.speed)

    @property
    def speed(self) -> float:
        """Bytes a second in both directions."""
        return self.rates.get("tx_bytes", 0.0) + self.rates.get("rx_bytes", 0.0)

    @property
    def drops(self) -> dict[str, float]:
        """Frames lost a second, by cause."""
        names = [name for names in LOSSES.values() for name in names]
        names += [name for name in self.rates if name.startswith("network ")]
        return {name: rate for name in names if (rate := self.rates.get(name, 0.0))}


def _counts(statistics: "DeviceStatistics") -> dict[str, int]:
    return statistics.counters | {f"network {name}": n for name, n in statistics.drops.items()}


@click.command
@click.option(
    "--interval",
    type=options.INTERVAL,
    default=1.0,
    show_default=True,
    help="Seconds between two snapshots.",
)
@click.option("--count", type=click.IntRange(min=1), help="End after so many snapshots.")
@options.target
@options.json
def top(
    interval: float, count: int | None, platform: PlatformName | None, directory: Path | None, json: bool
) -> None:
    """Show what each device does, the busiest first.

    Bits and frames a second that the guest sends (tx) and receives (rx), requests without a response in its TX and RX
    rings, notifications, and lost frames with their main cause. On a terminal the screen is drawn again and has a
    sparkline of the last snapshots; elsewhere lines follow each other. --json: the counters, a snapshot a line.
    """
    devices: dict[str, _Device] = {}
    with query.connect(Target.choose(platform, directory)) as client, client.statistics(interval) as source:
        for number, snapshot in enumerate(source.moments(), 1):
            if json:
                echo_json(snapshot, indent=0)
                sys.stdout.flush()
            else:
                devices = {each.device: devices.get(each.device, _Device()) for each in snapshot}
                for each in snapshot:
                    devices[each.device].add(each)
                _draw(devices)
            if number == count:
                return


def _draw(devices: Mapping[str, _Device]) -> None:
    terminal = sys.stdout.isatty()
    size = shutil.get_terminal_size((80, 24))
    ordered = sorted(devices.items(), key=lambda item: (-item[1].speed, item[0]))
    rows = [_HEAD, *(_row(name, device, terminal) for name, device in ordered)]
    lines = lay_out(rows, size.columns if terminal else None, [_HEAD.index("drops/s")])
    if terminal:
        lines = [CLEAR + lines[0], *lines[1 : size.lines - 1]]
    for line in lines:
        click.echo(line)
    sys.stdout.flush()


def _row(name: str, device: _Device, terminal: bool) -> tuple[str, ...]:
    rates, now = device.rates, device.now
    pending = "/".join(str(sum(_pending(now, ring))) for ring in ("tx", "rx"))
    drops = device.drops
    main = max(drops, key=drops.__getitem__, default="")
    stalled = f" stalled {now.stalled:.0f} s" if now is not None and now.stalled is not None else ""
    return (
        name,
        f"{short(8 * rates.get('tx_bytes', 0.0))}b/s",
        short(rates.get("tx_frames", 0.0)),
        f"{short(8 * rates.get('rx_bytes', 0.0))}b/s",
        short(rates.get("rx_frames", 0.0)),
        pending,
        short(rates.get("tx_notifies", 0.0) + rates.get("rx_notifies", 0.0)),
        f"{short(sum(drops.values()))} {main}".rstrip() + stalled,
        sparkline(device.history) if terminal and _shows_bars() else "",
    )


def _pending(now: "DeviceStatistics | None", ring: str) -> Iterator[int]:
    """Requests without a response in the rings of all queues."""
    for name, pending in (now.pending if now is not None else {}).items():
        if name.partition("-")[0] == ring:
            yield pending


def sparkline(values: deque[float]) -> str:
    """The values as bars, the highest one full."""
    most = max(values, default=0.0)
    return "".join(_BARS[int(value / most * (len(_BARS) - 1))] if most else _BARS[0] for value in values)


def _shows_bars() -> bool:
    try:
        _BARS.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
