# SPDX-License-Identifier: Apache-2.0
"""Writes a manual page for each command, and a completion file for each shell: `manual.py DIRECTORY`.

The layout is that of /usr/share, so that a package can copy the directory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from click.shell_completion import get_completion_class
from click_man.core import write_man_pages

from netback import __version__
from netback.cli.app import netback

COMPLETIONS = {
    "bash": "bash-completion/completions/netback",
    "zsh": "zsh/site-functions/_netback",
    "fish": "fish/vendor_completions.d/netback.fish",
}
"""The file of each shell."""


def whole(group: click.Group) -> click.Group:
    """A group that has all of its commands, since click-man does not ask for those that are imported when used."""
    context = click.Context(group, info_name=group.name)
    commands = {name: group.get_command(context, name) for name in group.list_commands(context)}
    found = {
        name: whole(each) if isinstance(each, click.Group) else each
        for name, each in commands.items()
        if each is not None
    }
    return click.Group(group.name, commands=found, help=group.help, params=group.params)


def main(directory: Path) -> None:
    pages = directory / "man" / "man1"
    pages.mkdir(parents=True, exist_ok=True)
    write_man_pages("netback", whole(netback), version=__version__, target_dir=str(pages))
    for shell, name in COMPLETIONS.items():
        kind = get_completion_class(shell)
        assert kind is not None
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(kind(netback, {}, "netback", "_NETBACK_COMPLETE").source())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
