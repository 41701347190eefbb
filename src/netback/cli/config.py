# SPDX-License-Identifier: Apache-2.0
"""`netback config`: the configuration file and its drop-ins."""

from pathlib import Path

import click

from netback.cli import options
from netback.errors import printable


@click.group
def config() -> None:
    """Check the configuration."""


@config.command
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, readable=False),
    help="Configuration file, with conf.d/*.toml beside it.  [default: /etc/netback/netback.toml]",
)
@options.json
def check(path: Path | None, json: bool) -> None:
    """Read the configuration file and its drop-ins, and name the first mistake; changes nothing."""
    from netback.daemon.config import load_config

    found = load_config(path)
    if json:
        options.echo_json({"files": found.files, "rules": len(found.device)})
        return
    files = ", ".join(found.files) or "no file: the defaults apply"
    click.echo(printable(f"{files}: no mistake, {len(found.device)} rules"))
