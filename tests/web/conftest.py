# SPDX-License-Identifier: Apache-2.0
"""A page's server for an emulated Xen, as users start it."""

from __future__ import annotations

import http.client
import re
from dataclasses import dataclass, field

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
