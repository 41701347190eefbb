# SPDX-License-Identifier: Apache-2.0
"""`netback explain`: why a device is not connected, or slow, or loses frames."""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from netback.cli import options, query
from netback.cli.options import echo_json, warn
from netback.cli.table import NARROW, terminal_width
from netback.cli.target import PlatformName, Target
from netback.errors import PlatformError

if TYPE_CHECKING:
    from netback.control.schema import DeviceType, Explanation, RuleFinding

_MARGIN = 9
"""Columns before a finding's text."""


@click.command
@query.vif
@click.option(
    "--seconds",
    type=options.Seconds(min=0, max=8),
    default=1.0,
    show_default=True,
    help="How long its counters are watched.",
)
@options.target
@options.json
def explain(
    vif: str,
    kind: "DeviceType | None",
    index: int | None,
    seconds: float,
    platform: PlatformName | None,
    directory: Path | None,
    json: bool,
) -> None:
    """Say why a device is not connected, or slow, or loses frames: for each thing that is wrong the values that show
    it, and what to do. Exits with 1 if anything is. docs/explain.md has all that it knows.

    VIF: the device's name, as in vif3.0, or its guest. Without the running backend the store and the links must do.
    """
    from netback.control import NoBackend

    target = Target.choose(platform, directory)
    try:
        with query.connect(target) as client:
            answer = client.explain(query.find(client, vif, kind, index), seconds=seconds)
    except NoBackend as error:
        try:
            answer = _explain_offline(target, vif, kind, index)
        except (PlatformError, OSError):  # there is no store either
            raise error from None
        warn(f"{error}; explaining from the store alone")
    if json:
        echo_json(answer)
    else:
        for line in _lines(answer):
            click.echo(line)
    if answer.findings:
        sys.exit(1)


def _explain_offline(target: Target, vif: str, kind: "DeviceType | None", index: int | None) -> "Explanation":
    import asyncio

    from netback.cli import offline

    return asyncio.run(offline.explain(target, vif, kind, index))


def _lines(answer: "Explanation") -> Iterator[str]:
    if not answer.findings:
        yield f"{answer.device}: none of {answer.rules} rules finds anything wrong"
    for finding in answer.findings:
        yield from _finding(finding, terminal_width() or NARROW)


def _finding(finding: "RuleFinding", width: int) -> Iterator[str]:
    seen = ", ".join(f"{name} {value}" for name, value in finding.evidence.items())
    label = f"{finding.severity:<{_MARGIN}}"
    for text in (f"{finding.finding} [{finding.rule}]", f"seen: {seen}", f"do: {finding.fix}"):
        yield from textwrap.wrap(
            text, width, initial_indent=label, subsequent_indent=" " * _MARGIN, break_on_hyphens=False
        )
        label = " " * _MARGIN
