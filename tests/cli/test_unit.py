# SPDX-License-Identifier: Apache-2.0
"""`netback run` as a service: its configuration, reloaded at SIGHUP, and its supervisor."""

import asyncio
import json
import signal
import socket
from pathlib import Path

import pytest

from tests.cli.commands import run, running, start
from tests.vif.guest import SECONDS

ATTACH = """
[[device]]
guest = "web"
index = 0
net = "null"
attach = true
"""


async def until_connected(directory: Path, name: str) -> None:
    async with asyncio.timeout(SECONDS):
        while True:
            _, out, _ = await run("list", "--json", "--dir", directory)
            if any((one["guest"], one["backend"]) == (name, "Connected") for one in json.loads(out or "[]")):
                return


async def test_a_guest_that_the_configuration_names_gets_its_device_whenever_it_comes(
    xen: Path, tmp_path: Path
) -> None:
    config = tmp_path / "netback.toml"
    config.write_text(ATTACH)
    async with running("serving domain 0", "run", "--dir", xen, "--config", config):
        for _ in range(2):
            async with running("Connected", "guest", "--dir", xen, "--net", "null", "--name", "web"):
                await until_connected(xen, "web")


async def test_a_mistake_is_reported_before_anything_is_done(tmp_path: Path) -> None:
    config = tmp_path / "netback.toml"
    config.write_text("workerss = 3")
    code, _, err = await run("run", "--check", "--config", config)
    assert (code, err) == (2, f"netback: {config}: workerss: unknown key; did you mean workers?\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ATTACH, "is loaded"),
        ("nett = 1", "stays in force: {config}: nett: unknown key"),
        ("device = " + "[" * 100_000, "stays in force: {config}: nested too deeply"),
        (".".join("a" * 100_000) + " = 1", "stays in force: {config}: nested too deeply"),
        ("# " * (1 << 20), "stays in force: {config}: cannot be read: larger than 1048576 bytes"),
    ],
    ids=lambda value: value[:16],
)
async def test_a_reload(xen: Path, tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "netback.toml"
    config.write_text("")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(SECONDS)
        process = await start("run", "--dir", xen, "--config", config, NOTIFY_SOCKET=str(tmp_path / "notify"))
        assert process.stderr is not None
        first = await asyncio.to_thread(manager.recv, 4096)
        assert first.startswith(b"READY=1\nSTATUS=domain 0: 0 devices")
        config.write_text(text)
        process.send_signal(signal.SIGHUP)
        assert (await asyncio.to_thread(manager.recv, 4096)).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert (await asyncio.to_thread(manager.recv, 4096)).startswith(b"READY=1")
        process.terminate()
        assert await asyncio.to_thread(manager.recv, 4096) == b"STOPPING=1"
        async with asyncio.timeout(SECONDS):
            _, err = await process.communicate()
    assert process.returncode == 0
    assert message.format(config=config) in err.decode()
