# SPDX-License-Identifier: Apache-2.0
"""The control socket's protocol and its client: every answer has its request's id, every mistake one line."""

import asyncio
import json
import os
import socket
import stat
import tempfile
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from netback.control import Client, ControlError, NoBackend, Refused, rpc
from netback.control.document import render_document
from netback.control.rpc import SOCKET, Code
from netback.control.schema import METHODS, TOPICS, VERSION, AttachRequest
from netback.daemon import Backend
from netback.daemon.config import parse_config
from netback.daemon.control import calls
from netback.daemon.topics import topics
from netback.directory import Access
from netback.errors import ConfigError
from tests.daemon.talk import client, serving, talking, works

HELLO = (
    b'{"jsonrpc":"2.0","id":1,"result":{"protocol":"%s","netback":"9","domid":0,"platform":"x","pid":1,"devices":0}}\n'
    % VERSION.encode()
)


@asynccontextmanager
async def answering(path: Path, *parts: bytes) -> AsyncIterator[None]:
    """A process that is not a backend: it answers each request with the next one of these lines, then closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            await reader.readline()
            writer.write(part)
        writer.close()

    async with await asyncio.start_unix_server(answer, str(path / SOCKET)):
        yield


# ---- the tables


async def test_a_backend_has_every_method_and_topic(backend: Backend) -> None:
    assert {*calls(backend), "subscribe", "unsubscribe"} == set(METHODS)
    assert set(topics(backend)) == set(TOPICS)


def test_every_method_has_a_call_of_the_client() -> None:
    """Where it has another name: `devices` for list, one for each topic in place of subscribe and unsubscribe, of which
    `capture` is that of frames.
    """
    public = {name for name in vars(Client) if not name.startswith("_")}
    topics = set(TOPICS) - {"frames"} | {"capture"}
    assert public - {"close"} == (set(METHODS) - {"list", "subscribe", "unsubscribe"}) | {"devices", *topics}


def test_the_document_is_made_from_the_types() -> None:
    page = Path(__file__).parents[2] / "docs" / "control.md"
    assert page.read_text() == render_document(), "make docs"


# ---- the protocol


@pytest.mark.parametrize("ident", ["1", '"one"', "null", "1.5e3", "-0", "9" * 200, '"\\u0000\\n"'])
async def test_an_id_comes_back_as_it_was(tmp_path: Path, ident: str) -> None:
    async with serving(tmp_path), talking(tmp_path) as talk:
        for _ in range(2):  # the same id again is another request
            talk.send(b'{"jsonrpc":"2.0","method":"info","id":%s}\n' % ident.encode())
            line = await talk.line()
            assert b'"id":%s' % ident.encode() in line
            assert b'"result"' in line


@pytest.mark.parametrize(
    ("line", "code", "reason"),
    [
        (b"nonsense", Code.PARSE, "the line is no JSON"),
        (b"", Code.PARSE, "the line is no JSON"),
        (b"\xff\xfe{}", Code.PARSE, "the line is no JSON"),
        (b'{"jsonrpc":"2.0","method":"info","id":"\xff"}', Code.PARSE, "the line is no JSON"),
        (b'{"jsonrpc":"2.0","method":"inf', Code.PARSE, "the line is no JSON"),
        (b'{"jsonrpc":"2.0","method":"info","id":1} 2', Code.PARSE, "the line is no JSON"),
        (b"7", Code.INVALID_REQUEST, "not a request"),
        (b"{}", Code.INVALID_REQUEST, "not a request"),
        (b'{"method":"info","id":1}', Code.INVALID_REQUEST, 'jsonrpc is not "2.0"'),
        (b'{"jsonrpc":"1.0","method":"info","id":1}', Code.INVALID_REQUEST, 'jsonrpc is not "2.0"'),
        (b'{"jsonrpc":"2.0","method":5,"id":1}', Code.INVALID_REQUEST, "not a request"),
        (b'{"jsonrpc":"2.0","method":"info","id":{}}', Code.INVALID_REQUEST, "an id is"),
        (b'{"jsonrpc":"2.0","method":"info","id":[1]}', Code.INVALID_REQUEST, "an id is"),
        (b'{"jsonrpc":"2.0","method":"info","id":true}', Code.INVALID_REQUEST, "an id is"),
        (b'{"jsonrpc":"2.0","method":"info","id":%s}' % (b"9" * 300), Code.INVALID_REQUEST, "an id is"),
        (b"[]", Code.INVALID_REQUEST, "a batch has 1 to 32 requests"),
        (b"[" + b"1," * 40 + b"1]", Code.INVALID_REQUEST, "a batch has 1 to 32 requests, not 41"),
        (b"[" * 30_000, Code.PARSE, "the line is no JSON"),
        (b'{"a":' * 10_000, Code.PARSE, "the line is no JSON"),
    ],
)
async def test_what_is_no_request(tmp_path: Path, line: bytes, code: Code, reason: str) -> None:
    """It is answered with the id null, and the connection goes on."""
    async with serving(tmp_path), talking(tmp_path) as talk:
        talk.send(line + b"\n")
        answer = await talk.read()
        assert (answer["id"], answer["error"]["code"]) == (None, code)
        assert reason in answer["error"]["message"]
        assert (await talk.ask("info"))["netback"] == "9"


@pytest.mark.parametrize(
    ("method", "params", "code", "reason"),
    [
        ("nonsense\x1b", {}, Code.NO_METHOD, r"there is no method 'nonsense\x1b'; there are info, list"),
        ("find", {}, Code.INVALID_PARAMS, "find: Object missing required field `guest`"),
        ("find", [1], Code.INVALID_PARAMS, "find: Expected `object`"),
        ("find", None, Code.INVALID_PARAMS, "find: Expected `object`"),
        ("find", {"guest": 5}, Code.INVALID_PARAMS, "find: Expected `str`, got `int` - at `$.guest`"),
        (
            "find",
            {"guest": "a", "speed": 1},
            Code.INVALID_PARAMS,
            "find: Object contains unknown field `speed`",
        ),
        ("find", {"guest": "a", "index": 10**30}, Code.INVALID_PARAMS, "find: "),
        ("find", {"guest": "a", "index": -2}, Code.INVALID_PARAMS, "find: Expected `int` >= -1"),
        ("find", {"guest": "a" * 300}, Code.INVALID_PARAMS, "find: Expected `str` of length <= 256"),
        ("find", {"guest": [[[[]]]]}, Code.INVALID_PARAMS, "find: Expected `str`"),
        ("detach", {"device": "d", "seconds": 1e400}, Code.INVALID_PARAMS, "detach: "),
        ("detach", {"device": "d", "seconds": -1}, Code.INVALID_PARAMS, "detach: Expected `float` >= 0"),
        ("detach", {"device": "d"}, Code.REFUSED, r"no, since it\nis \xff"),
        ("list", {}, Code.FAILED, r"the store\nis gone"),
        ("attach", {"guest": "1", "net": "null"}, Code.INTERNAL, "attach: unexpected ZeroDivisionError"),
        ("subscribe", {"topic": "weather"}, Code.INVALID_PARAMS, "subscribe: Invalid enum value 'weather'"),
        ("subscribe", {"topic": "statistics", "interval": 0}, Code.INVALID_PARAMS, "Expected `float` >= 0.1"),
        ("unsubscribe", {"subscription": 1}, Code.REFUSED, "there is no subscription 1"),
    ],
)
async def test_a_request_that_fails(
    tmp_path: Path, method: str, params: object, code: Code, reason: str
) -> None:
    """One printable line with the request's id; the connection goes on."""
    async with serving(tmp_path), talking(tmp_path) as talk:
        request = {"jsonrpc": "2.0", "method": method, "params": params, "id": 7}
        talk.send(json.dumps(request).replace("Infinity", "1e400").encode() + b"\n")
        answer = await talk.read()
        assert (answer["id"], answer["error"]["code"]) == (7, code)
        assert reason in answer["error"]["message"]
        assert answer["error"]["message"].isprintable()
        assert (await talk.ask("info"))["netback"] == "9"


async def test_a_notification_has_no_answer(tmp_path: Path) -> None:
    async with serving(tmp_path), talking(tmp_path) as talk:
        for method in ("info", "nonsense"):
            talk.send(b'{"jsonrpc":"2.0","method":"%s"}\n' % method.encode())
        talk.call("info", ident="after")
        assert (await talk.read())["id"] == "after"


async def test_a_batch_has_one_line_with_an_answer_to_each_request(tmp_path: Path) -> None:
    async with serving(tmp_path), talking(tmp_path) as talk:
        talk.send(
            b'[{"jsonrpc":"2.0","method":"info","id":1},{"jsonrpc":"2.0","method":"info"},7,'
            b'{"jsonrpc":"2.0","method":"nonsense","id":1}]\n'
        )
        answers = await talk.read()
        assert [answer["id"] for answer in answers] == [1, None, 1]
        assert ["result" in answer for answer in answers] == [True, False, False]
        talk.send(b'[{"jsonrpc":"2.0","method":"info"}]\n')
        talk.call("info", ident="after")
        assert (await talk.read())["id"] == "after"


async def test_a_batch_whose_answers_are_too_long_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "MAX_BATCH_ANSWER", 150)
    async with serving(tmp_path), talking(tmp_path) as talk:
        talk.send(b"[" + b",".join([b'{"jsonrpc":"2.0","method":"info","id":1}'] * 4) + b"]\n")
        answers = await talk.read()
        assert ["result" in answer for answer in answers] == [True, True, False, False]
        assert "too long" in answers[-1]["error"]["message"]


# ---- the client


async def test_the_client_gives_typed_results(tmp_path: Path) -> None:
    async with serving(tmp_path):
        assert await client(tmp_path, lambda made: made.find("7", index=3)) == "vif7.3"
        assert (await client(tmp_path, lambda made: made.set("vif1.0", carrier=True))).carrier
        assert (await client(tmp_path, lambda made: made.rings("vif1.0"))).rings == []
        assert (await client(tmp_path, lambda made: made.info())).protocol == VERSION
    assert not (tmp_path / SOCKET).exists()


@pytest.mark.parametrize(
    ("do", "kind", "code"),
    [
        (lambda made: made.detach("vif1.0"), Refused, Code.REFUSED),
        (lambda made: made.find("a" * 300), Refused, Code.INVALID_PARAMS),
        (lambda made: made.find("\udcff\n"), Refused, Code.INVALID_PARAMS),
        (lambda made: made.devices(), ControlError, Code.FAILED),
        (lambda made: made.attach(AttachRequest(guest="1", net="null")), ControlError, Code.INTERNAL),
    ],
)
async def test_an_error_of_the_backend(
    tmp_path: Path, do: Callable[[Client], object], kind: type[ControlError], code: Code
) -> None:
    async with serving(tmp_path):
        with pytest.raises(ControlError) as refused:
            await client(tmp_path, do)
    assert (type(refused.value), refused.value.code) == (kind, code)
    assert "\n" not in str(refused.value)


async def test_no_backend(tmp_path: Path) -> None:
    """Covers a socket that a killed backend left."""
    with pytest.raises(
        NoBackend, match=rf"no backend listens at {tmp_path}/control\.sock: start netback run"
    ):
        Client(tmp_path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / SOCKET))
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(NoBackend):
            Client(path)


@pytest.mark.parametrize(
    "parts",
    [
        (b"",),
        (b'{"result": {"feature-sg"',),
        (b'{"result": {"protocol": 1}}\n',),
        (b'{"result": {}}\n',),
        (b"\xff\xfe\n",),
        (b"[" * 100_000 + b"\n",),
        (b"null\n",),
        (b"{}\n",),
        (HELLO, b'{"result": {"devices": [{"dev'),
        (HELLO, b'{"result": {"devices": [7]}}\n'),
        (HELLO, b'{"error": "no"}\n'),
        (HELLO, b""),
        (HELLO.replace(VERSION.encode(), b"99.0"),),
    ],
)
async def test_a_peer_that_answers_nonsense(tmp_path: Path, parts: tuple[bytes, ...]) -> None:
    """The most frequent cases are a backend that dies while it answers, and one of another major version."""
    async with answering(tmp_path, *parts):
        with pytest.raises(ControlError, match=str(tmp_path)) as refused:
            await client(tmp_path, lambda made: made.devices())
    assert str(refused.value).isprintable()


async def test_an_answer_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "MAX_ANSWER", 1 << 16)
    async with answering(tmp_path, b" " * (1 << 18)):
        with pytest.raises(ControlError, match="too long"):
            await client(tmp_path, lambda made: made.devices())


async def test_a_peer_that_does_not_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / SOCKET))
        silent.listen()
        with pytest.raises(ControlError, match=r"no answer within 0\.01 s"):
            await client(tmp_path, lambda made: made.devices(), seconds=0.01)


# ---- who may connect


async def test_the_socket_is_private_from_the_first_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mode is right when bind returns, whatever the umask: a later chmod would leave a gap."""
    modes = []

    class Socket(socket.socket):
        def bind(self, address: object) -> None:
            super().bind(address)  # type: ignore[arg-type]
            modes.append(stat.S_IMODE(Path(str(address)).stat().st_mode))

    monkeypatch.setattr(socket, "socket", Socket)
    before = os.umask(0)
    try:
        async with serving(tmp_path, access=Access(0o660)):
            assert stat.S_IMODE((tmp_path / SOCKET).stat().st_mode) == 0o660
    finally:
        os.umask(before)
    assert modes == [0o600]


@pytest.mark.parametrize(("mode", "passes"), [(0o600, 0o700), (0o660, 0o710), (0o666, 0o711), (0o640, 0o700)])
async def test_the_mode_admits_users_through_the_directory(tmp_path: Path, mode: int, passes: int) -> None:
    """They may pass through the directory, but neither list nor change it."""
    path = tmp_path / "run"
    async with serving(path, access=Access(mode, os.getegid())):
        assert stat.S_IMODE((path / SOCKET).stat().st_mode) == mode
        assert stat.S_IMODE(path.stat().st_mode) == passes


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another group: needs root")
async def test_the_group(tmp_path: Path) -> None:
    path = tmp_path / "run"
    async with serving(path, access=Access(0o660, 65534)):
        assert (path.stat().st_gid, (path / SOCKET).stat().st_gid) == (65534, 65534)
        await works(path)


@pytest.fixture
def within_reach() -> Iterator[Path]:
    """A directory that every user may pass through; pytest's own are for one."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o711)
        yield Path(name)


def asks(path: Path, user: int) -> str:
    """What a process of another user and its group gets from the backend, in a child that changes to it."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads; the child uses none
        child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            with Client(path) as made:
                os.write(write, made.backend.netback.encode())
        except BaseException as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read, "rb") as answer:
        return answer.read().decode()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users: needs root")
async def test_the_group_and_nobody_else_may_connect(within_reach: Path) -> None:
    path = within_reach / "run"
    async with serving(path, access=Access(0o660, 65534)):
        assert await asyncio.to_thread(asks, path, 65534) == "9"
        assert await asyncio.to_thread(asks, path, 65533) == f"{path}/control.sock: Permission denied"
    async with serving(path):
        assert await asyncio.to_thread(asks, path, 65534) == f"{path}/control.sock: Permission denied"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('control_mode = "0777"', "control_mode: '0777' is no mode of a socket that its owner may use"),
        ('control_mode = "0060"', "control_mode: '0060' is no mode"),
        ('control_mode = "rw"', "control_mode: 'rw' is no mode"),
        ("control_mode = 660", "control_mode: Expected a string, got a whole number"),
        ('control_group = "no such group"', "control_group: there is no group 'no such group'"),
        ('control_group = "a\\u0000"', "control_group: there is no group"),
    ],
)
def test_a_wrong_configuration_of_it(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("(", r"\(")):
        parse_config(text)


def test_the_configuration_of_it() -> None:
    assert parse_config("").access == Access()
    assert parse_config('control_mode = "0660"\ncontrol_group = "root"').access == Access(0o660, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes another user's directory: needs root")
def test_a_directory_of_another_user_is_not_trusted(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(ConfigError, match="belongs to user 65534, neither root nor you"):
        Client(tmp_path)
