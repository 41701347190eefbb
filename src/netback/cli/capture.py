# SPDX-License-Identifier: Apache-2.0
"""`netback capture`: frames as they cross the rings, as pcapng to a file, a pipe or Wireshark."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from netback.cli import options, query
from netback.cli.options import warn
from netback.cli.target import PlatformName, Target
from netback.errors import ConfigError

if TYPE_CHECKING:
    from netback.control.capture import Capture
    from netback.observe.choice import Direction

MAX_FRAME = 65553
"""Bytes (observe.choice.MAX_FRAME)."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command
@click.argument("vifs", metavar="[VIF]...", nargs=-1)
@click.option("-w", "--write", "file", default="-", show_default=True, metavar="FILE", help="- for stdout.")
@click.option("--direction", type=click.Choice(["tx", "rx", "both"]), default="both", show_default=True,
              help="tx: what the guest sends.")  # fmt: skip
@click.option("--queue", type=click.IntRange(0, 65535), help="The frames of this queue alone.")
@click.option(
    "--snaplen", type=click.IntRange(0, MAX_FRAME), default=MAX_FRAME, help="Keep so many bytes of each."
)
@click.option("--count", type=click.IntRange(min=1), help="End after so many frames.")
@click.option("--seconds", type=options.Seconds(min=0), help="End after so many seconds.")
@options.target
def capture(
    vifs: tuple[str, ...],
    file: str,
    direction: "Direction",
    queue: int | None,
    snaplen: int,
    count: int | None,
    seconds: float | None,
    platform: PlatformName | None,
    directory: Path | None,
) -> None:
    """Capture the frames of devices, or of all and of those that come later, until a signal or until nothing reads the
    output: netback capture vif3.0 | wireshark -k -i -

    VIF: the device's name, as in vif3.0, or its guest, if that has one. Needs the running backend. With each frame
    stands how it crossed its ring. The last line says how many frames there were, and how many were lost.
    """
    if file == "-" and sys.stdout.isatty():
        raise ConfigError("pcapng is nothing for a terminal: give -w FILE, or pipe it to wireshark -k -i -")
    with query.connect(Target.choose(platform, directory)) as client:
        names = [query.find(client, vif, None, None) for vif in vifs]
        with client.capture(*names, direction=direction, queue=queue, snaplen=snaplen) as frames:
            write(frames, file, count=count, seconds=seconds)


def write(
    frames: "Capture",
    file: str,
    *,
    count: int | None = None,
    seconds: float | None = None,
    quiet: bool = False,
) -> None:
    """Write a capture to a file, "-" for stdout, until it ends or a signal comes; then say what was lost. `quiet`: only
    if something was, for Wireshark shows the line as an error.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    out = os.dup(sys.stdout.fileno()) if file == "-" else os.open(file, flags, 0o600)
    try:
        with signalled() as stop:
            frames.write(out, count=count, seconds=seconds, stop=stop)
    finally:
        os.close(out)
        losses = "".join(f", {lost} of {name} lost" for name, lost in frames.lost.items())
        if losses or not quiet:
            warn(f"{frames.frames} frame{'s' * (frames.frames != 1)} captured{losses or ', none lost'}")


@contextmanager
def signalled() -> Iterator[int]:
    """A descriptor that can be read once a signal came that ends a program. No exception cuts a block in two then."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(write)
    handlers = [signal.signal(number, lambda _number, _frame: None) for number in _SIGNALS]
    try:
        yield read
    finally:
        for number, handler in zip(_SIGNALS, handlers, strict=True):
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(read)
        os.close(write)
