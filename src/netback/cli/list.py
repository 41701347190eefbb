# SPDX-License-Identifier: Apache-2.0
"""`netback list`: the devices of this domain, as a table or as JSON."""

import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from netback.cli import options
from netback.cli.device import losses, trouble
from netback.cli.options import echo_json, warn
from netback.cli.query import connect
from netback.cli.table import CLEAR, lay_out, short, terminal_width
from netback.cli.target import PlatformName, Target
from netback.errors import ConfigError, NetbackError

if TYPE_CHECKING:
    from netback.control.schema import DeviceStatus


@dataclass(frozen=True, slots=True)
class _Seen:
    """A device, and what it was some seconds earlier."""

    now: "DeviceStatus"
    before: "DeviceStatus | None" = None
    seconds: float = 0.0

    def counter(self, name: str) -> int | None:
        """A counter's value; None without a running backend."""
        return None if self.now.counters is None else self.now.counters.get(name, 0)

    def rate(self, name: str) -> float | None:
        """How much a counter grew a second; None if it is not known."""
        now = self.counter(name)
        if now is None or self.before is None or not self.seconds:
            return None
        return max(0, now - (self.before.counters or {}).get(name, 0)) / self.seconds


def _state(device: "DeviceStatus") -> str | None:
    """One word if both ends agree."""
    if device.backend == device.frontend:
        return device.backend
    return f"{device.backend or '-'}/{device.frontend or '-'}"


def _link(device: "DeviceStatus") -> str | None:
    return f"{device.network}@{device.bridge}" if device.bridge else device.network or device.net


def _limits(device: "DeviceStatus") -> str | None:
    """Bits a second of TX and RX, as in "10M/-"."""
    limits = [(rate or "-").removesuffix("b/s") for rate in (device.tx_rate, device.rx_rate)]
    return "/".join(limits) if limits != ["-", "-"] else None


def _drops(seen: _Seen) -> str | None:
    """Frames lost in either direction, by netback and by the network."""
    return None if seen.now.counters is None else short(sum(losses(seen.now).values()))


def _features(device: "DeviceStatus") -> str:
    return " ".join(key.removeprefix("feature-") for key, value in device.features.items() if value != "0")


def _count(name: str) -> Callable[[_Seen], str | None]:
    def cell(seen: _Seen) -> str | None:
        value = seen.counter(name)
        return None if value is None else short(value)

    return cell


def _speed(way: str) -> Callable[[_Seen], str | None]:
    """Bits a second while the list is watched, else the bytes so far."""

    def cell(seen: _Seen) -> str | None:
        rate = seen.rate(f"{way}_bytes")
        value = seen.counter(f"{way}_bytes")
        if rate is not None:
            return f"{short(rate * 8)}b/s"
        return None if value is None else f"{short(value)}B"

    return cell


_COLUMNS: Mapping[str, Callable[[_Seen], object]] = {
    "device": lambda seen: seen.now.device,
    "guest": lambda seen: seen.now.guest,
    "state": lambda seen: _state(seen.now),
    "link": lambda seen: _link(seen.now),
    "mtu": lambda seen: seen.now.mtu,
    "tx": _speed("tx"),
    "rx": _speed("rx"),
    "limits": lambda seen: _limits(seen.now),
    "drops": _drops,
    "net": lambda seen: seen.now.net,
    "mac": lambda seen: seen.now.mac,
    "queues": lambda seen: seen.now.queues,
    "tx-frames": _count("tx_frames"),
    "rx-frames": _count("rx_frames"),
    "features": lambda seen: _features(seen.now),
}
"""Every column by its name."""
_DEFAULT = ("device", "guest", "state", "link", "mtu", "tx", "rx", "limits", "drops")
_CUT = ("guest", "link", "limits", "features", "net")
"""Columns that may be cut."""


def _choose(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[str, ...]:
    """The columns of `-o`."""
    if value is None:
        return _DEFAULT
    if value == "wide":
        return tuple(_COLUMNS)
    names = tuple(value.split(","))
    for name in names:
        if name not in _COLUMNS:
            raise ConfigError(f"-o: there is no column {name!r}; there are wide, {', '.join(_COLUMNS)}")
    return names


@click.command("list")
@click.option(
    "-o", "columns", metavar="COLUMNS", callback=_choose, help=f"wide, or some of {','.join(_COLUMNS)}."
)
@click.option("--watch", is_flag=True, help="Show it again and again, with rates for tx and rx.")
@click.option(
    "--interval",
    type=options.INTERVAL,
    default=1.0,
    show_default=True,
    help="Seconds between two lists of --watch.",
)
@options.target
@options.json
def list_devices(
    columns: tuple[str, ...],
    watch: bool,
    interval: float,
    platform: PlatformName | None,
    directory: Path | None,
    json: bool,
) -> None:
    """Show the network devices: guest, state (backend's/frontend's if they differ), link and its bridge, MTU, bytes
    that the guest sent (tx) and received (rx), the limits of both in bits a second, and frames that were lost.
    """
    target = Target.choose(platform, directory)
    if watch:
        _watch(target, columns, interval, json)
        return
    devices = read_target(target)
    if json:
        echo_json(devices)
    else:
        show([_Seen(device) for device in devices], columns)


def _watch(target: Target, columns: tuple[str, ...], interval: float, json: bool) -> None:
    """Until a signal or the backend's end. JSON is then one line for each list."""
    before: Mapping[str, DeviceStatus] = {}
    last = time.monotonic()
    with connect(target) as client:
        while True:
            devices, now = client.devices(), time.monotonic()
            if json:
                echo_json(devices, indent=0)
            else:
                if sys.stdout.isatty():
                    click.echo(CLEAR, nl=False)
                show([_Seen(device, before.get(device.device), now - last) for device in devices], columns)
            sys.stdout.flush()
            before, last = {device.device: device for device in devices}, now
            time.sleep(interval)


def read_target(target: Target) -> "list[DeviceStatus]":
    """Every device in the store, with what the running backend knows of it if one answers. ControlError: none does, and
    the store cannot be read either.
    """
    from netback.control import ControlError

    try:
        with connect(target) as client:
            return client.devices()
    except ControlError as error:
        try:
            devices = _read_offline(target)
        except (NetbackError, OSError):
            raise error from None
        warn(f"{error}; showing the store's data only")
        return devices


def _read_offline(target: Target) -> "list[DeviceStatus]":
    import asyncio

    from netback.cli import offline

    return asyncio.run(offline.read_devices(target))


def show(devices: "list[_Seen]", columns: tuple[str, ...] = _DEFAULT) -> None:
    """Print the table; on a terminal it is not wider than that. Below a device stands what is wrong with it."""
    width = terminal_width()
    rows = [[_text(_COLUMNS[name](seen)) for name in columns] for seen in devices]
    lines = lay_out([columns, *rows], width, [number for number, name in enumerate(columns) if name in _CUT])
    click.echo(lines[0])
    for line, seen in zip(lines[1:], devices, strict=True):
        click.echo(line)
        if reason := trouble(seen.now):
            click.echo(textwrap.fill(f"  {reason}", width or 10**6, subsequent_indent="  "))


def _text(cell: object) -> str:
    return "-" if cell in (None, "") else str(cell)
