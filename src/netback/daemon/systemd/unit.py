# SPDX-License-Identifier: Apache-2.0
"""The files with which a system runs netback, for a package or an administrator to install."""

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

UNIT = Path(__file__).parent / "netback.service"
KEEP_KERNEL_OUT = Path(__file__).parent / "netback-no-kernel-backend.conf"
"""A file for /etc/modprobe.d, opt-in."""
HOTPLUG = Path(__file__).parent / "netback-hotplug.conf"
"""A drop-in of the unit, for `hotplug = "netback"`: what hotplug scripts need, and netback itself does not."""

_PROGRAM = "/usr/bin/netback"
"""The program's path as the unit file contains it."""
_HIDDEN_BY = {
    Path("/home"): "ProtectHome=yes",
    Path("/root"): "ProtectHome=yes",
    Path("/run/user"): "ProtectHome=yes",
    Path("/tmp"): "PrivateTmp=yes",
    Path("/var/tmp"): "PrivateTmp=yes",
}
"""Directories that the unit's settings hide from the service (systemd.exec(5))."""
_MAX_LINKS = 40
"""Symbolic links that Linux follows in one lookup (path_resolution(7))."""
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+,@=~")
_UNSAFE = frozenset("\"'\\\x7f*?[]{};&|#")
"""Characters that some version of systemd refuses in a program's path, besides control characters (string_is_safe)."""


def unit(program: str) -> str:
    """The unit for a netback installed as `program`, an absolute path."""
    return UNIT.read_text().replace(f"ExecStart={_PROGRAM} ", f"ExecStart={quote(program)} ")


def quote(program: str) -> str:
    """A path as the command of ExecStart= (systemd.service(5), "Command lines"; systemd.unit(5), "Quoting").

    The prefix ":" keeps systemd from replacing variables. It runs no program whose path has quotes, backslashes,
    control characters or, since 258, characters of a glob, but takes them in an argument: then a shell runs it.
    """
    if set(program) <= _PLAIN:
        return program
    if program.isprintable() and not set(program) & _UNSAFE:
        return _quoted(f":{program}")
    return f""":/bin/sh -c 'exec "$0" "$@"' {_quoted(program)}"""


def _quoted(word: str) -> str:
    return f'"{"".join(map(_escape, word))}"'


def _escape(character: str) -> str:
    match character:
        case "%":  # "%" begins a specifier
            return "%%"
        case "\\" | '"':
            return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def hidden(paths: Iterable[str | Path]) -> dict[Path, tuple[Path, str]]:
    """The hidden directories that these paths lead through: for each the first path, and the setting that
    hides it.
    """
    found: dict[Path, tuple[Path, str]] = {}
    for path in paths:
        for place in lookup(Path(path)):
            for directory, setting in _HIDDEN_BY.items():
                if place.is_relative_to(directory):
                    found.setdefault(directory, (Path(path), setting))
    return found


def lookup(path: Path) -> Iterator[Path]:
    """Every path visited while looking up an absolute path, including each symbolic link
    (path_resolution(7)).

    The lookup ends at a part that does not exist or may not be read, and at a loop of links.
    """
    done, parts, links = Path("/"), list(reversed(path.parts[1:])), 0
    while parts:
        name = parts.pop()
        if name == "..":
            done = done.parent
            continue
        yield done / name
        try:
            target = (done / name).readlink()
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: it exists and is no symbolic link
                return
            done = done / name
            continue
        links += 1
        if links > _MAX_LINKS:
            return
        if target.is_absolute():
            done = Path("/")
        parts += reversed(target.parts[1:] if target.is_absolute() else target.parts)


def needed(program: str) -> Iterator[str]:
    """What the service opens to start: the program, its interpreter and that one's library, every module that
    `run` imports.
    """
    import netback.daemon.service  # noqa: F401 (for what it imports)

    yield program
    try:
        with Path(program).open("rb") as script:
            first = script.readline(256)
        if first.startswith(b"#!"):
            yield os.fsdecode(first[2:].split()[0])
    except (OSError, IndexError):
        pass
    yield from (sys.executable, sys.prefix, sys.base_prefix, os.path.realpath(sys.executable))
    yield from (file for module in tuple(sys.modules.values()) if (file := getattr(module, "__file__", None)))
