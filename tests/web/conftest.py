# SPDX-License-Identifier: Apache-2.0
"""A page's server for an emulated Xen, as users start it."""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

import pytest

from netback.testing import Process, Xen


@dataclass
class Page:
    """A running server, and requests as a browser that was given the address makes them."""

    process: Process
    port: int
    token: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body; `headers`, with underscores for dashes, replace or add some."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        given = self.headers | {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, given)
        response = connection.getresponse()
        answer = (
            response.status,
            {name.lower(): value for name, value in response.getheaders()},
            response.read(),
        )
        connection.close()
        return answer


@contextmanager
def events(page: Page) -> Iterator[TextIO]:
    """A stream of events, line by line; its headers were received."""
    cookie = page.headers["Cookie"]
    request = f"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\nCookie: {cookie}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", page.port), timeout=60) as sock, sock.makefile("r") as lines:
        sock.sendall(request.encode())
        assert lines.readline().startswith("HTTP/1.1 200")
        while lines.readline() != "\n":
            pass
        yield lines


def started(process: Process) -> Page:
    process.says("/?token=", seconds=30)
    found = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", process.output)
    assert found, process.output
    port, token = int(found[1]), found[2]
    return Page(process, port, token, {"Cookie": f"netback-{port}={token}"})


@pytest.fixture
def page(xen: Xen) -> Page:
    """`netback web`; a backend is a test's own, or the fixture's that a vif needs."""
    return started(xen.spawn("netback", "web", "--dir", str(xen.directory), "--port", "0"))


@pytest.fixture
def lesson(xen: Xen) -> Page:
    """`netback demo --web`."""
    return started(xen.spawn("netback", "demo", "--web"))
