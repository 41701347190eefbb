# SPDX-License-Identifier: Apache-2.0
"""`netback extcap`: the program by which Wireshark lists devices as interfaces and captures on them.

Wireshark runs it with the words of its extcap interface (doc/extcap.4 of Wireshark): it asks for interfaces, for their
link type, for the options of its dialog, and then for frames into a fifo.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click

import netback
from netback.cli import options, query
from netback.cli.capture import MAX_FRAME, write
from netback.cli.options import warn
from netback.cli.target import PlatformName, Target
from netback.errors import ConfigError, NetbackError, printable

EVERY = "netback"
"""The interface of all devices."""
ONE = "netback:"
"""What the name of a device's interface begins with."""
PERSONAL = Path(".local/lib/wireshark/extcap")
"""Below the home directory; Wireshark before 4.2 does not look there."""
SCRIPT = "netback"
_FOLDERS = ("Personal Extcap path", "Global Extcap path", "Extcap path")
"""The names that tshark gives them, the best first; before 4.2 it has the last one alone."""
_SECONDS = 20.0
"""Seconds that tshark may take to name its folders."""
_DIALOG = """\
arg {{number=0}}{{call=--direction}}{{display=Direction}}{{type=selector}}{{tooltip=tx: what the guest sends}}
value {{arg=0}}{{value=both}}{{display=both}}{{default=true}}
value {{arg=0}}{{value=tx}}{{display=tx: what the guest sends}}{{default=false}}
value {{arg=0}}{{value=rx}}{{display=rx: what the guest receives}}{{default=false}}
arg {{number=1}}{{call=--queue}}{{display=Queue, empty for all}}{{type=string}}{{validation=^[0-9]*$}}
arg {{number=2}}{{call=--snaplen}}{{display=Bytes of each frame}}{{type=integer}}{{range=0,{most}}}{{default={most}}}
arg {{number=3}}{{call=--dir}}{{display=Runtime directory of netback}}{{type=string}}{{default={directory}}}\
"""


@click.command
@click.option("--install", is_flag=True, help="Make Wireshark find it, with --dir if that is given.")
@click.option("--extcap-interfaces", "interfaces", is_flag=True, help="List the interfaces.")
@click.option("--extcap-interface", "interface", metavar="NAME", help="One of them.")
@click.option("--extcap-dlts", "dlts", is_flag=True, help="Its link type.")
@click.option("--extcap-config", "config", is_flag=True, help="The options of its dialog.")
@click.option("--capture", is_flag=True, help="Capture on it into a fifo.")
@click.option("--fifo", type=click.Path(path_type=Path), help="The fifo.")
@click.option(
    "--extcap-capture-filter", "expression", metavar="TEXT", help="Must be empty: there is no filter."
)
@click.option(
    "--extcap-version", "version", metavar="TEXT", help="Wireshark's version, which does not matter."
)
@click.option("--direction", type=click.Choice(["tx", "rx", "both"]), default="both", help="As of capture.")
@click.option("--queue", default="", metavar="NUMBER", help="As of capture; empty for all.")
@click.option("--snaplen", type=click.IntRange(0, MAX_FRAME), default=MAX_FRAME, help="As of capture.")
@options.target
def extcap(
    install: bool,
    interfaces: bool,
    interface: str | None,
    dlts: bool,
    config: bool,
    capture: bool,
    fifo: Path | None,
    expression: str | None,
    version: str | None,
    direction: str,
    queue: str,
    snaplen: int,
    platform: PlatformName | None,
    directory: Path | None,
) -> None:
    """Let Wireshark list every device as an interface and capture on it: netback extcap --install, once. Wireshark then
    runs this command with the other options.
    """
    if install:
        _install(platform, directory)
        return
    target = Target.choose(platform, directory if directory != Path() else None)
    if interfaces:
        click.echo("\n".join(_interfaces(target)))
        return
    if interface is None or not (interface == EVERY or interface.startswith(ONE)):
        raise ConfigError("Wireshark runs this with its own options; netback extcap --install lets it")
    if dlts:
        click.echo("dlt {number=1}{name=EN10MB}{display=Ethernet}")
    elif config:
        click.echo(_DIALOG.format(most=MAX_FRAME, directory=target.directory))
    elif capture and fifo is not None:
        if expression:
            raise ConfigError("netback has no capture filter: use a display filter")
        if queue and not (queue.isdecimal() and int(queue) <= 65535):
            raise ConfigError(f"--queue: {printable(queue)!r} is no number of a queue")
        devices = [] if interface == EVERY else [interface.removeprefix(ONE)]
        with (
            query.connect(target) as client,
            client.capture(
                *devices,
                direction=direction,  # type: ignore[arg-type]
                queue=int(queue) if queue else None,
                snaplen=snaplen,
            ) as frames,
        ):
            write(frames, os.fspath(fifo), quiet=True)
    else:
        raise ConfigError(
            "nothing to do: Wireshark gives --extcap-dlts, --extcap-config or --capture and --fifo"
        )


def _interfaces(target: Target) -> Iterator[str]:
    """Also without a backend there is the interface of all devices: its dialog names the directory."""
    yield f"extcap {{version={netback.__version__}}}{{display=netback}}"
    yield f"interface {{value={EVERY}}}{{display=netback: every device}}"
    try:
        with query.connect(target) as client:
            devices = client.devices()
    except NetbackError as error:
        warn(str(error))
        return
    for device in devices:
        if device.network is not None:
            guest = f" of {_plain(device.guest)}" if device.guest else ""
            yield f"interface {{value={ONE}{device.device}}}{{display=netback: {device.device}{guest}}}"


def _plain(name: str) -> str:
    """A guest's name, which must not end a sentence of Wireshark's."""
    return "".join(letter if letter.isalnum() or letter in " .-_" else "?" for letter in name)


def _install(platform: PlatformName | None, directory: Path | None) -> None:
    """Write the script to each directory in which this user's Wireshark may look."""
    words = [sys.executable, "-m", "netback", "extcap"]
    words += ["--platform", platform.value] if platform is not None else []
    words += ["--dir", os.fspath(directory.absolute())] if directory is not None else []
    text = f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n'
    named = _folders()
    places = list(dict.fromkeys([Path.home() / PERSONAL, *named[:1]]))
    written = [place for place in places if _put(place, text)]
    if not written:
        raise ConfigError(f"cannot write to {' or '.join(map(str, places))}")
    if named and named[0] not in written:
        warn(
            f"this Wireshark looks in {named[0]}: run this as root, or set WIRESHARK_EXTCAP_DIR={written[0]}"
        )


def _put(place: Path, text: str) -> bool:
    path = place / SCRIPT
    try:
        place.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    except OSError as error:
        warn(f"{path}: {error.strerror}")
        return False
    click.echo(path)
    return True


def _folders() -> list[Path]:
    """Where the installed Wireshark looks, the best place first; empty if there is none."""
    if os.getuid() and (own := os.environ.get("WIRESHARK_EXTCAP_DIR")):  # ignored by Wireshark of root
        return [Path(own)]
    found: dict[str, Path] = {}
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["tshark", "-G", "folders"], capture_output=True, text=True, timeout=_SECONDS)
        for line in done.stdout.splitlines():
            name, _, path = line.partition(":")
            found.setdefault(name.strip(), Path(path.strip()))
    return [found[name] for name in _FOLDERS if name in found]
