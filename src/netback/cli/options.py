# SPDX-License-Identifier: Apache-2.0
"""Options and arguments shared by several commands."""

import signal
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from netback.cli.target import PlatformName


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
SPEC_HELP = "Network: tap[:NAME], packet:LINK or null."


def interruptible() -> None:
    """Make SIGINT raise KeyboardInterrupt, for commands that clean up when they end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
