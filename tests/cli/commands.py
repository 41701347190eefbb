# SPDX-License-Identifier: Apache-2.0
"""Runs the command `netback` as a user does: a process, its exit code and its output."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.vif.guest import SECONDS

COMMAND = (sys.executable, "-c", "from netback.cli import main; main()")
PLAIN = {"TERM": "dumb", "COLUMNS": "120", "NO_COLOR": "1"}


async def start(*arguments: str | Path, **environment: str) -> Process:
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in ("XENSTORED_PATH", "XDG_RUNTIME_DIR", "STATE_DIRECTORY")
    }
    return await asyncio.create_subprocess_exec(
        *COMMAND, *map(str, arguments), stdout=PIPE, stderr=PIPE, env=kept | PLAIN | environment
    )


async def run(*arguments: str | Path, **environment: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    process = await start(*arguments, **environment)
    async with asyncio.timeout(SECONDS):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def running(ready: str, *arguments: str | Path, **environment: str) -> AsyncIterator[Process]:
    """Run a command that stays: enter once it prints `ready`; at the end SIGTERM must end it cleanly."""
    process = await start(*arguments, **environment)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(SECONDS):
            while ready not in (line := (await process.stderr.readline()).decode()):
                assert line, f"{arguments} ended with {await process.wait()}"
        yield process
    finally:
        if process.returncode is None:
            # not Process.terminate(): of a process that has just ended it takes the status, and asyncio then says 255
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
        async with asyncio.timeout(SECONDS):
            _, err = await process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), err.decode()
    assert b"Traceback" not in err
