# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and SIGINT at any instant: the right exit code, and never a traceback.

A process signals itself at a chosen audit event (sys.addaudithook): an import, open, connect, bind or lock. Events are
counted from the command's first line. Before that line the interpreter starts, which no program controls.
"""

import asyncio
import os
import random
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.commands import PLAIN, running
from tests.vif.guest import SECONDS

LAUNCH = """
import os, sys
number, chosen, at = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
del sys.argv[1:4]
count = 0
def hook(event, _arguments):
    global count
    if chosen in ("*", event):
        count += 1
        if count == at:
            os.kill(os.getpid(), number)
        elif at == 0:
            os.write(2, b"event %s\\n" % event.encode())
from netback.cli import main
sys.addaudithook(hook)
main()
"""

SERVICES: dict[str, tuple[str, ...]] = {
    "run": ("run", "--net", "null", "--workers", "1"),
    "emulate": ("emulate",),
    "guest": ("guest", "--net", "null"),
    "web": ("web", "--port", "0"),
}


async def launch(number: int, event: str, at: int, *words: str | Path) -> Process:
    """Run `netback WORDS`, signalled at the `at`-th audit event; with 0 it prints each event instead."""
    arguments = (str(number), event, str(at), *map(str, words))
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", LAUNCH, *arguments, stdout=PIPE, stderr=STDOUT, env=PLAIN
    )


async def end(process: Process) -> tuple[int | None, str]:
    async with asyncio.timeout(SECONDS):
        out, _ = await process.communicate()
    return process.returncode, out.decode()


async def count_events(*words: str | Path) -> int:
    """The number of events before the command's first line of output, which means that it has started."""
    process = await launch(0, "*", 0, *words)
    assert process.stdout is not None
    count = 0
    async with asyncio.timeout(SECONDS):
        while (await process.stdout.readline()).startswith(b"event "):
            count += 1
    process.kill()
    await process.communicate()
    return count


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", list(SERVICES))
async def test_a_service_that_is_ended_while_it_starts(
    xen: Path, tmp_path: Path, command: str, number: signal.Signals
) -> None:
    directory = tmp_path / "new" if command == "emulate" else xen
    words = (*SERVICES[command], "--dir", directory)
    count = await count_events(*words)
    assert count > 100
    chosen = random.Random(f"{command} {number}")
    for at in (1, *(chosen.randrange(count) for _ in range(3)), count - 20):
        process = await launch(number, "*", at, *words)
        assert process.stdout is not None
        if (
            await process.stdout.readline()
        ):  # it started after fewer events this time, since modules are compiled now
            process.send_signal(number)
        code, out = await end(process)
        assert (code, "Traceback" in out, "Error" in out) == (0, False, False), f"at event {at}: {out}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_command_that_is_ended(xen: Path, number: signal.Signals) -> None:
    """The signal ends it, as a shell expects of a command, without output."""
    for at in (1, 300, 900):
        assert await end(await launch(number, "*", at, "list", "--dir", xen)) == (-number, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_backend_that_waits_for_the_lock(xen: Path, number: signal.Signals) -> None:
    async with running("serving domain 0", "run", "--dir", xen):
        process = await launch(number, "fcntl.flock", 3, *SERVICES["run"], "--dir", xen)
        assert await end(process) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["run", "guest"])
async def test_a_hypervisor_that_does_not_answer(
    tmp_path: Path, command: str, number: signal.Signals
) -> None:
    async with running("emulated Xen in", "emulate", "--dir", tmp_path) as emulator:
        emulator.send_signal(signal.SIGSTOP)
        process = await launch(0, "socket.connect", 0, *SERVICES[command], "--dir", tmp_path)
        assert process.stdout is not None
        async with asyncio.timeout(SECONDS):
            assert await process.stdout.readline() == b"event socket.connect\n"
        process.send_signal(number)
        assert await end(process) == (0, "")
        emulator.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("command", "ready"),
    [("run", "serving"), ("emulate", "emulated Xen"), ("guest", "domain"), ("web", "http:")],
)
async def test_signals_until_the_end(
    xen: Path, tmp_path: Path, command: str, ready: str, number: signal.Signals
) -> None:
    """The first signal begins the shutdown; further ones, up to the interpreter's last instant, change nothing."""
    directory = tmp_path / "new" if command == "emulate" else xen
    process = await launch(0, "*", -1, *SERVICES[command], "--dir", directory)
    assert process.stdout is not None
    async with asyncio.timeout(SECONDS):
        while ready not in (await process.stdout.readline()).decode():
            assert not process.stdout.at_eof()
        pidfd = os.pidfd_open(process.pid)
        with suppress(ProcessLookupError):  # the process has ended
            while True:
                signal.pidfd_send_signal(pidfd, number)
                await asyncio.sleep(0)
        os.close(pidfd)
    code, out = await end(process)
    assert (code, "Traceback" in out, "Error" in out) == (0, False, False), (
        out
    )  # a guest also prints its states
