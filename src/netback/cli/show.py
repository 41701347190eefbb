# SPDX-License-Identifier: Apache-2.0
"""`netback show`: everything of one device."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from netback.cli import options, query
from netback.cli.device import losses, trouble
from netback.cli.options import echo_json
from netback.cli.table import NARROW, lay_out_wrapped, terminal_width
from netback.cli.target import PlatformName, Target

if TYPE_CHECKING:
    from netback.control.schema import Details, DeviceStatus, DeviceType, Feature


@click.command
@query.vif
@options.target
@options.json
def show(
    vif: str,
    kind: "DeviceType | None",
    index: int | None,
    platform: PlatformName | None,
    directory: Path | None,
    json: bool,
) -> None:
    """Show everything of a device: states, network, limits, what was lost, each feature with what both ends say of it
    and why it is not in force, and the nodes of both ends.

    VIF: the device's name, as in vif3.0, or its guest. Needs the running backend.
    """
    with query.connect(Target.choose(platform, directory)) as client:
        details = client.show(query.find(client, vif, kind, index))
    if json:
        echo_json(details)
    else:
        for line in _lines(details):
            click.echo(line)


def _lines(details: "Details") -> Iterator[str]:
    width = terminal_width()
    yield from lay_out_wrapped([*_facts(details.device)], width)
    yield ""
    if details.fault:
        yield from textwrap.wrap(f"no feature is agreed: {details.fault}", NARROW)
    yield from lay_out_wrapped(
        [("feature", "backend", "guest", "in force"), *map(_feature, details.features)], width
    )
    for path, nodes in (
        (details.backend_path, details.backend_nodes),
        (details.frontend_path, details.frontend_nodes),
    ):
        yield ""
        yield path
        yield from lay_out_wrapped([(f"  {name}", value) for name, value in nodes.items()], width)
        if not nodes:
            yield "  no node"


def _facts(device: "DeviceStatus") -> Iterator[tuple[str, str]]:
    counters = device.counters or {}
    yield (
        "device",
        f"{device.device} of domain {device.domid}" + (f", {device.guest}" if device.guest else ""),
    )
    yield "states", f"backend {device.backend or '-'}, frontend {device.frontend or '-'}"
    if reason := trouble(device):
        yield "error", reason
    network = [device.network or "not open"]
    network += [f"in bridge {device.bridge}"] if device.bridge else []
    network += [f"MTU {device.mtu}"] if device.mtu else []
    yield "network", ", ".join(network)
    if device.path:
        yield "path", device.path
    yield "mac", device.mac or "-"
    yield "queues", str(device.queues or 0)
    yield "limits", f"tx {device.tx_rate or 'none'}, rx {device.rx_rate or 'none'}"
    yield "filters", "; ".join(device.filters or ()) or "none"
    if pcap := device.pcap:
        state = pcap.error or f"{pcap.frames} frames"
        yield "pcap", f"{pcap.file}, {state}" + (f", {pcap.lost} lost" if pcap.lost else "")
    if device.record and device.record != "off":
        yield "record", device.record
    if device.recording:
        yield "last fault", f"netback replay {device.recording}"
    for way in ("tx", "rx"):
        yield way, f"{counters.get(f'{way}_frames', 0)} frames, {counters.get(f'{way}_bytes', 0)} bytes"
    yield "lost", ", ".join(f"{name} {count}" for name, count in losses(device).items()) or "nothing"


def _feature(feature: "Feature") -> tuple[str, ...]:
    agreed = {None: "-", True: "yes", False: f"no: {feature.reason}"}[feature.agreed]
    return feature.feature, feature.offered or "-", feature.asked or "-", agreed
