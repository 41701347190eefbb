# SPDX-License-Identifier: Apache-2.0
"""Joining from C: the header agrees with Python, works alone, and its guest brings up a vif."""

import asyncio
import os
import struct
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from netback.abi.grant_table import ENTRY
from netback.daemon import Backend, BackendConfig
from netback.net.python import PythonNetwork
from netback.platforms.emulated import CFLAGS, EmulatedPlatform
from netback.platforms.emulated.protocol import (
    DOMID_ANY,
    HELLO_SIZE,
    MAGIC,
    MAX_GRANT_PAGES,
    MAX_PORTS,
    REPLY_SIZE,
    REQUEST_SIZE,
    VERSION,
    Hello,
    HelloFlag,
    Op,
    Reply,
    Request,
)

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
WARNINGS = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-Wpedantic", "-Wconversion", "-O2")
Compile = Callable[..., Path]


@pytest.fixture
def compiled(tmp_path: Path) -> Compile:
    """Compiles a C file with the header alone."""

    def build(source: Path, *options: str) -> Path:
        program = tmp_path / source.stem
        command = ("gcc", *WARNINGS, *options, CFLAGS, "-o", str(program), str(source))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return program

    return build


def test_messages_are_the_same_bytes_in_c_and_python(compiled: Compile) -> None:
    data = subprocess.run([compiled(HERE / "messages.c")], capture_output=True, check=True).stdout
    hello = Hello(MAGIC, VERSION, HelloFlag.ATTACH, DOMID_ANY, MAX_GRANT_PAGES, b"forty bytes of name", 9)
    request = Request(Op.UNMAP, 21, 22, 1)
    reply = Reply(-22, -3, 31, 32, 33, 34, 0x1234567890ABCDEF)
    page = struct.pack(f"<{MAX_PORTS // 32}QI4x", 0, 52, *[0] * 64, 53, *[0] * 61, 51)
    expected = hello.pack() + request.pack() + reply.pack() + ENTRY.pack(5, 41, 42) + page
    assert data == expected
    assert Hello.unpack(data[:HELLO_SIZE]) == hello
    assert Request.unpack(data[HELLO_SIZE:][:REQUEST_SIZE]) == request
    assert Reply.unpack(data[HELLO_SIZE + REQUEST_SIZE :][:REPLY_SIZE]) == reply


@pytest.mark.parametrize("options", [(), ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")])
def test_every_function_of_the_header(compiled: Compile, xen: Path, options: tuple[str, ...]) -> None:
    program = compiled(HERE / "exercise.c", *options)
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    done = subprocess.run(
        [program, xen], capture_output=True, text=True, timeout=30, env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


async def test_a_guest_in_c_sends_and_receives_a_frame(compiled: Compile, xen: Path) -> None:
    program = await asyncio.to_thread(compiled, ROOT / "examples/c/guest.c")
    frame = bytes.fromhex("00163e000001020000000001 88b5") + b"an answer to domain 1".ljust(46, b".")
    network = PythonNetwork("test")
    with EmulatedPlatform(xen) as platform, closing(network), closing(network.socket):
        async with Backend(
            platform, BackendConfig(xen, networks={"python:test": network}, workers=1)
        ) as backend:
            guest = await asyncio.create_subprocess_exec(program, str(xen), stdout=subprocess.PIPE)
            assert guest.stdout is not None
            assert await guest.stdout.readline() == b"domain 1\n"
            await backend.attach(1, "python:test", mac="00:16:3e:00:00:01")
            sent = await asyncio.wait_for(network.recv(), 20)
            await network.send(frame)
            lines = (await asyncio.wait_for(guest.stdout.read(), 20)).decode().splitlines()
            assert await guest.wait() == 0
    assert sent == (bytes.fromhex("ffffffffffff00163e000001 88b5") + b"hello from domain 1").ljust(60, b"\0")
    assert lines == [
        "connected to /local/domain/0/backend/vif/1/0",
        f"sent 60 bytes: {sent.hex(' ')}",
        f"received 60 bytes: {frame.hex(' ')}",
    ]
