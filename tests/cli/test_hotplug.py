# SPDX-License-Identifier: Apache-2.0
"""`netback run --hotplug netback` as a process that is killed."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState as State
from netback.xenstore.aio import Store
from tests.cli.commands import running
from tests.vif.guest import FRAME, SECONDS, Guest, join, readable, until
from tests.xenbus.test_hotplug import CONNECT, Files, files
from tests.xenbus.toolstack import add, take_away

__all__ = ["files"]


@pytest.fixture
async def guest(xen: Path) -> AsyncIterator[Guest]:
    async with join(xen) as guest:
        yield guest


async def test_kill_9(xen: Path, guest: Guest, files: Files, tmp_path: Path) -> None:
    """A script that runs then ends with netback, and the next one runs it again; one that ran is not run again."""
    config = tmp_path / "netback.toml"
    config.write_text(f'hotplug_directories = ["{files.directory}"]\n')
    serve = ("run", "--dir", xen, "--workers", "1", "--config", config, "--hotplug", "netback")
    pid, new = tmp_path / "pid", tmp_path / "new"
    hang = f"{{ echo $$ >{new}; mv {new} {pid}; exec sleep 1000; }}"
    script = files.write("vif-test", f"test $1 != online || test -e {pid} || {hang}\n{CONNECT}")
    async with await Store.connect(xen / "xenstored.sock") as dom0:
        async with running("serving domain 0", *serve) as backend:
            name = await add(dom0, guest.domid, net="null", script=script, hotplug_status="")
            while not pid.exists():
                await dom0.read("/local/domain/0/name")
            child = os.pidfd_open(int(pid.read_text()))
            backend.kill()
            async with asyncio.timeout(SECONDS):
                await readable(child)
            os.close(child)
        async with running("serving domain 0", *serve) as backend:
            await guest.connect()
            assert await guest.answer(guest.send(FRAME)) == 0
            assert files.called() == ["add", "online", "add", "online"]
            backend.kill()
            await backend.wait()
        async with running("serving domain 0", *serve):
            assert await guest.answer(guest.send(FRAME)) == 0
            await take_away(dom0, name)
            await guest.set_state(State.CLOSED)
            await until(dom0, f"{name.backend}/hotplug-status", lambda status: status is None)
            assert files.called()[4:] == ["offline", "remove"]
