# SPDX-License-Identifier: Apache-2.0
"""How commands name a device, and how they reach the running backend."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from netback.cli.options import TYPES
from netback.cli.target import Target

if TYPE_CHECKING:
    from netback.control import Client
    from netback.control.schema import DeviceType

F = TypeVar("F", bound=Callable[..., Any])

_DEVICE = re.compile(r"(?:vif|qnic)[0-9]+\.[0-9]+")


def vif(command: F) -> F:
    """The words that name a device: its own name, or its guest and, if that has several, which of them."""
    named = click.argument("vif", metavar="VIF")
    kind = click.option("--type", "kind", type=TYPES, help="Device type.")
    index = click.option(
        "--index", type=click.IntRange(min=0), help="Device index; required if the guest has several devices."
    )
    return named(kind(index(command)))


def connect(target: Target) -> "Client":
    """The running backend. NoBackend: none listens."""
    from netback.control import Client

    return Client(target.directory)


def is_device(vif: str) -> bool:
    """Whether a word of the command line is a device's name; else it is its guest's."""
    return _DEVICE.fullmatch(vif) is not None


def find(client: "Client", vif: str, kind: "DeviceType | None", index: int | None) -> str:
    """The name of the device that the command line means. Refused: there is none, or there are several."""
    if is_device(vif):
        return vif
    return client.find(vif, type=kind, index=index)
