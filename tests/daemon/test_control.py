# SPDX-License-Identifier: Apache-2.0
"""The control socket: private as soon as it exists, and bytes from either end harm no other client."""

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from netback.control import protocol
from netback.control.client import ask
from netback.control.protocol import ControlError, socket_name
from netback.control.server import serve_control
from netback.directory import Directory
from netback.errors import ConfigError


async def offer(argument: bytes) -> object:
    return {"feature-sg": argument.decode() or "1"}


async def wrong(_argument: bytes) -> object:
    return 1 // 0


async def refused(_argument: bytes) -> object:
    raise ConfigError("no, since it\nis \udcff")


ANSWERS = {"offer": offer, "wrong": wrong, "refused": refused}


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[Path]:
    with Directory.open(path) as directory:
        async with serve_control(directory, 0, ANSWERS):
            yield path


@asynccontextmanager
async def answering(path: Path, *parts: bytes) -> AsyncIterator[None]:
    """A process that is not a backend: it answers any question with these bytes and closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        for part in parts:
            writer.write(part)
        writer.close()

    async with await asyncio.start_unix_server(answer, str(path / socket_name(0))):
        yield


async def test_an_answer(tmp_path: Path) -> None:
    async with serving(tmp_path):
        assert await ask(tmp_path, 0, "offer", dict[str, str]) == {"feature-sg": "1"}
    assert not (tmp_path / socket_name(0)).exists()


async def test_an_argument(tmp_path: Path) -> None:
    async with serving(tmp_path):
        assert await ask(tmp_path, 0, "offer", dict[str, str], 5) == {"feature-sg": "5"}
        assert await ask(tmp_path, 0, "offer", dict[str, str], "a b") == {"feature-sg": '"a b"'}


async def test_no_backend(tmp_path: Path) -> None:
    """Covers a socket that a killed backend left."""
    assert await ask(tmp_path, 0, "offer", dict[str, str]) is None
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / socket_name(0)))
    assert await ask(tmp_path, 0, "offer", dict[str, str]) is None
    assert await ask(tmp_path / "none", 0, "offer", dict[str, str]) is None


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("nonsense", "unknown question 'nonsense'; there are offer, wrong, refused"),
        ("refused", r"no, since it\\nis \\xff$"),
        ("wrong", "cannot answer wrong: ZeroDivisionError"),
        ("x" * 5000, "the answer ends in the middle|reset|Broken pipe"),
    ],
)
async def test_a_question_without_an_answer(tmp_path: Path, question: str, reason: str) -> None:
    async with serving(tmp_path):
        with pytest.raises(ControlError, match=reason):
            await ask(tmp_path, 0, question, dict[str, str])
        assert await ask(tmp_path, 0, "offer", dict[str, str])


@pytest.mark.parametrize(
    "parts",
    [
        (b"",),
        (b'{"result": {"feature-sg"',),
        (b'{"result": {"feature-sg": "1"}}',),
        (b'{"result": {"feature-sg": 1}}\n',),
        (b"\xff\xfe\n",),
        (b"[" * 100_000 + b"\n",),
        (b"null\n",),
        (b"{}\n",),
    ],
)
async def test_a_peer_that_answers_nonsense(tmp_path: Path, parts: tuple[bytes, ...]) -> None:
    """The most frequent case is a backend that dies while it answers."""
    async with answering(tmp_path, *parts):
        with pytest.raises(ControlError, match=str(tmp_path)) as refused:
            await ask(tmp_path, 0, "offer", dict[str, str])
    assert "\n" not in str(refused.value)


async def test_an_answer_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_ANSWER", 1 << 16)
    async with answering(tmp_path, *[b" " * (1 << 16)] * 4):
        with pytest.raises(ControlError, match="too long"):
            await ask(tmp_path, 0, "offer", dict[str, str])


async def test_silent_peers_keep_no_other_out(tmp_path: Path) -> None:
    """Half of the connections that may be open at once stay silent; shutting down does not wait for them either."""
    async with serving(tmp_path):
        silent = [await asyncio.open_unix_connection(str(tmp_path / socket_name(0))) for _ in range(16)]
        assert await ask(tmp_path, 0, "offer", dict[str, str])
    for reader, writer in silent:
        assert await reader.read() == b""
        writer.close()


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
        async with serving(tmp_path):
            pass
    finally:
        os.umask(before)
    assert modes == [0o600]
