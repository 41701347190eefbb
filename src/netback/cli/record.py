# SPDX-License-Identifier: Apache-2.0
"""`netback record`: save what a device's recorder has now."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from netback.cli import options, query
from netback.cli.target import PlatformName, Target
from netback.errors import printable

if TYPE_CHECKING:
    from netback.control.schema import DeviceType


@click.command
@query.vif
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The file, which must not exist; the backend makes it, with mode 0600.",
)
@options.target
def record(
    vif: str,
    kind: "DeviceType | None",
    index: int | None,
    out: Path,
    platform: PlatformName | None,
    directory: Path | None,
) -> None:
    """Save what the recorder of a guest's device has now: the last polls of its rings, for netback replay.

    VIF: the device's name, as in vif3.0, or its guest. Needs the running backend, and the device must be recorded:
    netback set VIF --record on.
    """
    with query.connect(Target.choose(platform, directory)) as client:
        name = query.find(client, vif, kind, index)
        saved = client.record(name, str(Path.cwd() / out))
    click.echo(printable(f"{saved.device}: {saved.bytes} bytes in {saved.file}: netback replay {saved.file}"))
