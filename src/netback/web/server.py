# SPDX-License-Identifier: Apache-2.0
"""The page's server: static files, what the control socket tells, and a stream of its events.

It listens on loopback alone, and answers only requests for the names of loopback: a page elsewhere could otherwise
reach it by a name of its own (DNS rebinding). They must carry the token of the address that `netback web` printed, so
that no other user of the machine reads it. It changes nothing but the pace of a vif on an emulated Xen: slow motion.
"""

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from netback.control import Client, ControlError, NoBackend
from netback.errors import ConfigError, NetbackError, printable
from netback.web.connections import PromptProtocol
from netback.web.hub import Hub
from netback.web.pace import SlowMotion

STATIC = Path(__file__).parent / "static"
FILES = {"/": "index.html", "/app.js": "app.js", "/style.css": "style.css"}
MAX_STREAMS = 32
"""Browsers that may listen at once."""
MAX_HEADERS = 16 * 1024
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Lesson(Protocol):
    """A lesson that the page leads through (`web.lesson`)."""

    def as_data(self) -> dict[str, Any]:
        """The present step, for the page."""

    async def next(self) -> None:
        """Do the next step."""

    async def restart(self) -> None:
        """Begin again."""


class Guard:
    """Answers only requests of a browser that was given the token, for a name of loopback."""

    def __init__(self, app: ASGIApp, *, hosts: Iterable[str], cookie: str, token: str) -> None:
        self._app, self._hosts, self._cookie, self._token = app, frozenset(hosts), cookie, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        answer = self._refusal(request)
        if answer is None:
            await self._app(scope, receive, self._with_headers(send))
        else:
            # one answer for each connection: else a client without the token could send requests and read no answer
            answer.headers["Connection"] = "close"
            await answer(scope, receive, self._with_headers(send))

    def _refusal(self, request: Request) -> Response | None:
        headers = request.headers
        if headers.get("host", "") not in self._hosts:
            return PlainTextResponse("This server answers for loopback's names alone.\n", 421)
        if request.method not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("GET or POST.\n", 405)
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            return PlainTextResponse("No request here has a body.\n", 413)
        if request.method == "POST" and not self._same_origin(headers):
            return PlainTextResponse("The request comes from another page.\n", 403)
        given = request.query_params.get("token")
        if given is not None and request.url.path == "/":
            if not secrets.compare_digest(given.encode(), self._token.encode()):
                return PlainTextResponse("The token is wrong: open the address that netback printed.\n", 403)
            entry = RedirectResponse("/", 303)
            entry.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
            return entry
        held = request.cookies.get(self._cookie, "")
        if not secrets.compare_digest(held.encode(), self._token.encode()):
            reason = "The token is no longer valid" if held else "The token is missing"
            return PlainTextResponse(f"{reason}: open the address that netback printed.\n", 403)
        return None

    def _same_origin(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        return origin is not None and origin.removeprefix("http://") == headers.get("host")

    def _with_headers(self, send: Send) -> Send:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        return sending


def make_app(
    hub: Hub, *, hosts: Iterable[str], cookie: str, token: str, lesson: Lesson | None = None
) -> ASGIApp:
    """The application. `hosts` are the values of Host that it answers for."""

    async def page(request: Request) -> Response:
        return FileResponse(STATIC / FILES[request.url.path])

    slow_motion = SlowMotion(lambda: hub.directory)
    ending: set[asyncio.Future[None]] = set()

    async def attempt(call: Callable[[], Any]) -> Response:
        try:
            return JSONResponse(msgspec.to_builtins(await asyncio.to_thread(call)))
        except ConfigError as error:
            return JSONResponse({"error": printable(str(error))}, 404)
        except NoBackend as error:
            return JSONResponse({"error": printable(str(error))}, 503)
        except (ControlError, OSError) as error:
            return JSONResponse({"error": printable(str(error))}, 502)

    async def ask(call: Callable[[Client], Any]) -> Response:
        def asking() -> Any:
            with Client(hub.directory) as client:
                return call(client)

        return await attempt(asking)

    async def devices(_: Request) -> Response:
        return await ask(lambda client: client.devices())

    async def show(request: Request) -> Response:
        return await ask(lambda client: client.show(request.path_params["device"]))

    async def rings(request: Request) -> Response:
        return await ask(lambda client: client.rings(request.path_params["device"]))

    async def show_pace(request: Request) -> Response:
        return await attempt(lambda: slow_motion.describe(request.path_params["device"]))

    async def set_pace(request: Request) -> Response:
        device, pace = request.path_params["device"], request.path_params["pace"]
        page = request.query_params.get("page", "")

        def change() -> Any:
            if pace == "leave":
                slow_motion.leave(device, page)
                return {}
            slow_motion.set(device, pace, page)
            return slow_motion.describe(device)

        answer = await attempt(change)
        hub.tell("pace", device)
        return answer

    async def events(_: Request) -> Response:
        if hub.readers >= MAX_STREAMS:
            return PlainTextResponse(f"{MAX_STREAMS} pages listen already: close one.\n", 503)
        return StreamingResponse(stream(), media_type="text/event-stream")

    async def stream() -> AsyncIterator[str]:
        page = secrets.token_hex(8)
        slow_motion.begin(page)
        try:
            with hub.reader() as reader:
                yield event_of("page", page)
                if lesson is not None:
                    yield event_of("lesson", lesson.as_data())
                async for kind, event in reader:
                    yield event_of(kind, event)
        finally:
            # the browser is gone and this task cancelled, so it cannot wait
            end = asyncio.get_running_loop().run_in_executor(None, slow_motion.end, page)
            ending.add(end)
            end.add_done_callback(ending.discard)

    async def teach(request: Request) -> Response:
        if lesson is None:
            return JSONResponse({"error": "no lesson runs here: netback demo --web"}, 404)
        step = lesson.next if request.path_params["verb"] == "next" else lesson.restart
        try:
            await step()
        except (NetbackError, OSError) as error:
            return JSONResponse({"error": printable(str(error))}, 500)
        data = lesson.as_data()
        hub.tell("lesson", data)
        return JSONResponse(data)

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        hub.start()
        try:
            yield
        finally:
            hub.stop()
            slow_motion.end_all()

    routes = [
        *(Route(path, page) for path in FILES),
        Route("/api/devices", devices),
        Route("/api/show/{device}", show),
        Route("/api/rings/{device}", rings),
        Route("/api/pace/{device}", show_pace),
        Route("/api/pace/{device}/{pace}", set_pace, methods=["POST"]),
        Route("/api/events", events),
        Route("/api/lesson/{verb:str}", teach, methods=["POST"]),
    ]
    app = Starlette(routes=routes, lifespan=life)
    return Guard(app, hosts=hosts, cookie=cookie, token=token)


def hosts_of(port: int) -> list[str]:
    """The values of Host that name this server. A browser leaves out HTTP's own port (RFC 9110, 4.2.3)."""
    names = ("127.0.0.1", "localhost")
    return [*(f"{name}:{port}" for name in names), *(names if port == 80 else ())]


def event_of(kind: str, event: Any) -> str:
    """An event of the stream (HTML, server-sent events)."""
    return f"event: {kind}\ndata: {json.dumps(event)}\n\n"


def listen(port: int) -> socket.socket:
    """A socket on loopback, at this port or at a free one for 0. ConfigError: the port is taken."""
    sock = socket.socket()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen(64)
    except OSError as error:
        sock.close()
        raise ConfigError(f"127.0.0.1:{port}: {error.strerror}; choose another --port") from error
    return sock


class _Server(uvicorn.Server):
    """Leaves signals to its caller: uvicorn would raise them again before the caller could clean up."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    sock: socket.socket, hub: Hub, ready: Callable[[str], object], lesson: Lesson | None = None
) -> None:
    """Serve until cancelled. `ready` is called with the address to open, which has the token."""
    port, token = sock.getsockname()[1], secrets.token_urlsafe(16)
    app = make_app(hub, hosts=hosts_of(port), cookie=f"netback-{port}", token=token, lesson=lesson)
    config = uvicorn.Config(
        app,
        log_level="critical",
        access_log=False,
        server_header=False,
        date_header=False,
        limit_concurrency=4 * MAX_STREAMS,
        h11_max_incomplete_event_size=MAX_HEADERS,
        http=PromptProtocol,
        ws="none",
        timeout_keep_alive=5,
        timeout_graceful_shutdown=1,
    )
    ready(f"http://127.0.0.1:{port}/?token={token}")
    await _Server(config).serve([sock])
