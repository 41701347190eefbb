# SPDX-License-Identifier: Apache-2.0
"""`netback metrics`: a backend's statistics for Prometheus."""

import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from netback.cli import options
from netback.cli.target import PlatformName, Target
from netback.errors import ConfigError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_SOCKET = "metrics.sock"
_SECONDS = 5.0
"""Seconds in which a scraper must send its request."""


@click.command
@click.option(
    "--once", is_flag=True, help="Print the metrics and end, as for node_exporter's textfile collector."
)
@click.option(
    "--tcp", type=click.IntRange(0, 65535), metavar="PORT", help="Listen at 127.0.0.1:PORT instead."
)
@click.option(
    "--socket",
    "path",
    type=click.Path(path_type=Path, readable=False),
    help=f"Listen at this UNIX socket.  [default: {_SOCKET} in the runtime directory]",
)
@options.target
def metrics(
    once: bool, tcp: int | None, path: Path | None, platform: PlatformName | None, directory: Path | None
) -> None:
    """Serve the running backend's statistics to Prometheus, at /metrics of a UNIX socket or, with --tcp, of a port.

    Each scrape asks the backend once. While none runs, netback_up is 0.
    """
    from prometheus_client import CollectorRegistry, generate_latest

    from netback.control.metrics import BackendCollector

    if tcp is not None and path is not None:
        raise ConfigError("--tcp and --socket: choose one")
    target = Target.choose(platform, directory)
    registry = CollectorRegistry()
    registry.register(BackendCollector(target.directory))
    if once:
        click.echo(generate_latest(registry), nl=False)
        return
    if tcp is not None:
        _serve(_listen_tcp(tcp), registry)
        return
    from netback.directory import Directory

    chosen = path or target.directory / _SOCKET
    if path is not None and not path.absolute().parent.is_dir():
        raise ConfigError(f"--socket: {path}: there is no such directory")
    with Directory.open(chosen.parent) as within:
        listening = within.listen(chosen.name)
        try:
            _serve(listening, registry)
        finally:
            within.unlink(chosen.name)


def _listen_tcp(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise ConfigError(f"--tcp: 127.0.0.1:{port}: {os.strerror(error.errno or 0)}") from error


def _serve(listening: socket.socket, registry: "CollectorRegistry") -> None:
    """Answer one scraper after another, until a signal."""
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

    from prometheus_client import make_wsgi_app

    class Server(WSGIServer):
        """One that listens already, perhaps at a UNIX socket, whose clients have no address."""

        def __init__(self) -> None:
            super().__init__(("", 0), Handler, bind_and_activate=False)
            self.socket.close()
            self.socket = listening
            self.server_name, self.server_port = "localhost", 0
            self.setup_environ()
            self.set_app(make_wsgi_app(registry))

        def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
            return self.socket.accept()[0], ("localhost", 0)

    class Handler(WSGIRequestHandler):
        """A quiet one, which no silent client keeps for long."""

        timeout = _SECONDS

        def log_message(self, format: str, *args: object) -> None:
            pass

    name = listening.getsockname()
    listening.setblocking(True)
    where = f"http://127.0.0.1:{name[1]}/metrics" if isinstance(name, tuple) else str(name)
    click.echo(f"metrics at {where}", err=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    with Server() as server:
        server.serve_forever()
