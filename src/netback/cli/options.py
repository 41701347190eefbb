# SPDX-License-Identifier: Apache-2.0
"""Options and arguments that several commands have."""

import signal
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from netback.cli.target import PlatformName


class TypeName(StrEnum):
    """Device types: where in the store a device is, and where a frame begins in its page."""

    VIF = "vif"
    QNIC = "qnic"


Directory = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        help="Directory of the emulated Xen, or of netback's runtime files on a real one; only you may be able to"
        " write to it.  [default: where XENSTORED_PATH is, or netback's own]",
    ),
]
Platform = Annotated[
    PlatformName | None,
    typer.Option(
        "--platform", help="Which Xen.  [default: the one this machine is in, else an emulated one]"
    ),
]
Domain = Annotated[str, typer.Argument(metavar="DOMAIN", help="The guest: its domid or its name.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]
SPEC_HELP = "Network: tap[:NAME], packet:LINK or null."


def interruptible() -> None:
    """Have SIGINT raise KeyboardInterrupt, for commands that clean up behind themselves."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
