# SPDX-License-Identifier: Apache-2.0
"""Asks the running backend about one device, which the command line names by its guest."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from netback.cli.options import TypeName
from netback.cli.target import Target
from netback.errors import ConfigError

if TYPE_CHECKING:
    from netback.xenbus.names import DeviceName

Kind = Annotated[TypeName | None, typer.Option("--type", help="Device type.")]
Index = Annotated[
    int | None, typer.Option(min=0, help="Device index; required if the guest has several devices.")
]

Result = TypeVar("Result")


async def ask_about(
    target: Target,
    domain: str,
    kind: TypeName | None,
    index: int | None,
    question: str,
    wanted: type[Result],
    request: Callable[[str], object] = lambda _: None,
) -> "tuple[DeviceName, Result]":
    """A guest's device, and the backend's answer to `question` about it, to which `request` makes the argument from the
    device's name. ConfigError: there is no such device, or no backend serves it.
    """
    from netback.cli.domains import find_domain, own_domid
    from netback.control.client import ask
    from netback.xenbus.attach import find_device

    async with await target.open_store() as store:
        backend = await own_domid(store)
        guest = await find_domain(store, domain)
        name = await find_device(
            store, guest, kind=kind.value if kind else None, index=index, backend_domid=backend
        )
        _ = name.index  # a directory that is no device, and perhaps no text
    answer = await ask(target.directory, backend, question, wanted, request(str(name)))
    if answer is None:
        raise ConfigError(f"no backend serves {name}: start netback run")
    return name, answer
