# SPDX-License-Identifier: Apache-2.0
"""Foreign clients on our store: Debian's unmodified xenstore tools, and pyxs."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pyxs
from pyxs.connection import UnixSocketConnection
from pyxs.exceptions import PyXSError

from netback.xenstore.aio import Store
from netback.xenstore.server import Server

from .serving import serving


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path / "s") as server:
        yield server


class Tools:
    """Runs xenstore-* on the store; returns the output and the exit code."""

    def __init__(self, path: Path) -> None:
        self._env = {**os.environ, "XENSTORED_PATH": str(path)}

    async def start(self, tool: str, *words: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            f"xenstore-{tool}", *words, env=self._env, stdout=pipe, stderr=pipe
        )

    async def __call__(self, tool: str, *words: str) -> tuple[str, int]:
        process = await self.start(tool, *words)
        out, _ = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode is not None
        return out.decode(), process.returncode


@pytest.fixture
def tool(server: Server, tmp_path: Path) -> Tools:
    return Tools(tmp_path / "s")


async def test_write_read_list_exists_remove(tool: Tools) -> None:
    assert await tool("write", "/a/b", "one", "/a/c", "two") == ("", 0)
    assert await tool("read", "/a/b", "/a/c") == ("one\ntwo\n", 0)
    assert await tool("read", "-p", "/a/b") == ("/a/b: one\n", 0)
    assert await tool("read", "/none") == ("", 1)
    assert await tool("list", "/a") == ("b\nc\n", 0)
    assert await tool("list", "-p", "/a") == ("/a/b\n/a/c\n", 0)
    assert await tool("exists", "/a/b") == ("", 0)
    assert await tool("exists", "/a/none") == ("", 1)
    assert await tool("rm", "/a/b") == ("", 0)
    assert await tool("list", "/a") == ("c\n", 0)
    assert (await tool("rm", "/none/below"))[1] == 1
    assert await tool("write", "/binary", "\\x00\\ttab") == ("", 0)
    assert await tool("read", "/binary") == ("\\000\\ttab\n", 0)
    assert await tool("read", "-R", "/a/c") == ("two", 0)


async def test_rm_tidies_empty_parents(tool: Tools) -> None:
    await tool("write", "/a/b/c", "x", "/a/d", "x")
    assert await tool("rm", "-t", "/a/b/c") == ("", 0)
    assert await tool("list", "/a") == ("d\n", 0)


async def test_ls_shows_the_tree_and_its_permissions(tool: Tools, server: Server) -> None:
    server.introduce(1, home=False)
    server.introduce(5, home=False)
    await tool("write", "/vm/one/name", "guest", "/vm/two", "")
    assert await tool("chmod", "/vm/one", "n1", "r2", "b3") == ("", 0)
    assert await tool("ls", "-f", "/vm") == ('/vm/one = ""\n/vm/one/name = "guest"\n/vm/two = ""\n', 0)
    assert (await tool("ls", "-fp", "/vm"))[0].splitlines() == [
        '/vm/one = ""   (n1,r2,b3)',
        '/vm/one/name = "guest"   (n0)',
        '/vm/two = ""   (n0)',
    ]
    assert await tool("ls") == (
        'tool = ""\n xenstored = ""\nvm = ""\n one = ""\n  name = "guest"\n two = ""\n',
        0,
    )
    assert await tool("chmod", "-r", "/vm", "n5") == ("", 0)
    assert (await tool("ls", "-fp", "/vm"))[0].count("(n5)") == 3


async def test_ls_lists_more_than_one_message_holds(tool: Tools, tmp_path: Path) -> None:
    async with await Store.connect(tmp_path / "s") as store:
        names = [f"node-{number:04}" for number in range(1500)]
        await asyncio.gather(*(store.write(f"/long/{name}", "x") for name in names))
    assert await tool("list", "/long") == ("".join(f"{name}\n" for name in names), 0)
    out, code = await tool("ls", "/long")
    assert (out.count(' = "x"'), code) == (1500, 0)


async def test_watch_prints_what_fires(tool: Tools, server: Server) -> None:
    server.introduce(1, home=False)
    process = await tool.start("watch", "-n", "4", "/w")
    assert process.stdout is not None

    async def line() -> str:
        assert process.stdout is not None
        return (await asyncio.wait_for(process.stdout.readline(), 20)).decode()

    assert await line() == "/w\n"
    assert await tool("write", "/w/a", "x") == ("", 0)
    assert await line() == "/w/a\n"
    assert await tool("chmod", "/w/a", "r1") == ("", 0)
    assert await line() == "/w/a\n"
    assert await tool("rm", "/w") == ("", 0)
    assert await line() == "/w\n"
    await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0


async def test_watch_hears_of_domains(tool: Tools, server: Server) -> None:
    process = await tool.start("watch", "-n", "2", "@releaseDomain")
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 20) == b"@releaseDomain\n"
    server.introduce(3)
    server.release(3)
    assert await asyncio.wait_for(process.stdout.readline(), 20) == b"@releaseDomain\n"
    await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0


def talk_pyxs(path: str) -> None:
    with pyxs.Client(router=pyxs.Router(UnixSocketConnection(path))) as client:
        client.write(b"/p/a", b"one")
        client.mkdir(b"/p/b")
        assert client.read(b"/p/a") == b"one"
        assert client.read(b"/p/none", b"default") == b"default"
        assert client.list(b"/p") == [b"a", b"b"]
        assert client.exists(b"/p/b")
        client.set_perms(b"/p/a", [b"n0", b"r5"])
        assert client.get_perms(b"/p/a") == [b"n0", b"r5"]
        assert client.get_domain_path(3) == b"/local/domain/3"
        assert client.is_domain_introduced(0)
        client.transaction()
        client.write(b"/p/c", b"in")
        client.commit()
        assert client.read(b"/p/c") == b"in"
        client.transaction()
        client.delete(b"/p/c")
        client.rollback()
        assert client.exists(b"/p/c")
        monitor = client.monitor()
        monitor.watch(b"/p", b"token")
        events = monitor.wait()
        assert tuple(next(events)) == (b"/p", b"token")
        client.write(b"/p/a", b"two")
        assert tuple(next(events)) == (b"/p/a", b"token")
        monitor.unwatch(b"/p", b"token")
        client.delete(b"/p")
        with pytest.raises(PyXSError):
            client.read(b"/p/a")


async def test_pyxs(server: Server, tmp_path: Path) -> None:
    await asyncio.wait_for(asyncio.to_thread(talk_pyxs, str(tmp_path / "s")), 20)
