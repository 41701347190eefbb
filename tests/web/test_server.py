# SPDX-License-Identifier: Apache-2.0
"""Who may read the page, what it tells, and what it does with requests that no browser makes."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

import pytest
from starlette.types import Message

from netback.testing import ServedBackend, Vif, Xen
from netback.web import connections
from netback.web.hub import Hub
from netback.web.server import HEADERS, MAX_HEADERS, MAX_STREAMS, hosts_of, listen, make_app, serve
from tests.web.conftest import Page, events, started


def exchange(page: Page, request: bytes, size: int = 1 << 16) -> bytes:
    """What the server answers to these bytes before it closes the connection, at most `size`."""
    with socket.create_connection(("127.0.0.1", page.port), timeout=20) as sock:
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while len(answer) < size and (data := sock.recv(size)):
            answer += data
    return answer


def until(lines: TextIO, kind: str, data: str) -> None:
    """Read until an event of this kind, with this text in its data, comes."""
    while lines.readline() != f"event: {kind}\n" or data not in lines.readline():
        pass


def test_the_address_gives_a_cookie_and_no_more_token(page: Page) -> None:
    status, headers, _ = page.ask(f"/?token={page.token}", Cookie="")
    assert (status, headers["location"]) == (303, "/")
    assert headers["set-cookie"].startswith(f"netback-{page.port}={page.token};")
    assert "httponly" in headers["set-cookie"].lower()
    assert "samesite=strict" in headers["set-cookie"].lower()


@pytest.mark.parametrize("path", ["/", "/app.js", "/style.css", "/api/devices", "/api/events", "/nothing"])
def test_nothing_is_told_without_the_token(page: Page, path: str) -> None:
    assert page.ask(path, Cookie="")[0] == 403
    assert page.ask(path, Cookie=f"netback-{page.port}=wrong")[0] == 403
    assert page.ask("/?token=wrong", Cookie="")[0] == 403
    assert b"no longer valid" in page.ask(path, Cookie=f"netback-{page.port}=wrong")[2]


@pytest.mark.parametrize(
    "host", ["attacker.example", "attacker.example:{port}", "127.0.0.1:1", "127.0.0.1.:{port}", ""]
)
def test_other_names_are_refused(page: Page, host: str) -> None:
    """A page elsewhere can give its own name this address (DNS rebinding); its cookies would not come along either."""
    status, _, body = page.ask("/", Host=host.format(port=page.port))
    assert (status, body.count(b"\n")) == (421, 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.1:80"])
@pytest.mark.parametrize(("port", "refused"), [(80, 403), (8470, 421)])
async def test_the_port_of_http_may_be_left_out(tmp_path: Path, host: str, port: int, refused: int) -> None:
    """Browsers leave out port 80. 403: the name is right, and the token is missing."""
    app = make_app(Hub(tmp_path), hosts=hosts_of(port), cookie="", token="secret")
    headers = [(b"host", host.encode())]
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": headers}
    statuses = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        statuses.append(message.get("status"))

    await app(scope, receive, send)
    assert statuses[0] == refused


def test_every_answer_has_the_headers(page: Page) -> None:
    for path in ("/", "/api/devices", "/nothing"):
        _, headers, _ = page.ask(path)
        assert {name.lower(): headers.get(name.lower()) for name in HEADERS} == {
            name.lower(): value for name, value in HEADERS.items()
        }


def test_other_pages_cannot_post(page: Page, xen_backend: ServedBackend) -> None:
    path = "/api/pace/vif1.0/slow"
    assert page.ask(path, "POST")[0] == 403
    assert page.ask(path, "POST", Origin="http://attacker.example")[0] == 403
    assert page.ask(path, "POST", Origin=f"http://127.0.0.1:{page.port}")[0] == 404
    assert page.ask("/api/devices", "DELETE")[0] == 405


def test_huge_requests_are_refused(page: Page) -> None:
    assert page.ask("/", "POST", b"x" * 1000)[0] == 413
    assert page.ask("/", Content_Length="1" + "0" * 20)[0] in (400, 413)
    long = b"GET /" + b"a" * (4 * MAX_HEADERS) + b" HTTP/1.1\r\n"
    assert exchange(page, long).startswith(b"HTTP/1.1 4")
    assert exchange(page, b"GET / HTTP/1.1\r\n" + b"X-Filler: " + b"x" * (4 * MAX_HEADERS)).startswith(
        b"HTTP/1.1 4"
    )
    assert exchange(page, bytes(range(256))).startswith(b"HTTP/1.1 400")
    assert page.ask("/")[0] == 200
    assert "Traceback" not in page.process.output


def test_idle_streams_are_bounded(page: Page, xen_backend: ServedBackend) -> None:
    with ExitStack() as undo:
        for _ in range(MAX_STREAMS):
            undo.enter_context(events(page))
        for _ in range(100 - MAX_STREAMS):
            assert page.ask("/api/events")[0] == 503
        assert page.ask("/api/devices")[0] == 200
    with events(page):
        pass


def test_connections_without_a_request_leave_room(page: Page) -> None:
    """Any user of the machine can open them, without the token."""
    with ExitStack() as undo:
        idle = [
            undo.enter_context(socket.create_connection(("127.0.0.1", page.port), timeout=20))
            for _ in range(4 * MAX_STREAMS + 2)
        ]
        for sock in idle[1::2]:
            sock.sendall(b"GET / HTTP/1.1\r\n")  # a request that never ends
        assert page.ask("/")[0] == 200
        with suppress(ConnectionResetError):
            assert idle[0].recv(1) == b""


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: ", b"GET / HTTP/1.1\r\n\r\nGET /"])
def test_a_connection_without_a_request_is_closed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, begun: bytes
) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.01)

    async def wait_for_the_end(sock: socket.socket) -> None:
        ready = asyncio.Event()
        serving = asyncio.create_task(serve(sock, Hub(tmp_path), lambda _: ready.set()))
        await ready.wait()
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        writer.write(begun)
        with suppress(ConnectionResetError):
            await reader.read()
        writer.close()
        serving.cancel()

    with listen(0) as sock:
        asyncio.run(wait_for_the_end(sock))


def test_a_refusal_closes_the_connection(page: Page) -> None:
    """A client without the token gets one answer, so that it cannot leave many unread."""
    assert page.ask("/", Cookie="")[1]["connection"] == "close"
    assert "connection" not in page.ask("/")[1]


def test_what_it_tells(page: Page, xen_vif: Vif) -> None:
    (device,) = json.loads(page.ask("/api/devices")[2])
    assert (device["device"], device["backend"]) == ("vif1.0", "Connected")
    assert json.loads(page.ask("/api/show/vif1.0")[2])["device"]["device"] == "vif1.0"
    rings = json.loads(page.ask("/api/rings/vif1.0")[2])["rings"]
    assert [ring["ring"] for ring in rings][:2] == ["tx", "rx"]
    assert page.ask("/api/rings/vif9.9")[0] == 404
    assert page.ask("/api/lesson/next", "POST", Origin=f"http://127.0.0.1:{page.port}")[0] == 404


@contextmanager
def slowing(page: Page) -> Iterator[Callable[[str], int]]:
    """A page that listens; what is yielded sets the pace of vif1.0 as it would, and returns the status."""
    with events(page) as lines:
        while lines.readline() != "event: page\n":
            pass
        name = json.loads(lines.readline().removeprefix("data: "))
        origin = f"http://127.0.0.1:{page.port}"
        yield lambda pace: page.ask(f"/api/pace/vif1.0/{pace}?page={name}", "POST", Origin=origin)[0]


def rates(vif: Vif) -> tuple[str | None, str | None]:
    """The nodes of a vif's limits."""
    nodes = vif.device.show().backend_nodes
    return nodes.get("rate"), nodes.get("rx-rate")


def until_rates(xen: Xen, vif: Vif, *wanted: str) -> None:
    for node, value in zip(("rate", "rx-rate"), wanted, strict=True):
        xen.wait(f"{vif.device.show().backend_path}/{node}", value)


OWN = ("1234,20000", "99999,7")
"""Limits whose bursts no rate in bits per second alone would restore."""
SLOW = ("12500,1000000",) * 2


@pytest.fixture
def limited(xen: Xen, xen_vif: Vif) -> Vif:
    """A vif with limits of its own."""
    for node, value in zip(("rate", "rx-rate"), OWN, strict=True):
        xen.write(f"{xen_vif.device.show().backend_path}/{node}", value)
    return xen_vif


def test_slow_motion_gives_back_what_the_vif_had(page: Page, limited: Vif) -> None:
    with slowing(page) as set_pace:
        assert set_pace("slow") == 200
        assert limited.device.show().device.tx_rate == "100kb/s"
        assert json.loads(page.ask("/api/pace/vif1.0")[2])["pace"] == "slow"
        assert set_pace("slower") == 200
        assert limited.device.show().device.rx_rate == "10kb/s"
        assert set_pace("full") == 200
        assert rates(limited) == OWN
        assert json.loads(page.ask("/api/pace/vif1.0")[2])["pace"] == "full"
        assert set_pace("sideways") == 404
        assert rates(limited) == OWN


def test_slow_motion_ends_with_the_last_page_that_wants_it(page: Page, xen: Xen, limited: Vif) -> None:
    with slowing(page) as other:
        with slowing(page) as one:
            assert one("slow") == 200
            assert other("slow") == 200
            assert one("leave") == 200
            assert rates(limited) == SLOW
        assert other("leave") == 200
        assert rates(limited) == OWN
        assert other("slow") == 200
    until_rates(xen, limited, *OWN)


def test_slow_motion_ends_with_the_server(page: Page, xen: Xen, limited: Vif) -> None:
    with slowing(page) as set_pace:
        assert set_pace("slow") == 200
        page.process.kill(signal.SIGTERM)
        assert page.process.wait(seconds=30) == 0
        assert rates(limited) == OWN


def test_slow_motion_leaves_limits_that_others_set(page: Page, xen: Xen, limited: Vif) -> None:
    with slowing(page) as set_pace:
        assert set_pace("slow") == 200
        xen.write(f"{limited.device.show().backend_path}/rate", "555,1000")
        assert json.loads(page.ask("/api/pace/vif1.0")[2])["pace"] == "full"
        assert set_pace("full") == 200
        assert rates(limited) == ("555,1000", SLOW[1])


def test_only_a_page_that_listens_slows(page: Page, limited: Vif) -> None:
    """Its end would not be seen."""
    origin = f"http://127.0.0.1:{page.port}"
    assert page.ask("/api/pace/vif1.0/slow?page=none", "POST", Origin=origin)[0] == 404
    assert rates(limited) == OWN


def test_a_stream_begins_with_what_is_and_goes_on(page: Page, xen_vif: Vif) -> None:
    for _ in range(2):
        with events(page) as lines:
            until(lines, "backend", '"pid"')
            until(lines, "devices", '"backend": "Connected", "frontend": "Connected"')
            until(lines, "statistics", '"device": "vif1.0"')
    with events(page) as lines:
        xen_vif.device.detach(seconds=10)
        until(lines, "timeline", "xen_device_backend_state")


def test_the_backend_ends_and_returns(page: Page, xen: Xen) -> None:
    """The fixture's backend takes its place last."""
    with events(page) as lines, ServedBackend(xen):
        until(lines, "backend", '"pid"')
        assert page.ask("/api/devices")[0] == 200
    with events(page) as lines:
        until(lines, "backend", "null")
        assert page.ask("/api/devices")[0] == 503


def test_it_ends_with_a_stream_open(page: Page) -> None:
    with events(page):
        page.process.kill(signal.SIGTERM)
        assert page.process.wait(seconds=30) == 0
    assert "Traceback" not in page.process.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_lesson_leaves_nothing(xen: Xen, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    with tempfile.TemporaryDirectory(prefix="nb-") as name:  # shorter than tmp_path: it holds sockets
        monkeypatch.setenv("TMPDIR", name)
        lesson = started(xen.spawn("netback", "demo", "--web"))
        assert [*Path(name).iterdir()]
        with events(lesson):
            lesson.process.kill(number)
            assert lesson.process.wait(seconds=30) == 0
        assert [*Path(name).iterdir()] == []
    assert "Traceback" not in lesson.process.output


def test_a_port_that_is_taken(xen: Xen, page: Page) -> None:
    other = xen.spawn("netback", "web", "--dir", str(xen.directory), "--port", str(page.port))
    assert other.wait() == 2
    assert f"127.0.0.1:{page.port}: Address already in use; choose another --port" in other.output


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--web", "--json"), "--json does not go with --web"),
        (("--web", "--seconds", "30"), "--seconds does not go with --web"),
        (("--port", "8000"), "--port does not go without --web"),
    ],
)
def test_options_that_do_not_go_together(xen: Xen, words: tuple[str, ...], reason: str) -> None:
    demo = xen.spawn("netback", "demo", *words)
    assert demo.wait() == 2
    assert demo.output == f"netback: {reason}; see netback demo --help\n"
