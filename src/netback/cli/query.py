# SPDX-License-Identifier: Apache-2.0
"""How commands name a device, and how they reach the running backend."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from netback.cli.options import TypeName
from netback.cli.target import Target

if TYPE_CHECKING:
    from netback.control import Client

Vif = Annotated[
    str, typer.Argument(metavar="VIF", help="The device, as in vif3.0, or its guest: a domid or a name.")
]
Kind = Annotated[TypeName | None, typer.Option("--type", help="Device type.")]
Index = Annotated[
    int | None, typer.Option(min=0, help="Device index; required if the guest has several devices.")
]

_DEVICE = re.compile(r"(?:vif|qnic)[0-9]+\.[0-9]+")


def connect(target: Target) -> "Client":
    """The running backend. NoBackend: none listens."""
    from netback.control import Client

    return Client(target.directory)


def find(client: "Client", vif: str, kind: TypeName | None, index: int | None) -> str:
    """The name of the device that the command line means. Refused: there is none, or there are several."""
    if _DEVICE.fullmatch(vif):
        return vif
    return client.find(vif, type=kind.value if kind else None, index=index)
