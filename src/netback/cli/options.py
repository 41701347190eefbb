# SPDX-License-Identifier: Apache-2.0
"""Options and arguments shared by several commands, and how commands print."""

import math
import signal
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from click.core import ParameterSource

from netback.cli.target import PlatformName
from netback.errors import ConfigError, printable
from netback.observe.choice import RecordMode

F = TypeVar("F", bound=Callable[..., Any])

TYPES = click.Choice(["vif", "qnic"])
"""Device types. The type decides the backend's directory in the store and where a frame begins in its page."""


class Seconds(click.FloatRange):
    """A number of seconds in a range. click.FloatRange takes "nan", which is in every range."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number of seconds.", param, ctx)
        return seconds


INTERVAL = Seconds(min=0.1, max=3600)
"""Seconds between two looks at a backend (control.schema.MIN_INTERVAL)."""


def _platform(_context: click.Context, _option: click.Parameter, value: str | None) -> PlatformName | None:
    return None if value is None else PlatformName(value)


directory = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, readable=False),
    help="Directory of the emulated Xen, or of netback's runtime files on real Xen; only you may have write access."
    "  [default: XENSTORED_PATH's directory, else netback's own]",
)
platform = click.option(
    "--platform",
    type=click.Choice([name.value for name in PlatformName]),
    callback=_platform,
    help="The Xen to use.  [default: the one this machine is in, else an emulated one]",
)
json = click.option("--json", is_flag=True, help="As JSON.")
_RATE_HELP = "as in 10Mb/s, 1.5MB/s, 500kbit/s@20ms, or none."
_tx_rate = click.option("--tx-rate", help=f"Limit of what the guest sends, {_RATE_HELP}")
_rx_rate = click.option("--rx-rate", help=f"Limit of what the guest receives, {_RATE_HELP}")
WIDE = 1000
"""Width of output that is not a terminal; wide enough to keep each row on one line."""
SPEC_HELP = "Network, as in tap, bridge:xenbr0, packet:eth1 or null: docs/networks.md has every kind."


_FILTER_HELP = "A filter, as in antispoof; may be repeated. They stand in this order, from the guest on."
filters = click.option("--filter", "filters", metavar="TEXT", multiple=True, help=_FILTER_HELP)


record = click.option(
    "--record",
    type=click.Choice(get_args(RecordMode)),
    help="Record what a guest does, and save that when it breaks the protocol; payload: with all bytes of frames.",
)


def target(command: F) -> F:
    """The options that choose a Xen."""
    return platform(directory(command))


def rates(command: F) -> F:
    """The options that limit a device."""
    return _tx_rate(_rx_rate(command))


def refuse_unused(when: str, used: Collection[str]) -> None:
    """UsageError names the first option of the command line that has no effect in a mode of the command, and the mode.

    `when`: the mode, as in "with --web" or "without --web". `used`: the parameters that have an effect then.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if given and parameter.name not in used:
            option = max(parameter.opts, key=len)
            raise click.UsageError(f"{option} does not go {when}")


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
    click.echo(f"netback: {printable(text)}", err=True)


def echo_json(value: object, *, indent: int = 2) -> None:
    """A value as JSON; an indent of 0: on one line."""
    import msgspec

    text = msgspec.json.encode(value)
    click.echo(msgspec.json.format(text, indent=indent) if indent else text)


def interruptible() -> None:
    """Make SIGINT raise KeyboardInterrupt, for commands that clean up when they end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
