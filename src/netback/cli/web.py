# SPDX-License-Identifier: Apache-2.0
"""`netback web`: a page to watch vifs, rates, states and rings."""

import asyncio
import socket
from pathlib import Path

import click

from netback.cli import options
from netback.cli.target import PlatformName, Target
from netback.process import ended_by_signals, until_stopped
from netback.web import needs_extra

PORT = 8470


@click.command
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=PORT,
    show_default=True,
    help="On loopback; 0: a free one.",
)
@options.target
def web(port: int, platform: PlatformName | None, directory: Path | None) -> None:
    """Serve a page that shows the running backend: vifs and their rates, the timeline of states, rings slot by slot.

    It listens on loopback alone and prints the address to open, with a token without which nobody reads it. Needs
    `pip install netback[web]`.
    """
    with needs_extra():
        from netback.web.hub import Hub
        from netback.web.server import listen, serve

    async def serve_until_signal(sock: socket.socket, hub: Hub) -> None:
        stop = asyncio.Event()
        with ended_by_signals(stop.set):  # the end gives vifs back the limits that slow motion took
            await until_stopped(stop, serve(sock, hub, click.echo))

    target = Target.choose(platform, directory)
    asyncio.run(serve_until_signal(listen(port), Hub(target.directory)))
