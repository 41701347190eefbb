# SPDX-License-Identifier: Apache-2.0
"""`netback run --record`, `set --record`, `record` and `replay` as processes."""

import asyncio
import json
import os
import pty
import re
import signal
import stat
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from netback.abi.netif import TX_REQUEST, TX_RESPONSE, TX_SLOT, Status, TxFlag
from netback.abi.xenbus import XenbusState as State
from netback.daemon import Backend
from netback.net.python import PythonNetwork
from netback.observe.recording import read
from netback.xenbus.names import DeviceName
from tests.cli.commands import COMMAND, run, running
from tests.cli.test_capture import backend, guest, name
from tests.vif.guest import FRAME, SECONDS, Guest, exchange, until_state

__all__ = ["backend", "guest", "name"]

REASON = "TX chain runs past req_prod"


def post(guest: Guest, flags: TxFlag, number: int) -> None:
    """A TX request; with MORE_DATA it is a chain that names a slot which is not published."""
    index = guest.tx.index(0)
    TX_REQUEST.pack_into(guest.tx.slot(index, TX_SLOT), 0, guest.grefs[0], 0, flags, number, 60)
    guest.tx.index(0, index + 1)
    guest.kick()


@pytest.mark.parametrize("state", [False, True], ids=["by hand", "by systemd"])
async def test_a_fault_is_saved_and_replayed(xen: Path, guest: Guest, tmp_path: Path, state: bool) -> None:
    """By the line that the log has; every command of it works."""
    kept = {"STATE_DIRECTORY": f"{tmp_path}/state:{tmp_path}/second"} if state else {}
    async with running("serving domain 0", "run", "--dir", xen, "--record", "on", **kept) as process:
        _, out, _ = await run("attach", str(guest.domid), "--net", "null", "--dir", xen)
        device = out.strip()
        await guest.connect()
        assert await guest.answer(guest.send(FRAME)) == 0
        post(guest, TxFlag.MORE_DATA, 7)
        await until_state(guest.store, await guest.backend(), State.CLOSING)
        _, shown, _ = await run("show", device, "--dir", xen)
        _, explained, _ = await run("explain", device, "--dir", xen)
        assert process.stderr is not None
        lines = [(await process.stderr.readline()).decode() for _ in range(3)]
    (path,) = ((tmp_path / "state" if state else xen) / "recordings").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (said,) = [line for line in lines if "recording" in line]
    assert said.endswith(f"{device}: what led to its fault is saved: netback replay {path}\n")
    assert re.search(rf"^last fault +netback replay {path}$", shown, re.MULTILINE)
    assert f"netbackreplay{path}plays" in "".join(explained.split())
    code, out, err = await run("replay", path)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith(f"{device}, recorded by netback ")
    assert out.splitlines()[0].endswith(f"; the guest broke the protocol: {REASON}")
    assert re.search(r" store +frontend Connected, backend InitWait$", out, re.MULTILINE)
    assert re.search(r" tx .*req_prod 2, 1 request, 0 copies; BROKEN$", out, re.MULTILINE)
    assert re.search(r"^tx: 1 of 256 pending; .*BROKEN", out, re.MULTILINE)
    assert re.search(rf"^replayed \d+ steps: the same responses, ends BROKEN: {REASON}$", out, re.MULTILINE)
    assert await run("replay", path) == (code, out, err), "a replay depends on nothing but its file"


async def test_on_demand(
    xen: Path, name: DeviceName, guest: Guest, network: PythonNetwork, tmp_path: Path
) -> None:
    at = ("--dir", xen)
    path = tmp_path / "web.recording"
    code, _, err = await run("record", name, "--out", path, *at)
    assert (code, err) == (2, f"netback: {name} is not recorded: netback set {name} --record on\n")
    assert (await run("set", name, "--record", "on", *at))[:2] == (
        0,
        f"{name}: tx none, rx none, carrier, record on\n",
    )
    assert re.search(r"^record +on$", (await run("show", name, *at))[1], re.MULTILINE)
    await exchange(guest, network)
    code, out, _ = await run("record", name, "--out", path, *at)
    size = path.stat().st_size
    assert (code, out) == (0, f"{name}: {size} bytes in {path}: netback replay {path}\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    code, _, err = await run("record", name, "--out", path, *at)
    assert (code, err) == (2, f"netback: record {path}: File exists\n")
    code, out, _ = await run("replay", path, "--json")
    steps = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert steps[-1]["same"] is True
    served = [step["what"] for step in steps if "response" in step.get("what", "")]
    assert len(served) == 2
    assert (await run("set", name, "--record", "off", *at))[1] == f"{name}: tx none, rx none, carrier\n"
    assert (await run("record", name, "--out", tmp_path / "other", *at))[0] == 2


async def test_payload_and_headers(
    xen: Path, backend: Backend, name: DeviceName, guest: Guest, network: PythonNetwork, tmp_path: Path
) -> None:
    secret = b"SECRET" * 100
    for mode in ("on", "payload"):
        await run("set", name, "--record", mode, "--dir", xen)
        assert await guest.answer(guest.send(FRAME[:12] + b"\x88\xb5" + bytes(128) + secret)) == 0
        await run("record", name, "--out", tmp_path / mode, "--dir", xen)
        assert (secret in (tmp_path / mode).read_bytes()) == (mode == "payload")
        assert (await run("replay", tmp_path / mode, "--brief"))[0] == 0


async def test_the_guest_does_not_learn_of_it(xen: Path, name: DeviceName, guest: Guest) -> None:
    await run("set", name, "--record", "on", "--dir", xen)
    assert "record" in await guest.store.directory(name.backend)
    with pytest.raises(Exception, match="EACCES"):
        await guest.store.read(f"{name.backend}/record")


async def test_a_backend_that_is_killed(xen: Path, guest: Guest, tmp_path: Path) -> None:
    """A recorder is memory of the process alone: the next backend goes on, and records from there."""
    serve = ("run", "--dir", xen, "--workers", "1", "--record", "payload")
    async with running("serving domain 0", *serve) as process:
        await run("attach", str(guest.domid), "--net", "null", "--dir", xen)
        await guest.connect()
        assert await guest.answer(guest.send(FRAME)) == 0
        process.send_signal(signal.SIGKILL)
        await process.wait()
    async with running("serving domain 0", *serve):
        assert await guest.answer(guest.send(FRAME)) == 0
        path = tmp_path / "next"
        assert (await run("record", f"vif{guest.domid}.0", "--out", path, "--dir", xen))[0] == 0
    heads = [poll.rsp_prod for poll in read(path).queues[0] if poll.ring == "tx"]
    assert heads[0] == 1
    assert (await run("replay", path))[0] == 0


async def test_to_a_step_and_lines_alone(
    xen: Path, name: DeviceName, guest: Guest, network: PythonNetwork, tmp_path: Path
) -> None:
    await run("set", name, "--record", "on", "--dir", xen)
    for _ in range(3):
        await exchange(guest, network)
    await run("record", name, "--out", tmp_path / "some", "--dir", xen)
    _, whole, _ = await run("replay", tmp_path / "some", "--brief")
    code, out, _ = await run("replay", tmp_path / "some", "--brief", "--to", "2")
    assert code == 0
    numbered = [line for line in out.splitlines() if re.match(r" +\d+ ", line)]
    assert len(numbered) == 2
    assert set(numbered) < set(whole.splitlines())
    assert out.splitlines()[-1].startswith("replayed 2 steps: the same responses, ends ")
    assert "pending" not in whole


async def test_step_by_step(
    xen: Path, name: DeviceName, guest: Guest, network: PythonNetwork, tmp_path: Path
) -> None:
    """On a terminal each Enter plays a step; the end of the input ends it."""
    await run("set", name, "--record", "on", "--dir", xen)
    await exchange(guest, network)
    await run("record", name, "--out", tmp_path / "some", "--dir", xen)
    ours, theirs = pty.openpty()
    words = ("replay", str(tmp_path / "some"), "--brief", "--step")
    process = await asyncio.create_subprocess_exec(*COMMAND, *words, stdin=theirs, stdout=PIPE, stderr=PIPE)
    os.close(theirs)
    assert process.stdout is not None
    out = process.stdout
    lines: list[str] = []

    async def steps(count: int) -> None:
        async with asyncio.timeout(SECONDS):
            while len([line for line in lines if re.match(r" +\d+ ", line)]) < count:
                lines.append((await out.readline()).decode())

    await steps(1)
    os.write(ours, b"\n")
    await steps(2)
    os.write(ours, b"\4")
    async with asyncio.timeout(SECONDS):
        rest, err = await process.communicate()
    os.close(ours)
    assert (process.returncode, err) == (0, b"")
    assert rest.decode().startswith("replayed 2 steps: the same responses")


async def test_what_is_no_recording(tmp_path: Path) -> None:
    for content, reason in (
        (b"", "it is cut within its first line: the file ends at 0"),
        (b"hello", "it is no recording of netback"),
        (
            b"netback recording 2\r\n\x1a\n",
            "it is cut: the header would begin at offset 23, the file ends at 23",
        ),
    ):
        path = tmp_path / "bad"
        path.write_bytes(content)
        assert await run("replay", path) == (2, "", f"netback: {path}: {reason}\n")
    assert (await run("replay", tmp_path / "none"))[
        2
    ] == f"netback: {tmp_path / 'none'}: No such file or directory\n"
    code, _, err = await run("replay", path, "--step")
    assert (code, err) == (2, "netback: --step waits for Enter on a terminal, and prints no JSON\n")


async def test_a_changed_backend_is_found(
    xen: Path, name: DeviceName, guest: Guest, network: PythonNetwork, tmp_path: Path
) -> None:
    """Here the recording is of a backend that answered otherwise."""
    from fuzz.recording import file

    await run("set", name, "--record", "on", "--dir", xen)
    post(guest, TxFlag(0), 0x5A5A)
    await guest.responses(guest.tx, 0)
    await run("record", name, "--out", tmp_path / "some", "--dir", xen)
    okay, error = (TX_RESPONSE.pack(0x5A5A, status) for status in (Status.OKAY, Status.ERROR))
    polls = [poll.data for poll in read(tmp_path / "some").queues[0]]
    at = next(number for number, poll in enumerate(polls) if okay in poll)
    polls[at] = polls[at].replace(okay, error)
    (tmp_path / "other").write_bytes(file(polls))
    code, out, _ = await run("replay", tmp_path / "other", "--brief")
    assert code == 1
    assert out.splitlines()[-1] == f"step {at + 1} differs: its responses are others"
