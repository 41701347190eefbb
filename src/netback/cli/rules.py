# SPDX-License-Identifier: Apache-2.0
"""`netback rules`: the rules in force."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from netback.cli import options
from netback.cli.options import echo_json
from netback.cli.query import connect
from netback.cli.table import lay_out
from netback.cli.target import PlatformName, Target

if TYPE_CHECKING:
    from netback.control.schema import Rule

_KEYS = ("guest", "domid", "type", "index", "mac")


@click.command
@options.target
@options.json
def rules(platform: PlatformName | None, directory: Path | None, json: bool) -> None:
    """Show the configuration's rules in force, [[device]] tables and those of `netback add`, in their order: the first
    that matches a device applies to it. Needs the running backend.
    """
    with connect(Target.choose(platform, directory)) as client:
        found = client.rules()
    if json:
        echo_json(found)
        return
    rows = [("name", "matches", "net", "attach", "limits", "filters", "file"), *map(_row, found)]
    for line in lay_out(rows, None):
        click.echo(line)


def _row(rule: "Rule") -> tuple[str, ...]:
    matches = [f"{key}={value}" for key in _KEYS if (value := getattr(rule, key)) is not None]
    limits = f"{rule.tx_rate or '-'}/{rule.rx_rate or '-'}" if rule.tx_rate or rule.rx_rate else "-"
    attach = "yes" if rule.attach else "no"
    filters = "; ".join(rule.filters or ()) or "-"
    return rule.name or "-", " ".join(matches) or "all", rule.net, attach, limits, filters, rule.file or "-"
