# SPDX-License-Identifier: Apache-2.0
"""Options and arguments shared by several commands."""

import signal
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from netback.cli.target import PlatformName
from netback.errors import ConfigError, printable


class TypeName(StrEnum):
    """Device types. The type decides the backend's directory in the store and where a frame begins in its
    page.
    """

    VIF = "vif"
    QNIC = "qnic"


Directory = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        help="Directory of the emulated Xen, or of netback's runtime files on real Xen; only you may have write"
        " access.  [default: XENSTORED_PATH's directory, else netback's own]",
    ),
]
Platform = Annotated[
    PlatformName | None,
    typer.Option(
        "--platform", help="The Xen to use.  [default: the one this machine is in, else an emulated one]"
    ),
]
Domain = Annotated[str, typer.Argument(metavar="DOMAIN", help="The guest: its domid or its name.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]
_RATE_HELP = "as in 10Mb/s, 1.5MB/s, 500kbit/s@20ms, or none."
TxRate = Annotated[str | None, typer.Option(help=f"Limit of what the guest sends, {_RATE_HELP}")]
RxRate = Annotated[str | None, typer.Option(help=f"Limit of what the guest receives, {_RATE_HELP}")]
WIDE = 1000
"""Width of output that is not a terminal; wide enough to keep each row on one line."""
SPEC_HELP = "Network: tap[:NAME], packet:LINK, vhost-user:PATH[,server] or null."


def check_rates(tx: str | None, rx: str | None) -> None:
    """ConfigError names the option that is no rate."""
    from netback.vif.rate import parse_rate

    for option, text in (("--tx-rate", tx), ("--rx-rate", rx)):
        try:
            if text is not None:
                parse_rate(text)
        except ValueError as error:
            raise ConfigError(f"{option}: {error}") from error


def warn(text: str) -> None:
    """A line that is no part of the output."""
    typer.echo(f"netback: {printable(text)}", err=True)


def echo_json(value: object) -> None:
    """A value as indented JSON."""
    import msgspec

    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def interruptible() -> None:
    """Make SIGINT raise KeyboardInterrupt, for commands that clean up when they end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
