# SPDX-License-Identifier: Apache-2.0
"""`netback list`: the devices of this domain, as a table or as JSON."""

import sys
from typing import TYPE_CHECKING

from netback.cli.options import WIDE, Directory, Json, Platform, echo_json, warn
from netback.cli.query import connect
from netback.cli.target import Target

if TYPE_CHECKING:
    from netback.control.schema import DeviceStatus

_COLUMNS = (
    "device",
    "guest",
    "backend",
    "frontend",
    "net",
    "link",
    "mac",
    "queues",
    "tx frames",
    "rx frames",
    "limits",
    "features",
    "error",
)


def list_devices(platform: Platform = None, directory: Directory = None, json: Json = False) -> None:
    """Show the network devices, their states and what both ends agreed on."""
    devices = read_target(Target.choose(platform, directory))
    if json:
        echo_json(devices)
    else:
        show(devices)


def read_target(target: Target) -> "list[DeviceStatus]":
    """Every device in the store, with what the running backend knows of it if one answers."""
    from netback.control import ControlError

    try:
        with connect(target) as client:
            return client.devices()
    except ControlError as error:
        devices = _read_offline(target)
        warn(f"{error}; showing the store's data only")
        return devices


def _read_offline(target: Target) -> "list[DeviceStatus]":
    import asyncio

    from netback.cli import offline

    return asyncio.run(offline.read_devices(target))


def _trouble(device: "DeviceStatus") -> str | None:
    """The error; for a guest that takes no frames, since when."""
    if device.error or device.stalled is None:
        return device.error
    return f"stalled for {device.stalled:.0f} s: the guest takes no frames"


def _limits(device: "DeviceStatus") -> str:
    """As in "tx 10Mb/s"."""
    rates = {"tx": device.tx_rate, "rx": device.rx_rate}
    return " ".join(f"{way} {rate}" for way, rate in rates.items() if rate)


def show(devices: "list[DeviceStatus]") -> None:
    """Print the table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*_COLUMNS, box=None, pad_edge=False)
    for device in devices:
        features = [key.removeprefix("feature-") for key, value in device.features.items() if value != "0"]
        counters = device.counters or {}
        row = (
            device.device,
            device.guest,
            device.backend,
            device.frontend,
            device.net,
            device.network,
            device.mac,
            device.queues,
            counters.get("tx_frames"),
            counters.get("rx_frames"),
            _limits(device),
            " ".join(features),
            _trouble(device),
        )
        table.add_row(*(escape("-" if cell in (None, "") else str(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)
