# SPDX-License-Identifier: Apache-2.0
"""`netback demo`: passes its arguments on to the demo's command."""

import click

from netback.cli.options import interruptible


@click.command(
    add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def demo(words: tuple[str, ...]) -> None:
    """Show it all: two TCP/IP stacks, a guest's and a host's, over emulated Xen. `netback demo --help` tells more."""
    from netback.demo.command import demo as show

    interruptible()
    show([*words], prog_name="netback demo", standalone_mode=False)
