# SPDX-License-Identifier: Apache-2.0
"""`netback capture` and Wireshark's way to it, as processes; tshark reads what they write."""

import asyncio
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from netback.daemon import Backend
from netback.net.python import PythonNetwork
from netback.xenbus.names import DeviceName
from tests.cli.commands import COMMAND, run, running, start
from tests.crash.respawn import until
from tests.observe.test_pcapng import fields_of
from tests.vif.guest import FRAME, SECONDS, Guest, exchange, join, serving

WORDS = ("--direction", "--queue", "--snaplen", "--dir")


@pytest.fixture
async def guest(xen: Path) -> AsyncIterator[Guest]:
    async with join(xen) as guest:
        yield guest


@pytest.fixture
async def backend(xen: Path, network: PythonNetwork) -> AsyncIterator[Backend]:
    async with serving(xen, network) as backend:
        yield backend


@pytest.fixture
async def name(backend: Backend, guest: Guest) -> DeviceName:
    name = await backend.attach(guest.domid, "python:lan")
    await guest.connect()
    return name


@asynccontextmanager
async def loaded(guest: Guest, network: PythonNetwork) -> AsyncIterator[None]:
    """A frame each way, again and again."""

    async def load() -> None:
        while True:
            await exchange(guest, network)

    task = asyncio.create_task(load())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_number_of_frames(
    xen: Path, name: DeviceName, guest: Guest, network: PythonNetwork, tmp_path: Path
) -> None:
    path = tmp_path / "frames.pcapng"
    async with loaded(guest, network):
        code, out, err = await run(
            "capture", name.domid, "-w", path, "--count", 7, "--snaplen", 20, "--dir", xen
        )
    assert (code, out, err) == (0, "", "netback: 7 frames captured, none lost\n")
    found = fields_of(path, "frame.interface_name", "frame.interface_queue", "frame.len", "frame.cap_len")
    assert len(found) == 7
    assert {tuple(each) for each in found} == {
        (f"{name} {way}", "0", str(len(FRAME)), "20") for way in ("tx", "rx")
    }
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_direction_for_some_time_to_a_pipe(
    xen: Path, name: DeviceName, guest: Guest, network: PythonNetwork, tmp_path: Path
) -> None:
    """tshark reads the pipe as Wireshark does."""
    async with loaded(guest, network):
        capture = await start("capture", "--direction", "rx", "--queue", 0, "--seconds", 1, "--dir", xen)
        out, err = await asyncio.wait_for(capture.communicate(), SECONDS)
    assert capture.returncode == 0
    shark = await asyncio.create_subprocess_exec(
        "tshark",
        "-n",
        "-r",
        "-",
        "-T",
        "fields",
        "-e",
        "frame.interface_name",
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )
    shown, _ = await shark.communicate(out)
    names = shown.decode().split("\n")[:-1]
    assert len(names) > 0
    assert set(names) == {f"{name} rx"}
    assert f"netback: {len(names)} frame" in err.decode()


@asynccontextmanager
async def piped(xen: Path) -> AsyncIterator[tuple[Process, int]]:
    """`netback capture` once it has begun, and the reading end of its output."""
    read, write = os.pipe()
    fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, PAGE)
    capture = await asyncio.create_subprocess_exec(
        *COMMAND, "capture", "--dir", str(xen), stdout=write, stderr=PIPE
    )
    os.close(write)
    assert await asyncio.to_thread(os.read, read, 4) == b"\n\r\r\n"
    yield capture, read
    _, err = await asyncio.wait_for(capture.communicate(), SECONDS)
    assert b"Traceback" not in err


async def test_the_end_of_the_reader_is_the_end(xen: Path, backend: Backend) -> None:
    """Also while there are no frames, which would find the pipe broken."""
    async with piped(xen) as (capture, read):
        os.close(read)
        assert await asyncio.wait_for(capture.wait(), SECONDS) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_with_whole_blocks(
    xen: Path, name: DeviceName, guest: Guest, network: PythonNetwork, tmp_path: Path, number: int
) -> None:
    path = tmp_path / "frames.pcapng"
    capture = await start("capture", name, "-w", path, "--dir", xen)
    async with loaded(guest, network):
        await written(path)
        capture.send_signal(number)
        out, err = await asyncio.wait_for(capture.communicate(), SECONDS)
    assert (capture.returncode, out) == (0, b"")
    assert f"netback: {len(fields_of(path, 'frame.number'))} frames captured, none lost" in err.decode()


async def test_a_reader_that_takes_nothing(
    xen: Path, backend: Backend, name: DeviceName, guest: Guest, network: PythonNetwork
) -> None:
    """The pipe is full: the guest goes on, and a signal still ends the command, which says that a block is cut."""
    async with piped(xen) as (capture, read), loaded(guest, network):
        assert capture.stderr is not None
        vif = backend.devices[name].vif
        assert vif is not None
        await until(lambda: vif.counters["tx_frames"] > 10 * PAGE // BLOCK)
        capture.send_signal(signal.SIGTERM)
        err = await asyncio.wait_for(capture.stderr.read(), SECONDS)
        assert await asyncio.wait_for(capture.wait(), SECONDS) == 1
        assert "its last block is cut" in err.decode()
        os.close(read)


PAGE, BLOCK = 4096, 100
"""Bytes of the smallest pipe (F_SETPIPE_SZ of fcntl(2)), and less than those of a frame's block."""


async def test_a_backend_that_is_killed(xen: Path, tmp_path: Path) -> None:
    """One line says so, and every block is whole."""
    path = tmp_path / "frames.pcapng"
    async with (
        running("serving domain 0", "run", "--dir", xen, "--net", "null") as backend,
        join(xen) as guest,
    ):
        assert (await run("attach", guest.domid, "--net", "null", "--dir", xen))[0] == 0
        await guest.connect()
        capture = await start("capture", "-w", path, "--dir", xen)
        await written(path, 1)
        for _ in range(3):
            assert await guest.answer(guest.send(FRAME)) == 0
        backend.kill()
        _, err = await asyncio.wait_for(capture.communicate(), SECONDS)
    assert capture.returncode == 1
    assert err.decode().splitlines() == [
        "netback: 3 frames captured, none lost", f"netback: {xen / 'control.sock'}: the backend ended",
    ]  # fmt: skip
    assert len(fields_of(path, "frame.number")) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("vif9.9",), "there is no device vif9.9"),
        (("9",), "domain 9"),
        (("--snaplen", "-1"), "--snaplen"),
        (("--queue", "x"), "--queue"),
        (("--direction", "up"), "--direction"),
        (("-w", "/nonexistent/x"), "/nonexistent/x"),
        (("-w", "/dev/full"), "No space left on device"),
    ],
)
async def test_one_line_for_each_mistake(
    xen: Path, backend: Backend, words: tuple[str, ...], said: str
) -> None:
    code, out, err = await run("capture", *words, "--dir", xen)
    assert (code in (1, 2), out) == (True, "")
    assert said in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if "captured" not in line]) == 1


async def test_without_a_backend(tmp_path: Path) -> None:
    code, _, err = await run("capture", "--dir", tmp_path)
    assert (code, len(err.splitlines())) == (75, 1)
    assert "no backend listens" in err


async def test_frames_that_the_backend_keeps(
    xen: Path, name: DeviceName, guest: Guest, network: PythonNetwork, tmp_path: Path
) -> None:
    path = tmp_path / "kept.pcapng"
    at = ("--dir", xen)
    code, out, _ = await run("set", name, "--pcap", f"{path},snaplen=64", *at)
    assert (code, out) == (0, f"{name}: tx none, rx none, carrier, pcap {path}\n")
    await exchange(guest, network)
    await until(lambda: b"RX ring" in path.read_bytes())
    assert re.search(rf"^pcap +{path}, 2 frames$", (await run("show", name, *at))[1], re.MULTILINE)
    assert (await run("set", name, "--no-pcap", *at))[1] == f"{name}: tx none, rx none, carrier\n"
    assert len(fields_of(path, "frame.number")) == 2
    code, _, err = await run("set", name, "--pcap", path, "--no-pcap", *at)
    assert (code, err) == (2, "netback: --pcap and --no-pcap contradict each other: give one of them\n")


async def written(path: Path, least: int = 2000) -> None:
    """Wait until a file has so many bytes."""
    await until(lambda: path.exists() and path.stat().st_size >= least)


# ---- extcap


def global_extcaps() -> str:
    """Where this Wireshark looks for every user's."""
    shown = subprocess.run(["tshark", "-G", "folders"], check=True, capture_output=True, text=True).stdout
    folders = dict(line.split(":", 1) for line in shown.splitlines())
    return (folders.get("Global Extcap path") or folders["Extcap path"]).strip()


@contextmanager
def installed(xen: Path, tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """How to run tshark that finds netback's extcap. Wireshark of root looks in its own directory alone, so that is
    another one in a mount namespace.
    """
    place, home = tmp_path / "extcap", tmp_path / "home"
    place.mkdir()
    home.mkdir()
    environment = {"HOME": str(home), "WIRESHARK_EXTCAP_DIR": str(place), "PATH": "/usr/bin:/bin"}
    tool: tuple[str, ...] = ("env", *(f"{key}={value}" for key, value in environment.items()))
    if os.getuid() == 0:
        shared = f'mount --bind {place} {global_extcaps()} && exec "$@"'
        tool = ("unshare", "-m", "sh", "-c", shared, "sh", *tool)
    netback = shutil.which("netback", path=str(Path(sys.executable).parent))
    assert netback is not None
    done = subprocess.run(
        [*tool, netback, "extcap", "--install", "--dir", xen], check=True, capture_output=True
    )
    assert str(home / ".local/lib/wireshark/extcap/netback").encode() in done.stdout
    assert os.access(home / ".local/lib/wireshark/extcap/netback", os.X_OK)
    yield tool


async def tshark(tool: tuple[str, ...], *words: str) -> str:
    """What it prints; it must end well."""
    process = await asyncio.create_subprocess_exec(*tool, "tshark", *words, stdout=PIPE, stderr=PIPE)
    out, err = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode == 0, err.decode()
    assert b"Error by extcap" not in err
    return out.decode()


async def test_wireshark_lists_devices_and_captures(
    xen: Path, name: DeviceName, guest: Guest, network: PythonNetwork, tmp_path: Path
) -> None:
    """Through the fifo that it makes, under load, with an option of the dialog; nothing of it stays."""
    path = tmp_path / "shark.pcapng"
    with installed(xen, tmp_path) as tool:
        listed = await tshark(tool, "-D")
        assert f"netback:{name} (netback: {name}" in listed
        assert "netback (netback: every device)" in listed
        async with loaded(guest, network):
            option = f"extcap.netback_{str(name).replace('.', '_')}.direction:tx"
            await tshark(tool, "-o", option, "-i", f"netback:{name}", "-c", "50", "-w", str(path))
        found = fields_of(path, "frame.interface_name", "frame.comment", "frame.packet_flags_direction")
    assert len(found) == 50
    assert found[0][0].endswith(f"{name} tx")
    assert found[0][1].startswith("TX ring slot")
    assert {each[2] for each in found} == {"0x00000001"}
    assert not left(xen)


def left(xen: Path) -> list[str]:
    """Processes of an extcap of this directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"extcap" in words and os.fsencode(xen) in words:
            found.append(process.name)
    return found


async def test_what_wireshark_asks(xen: Path, name: DeviceName) -> None:
    code, out, _ = await run("extcap", "--extcap-interfaces", "--extcap-version=4.4", "--dir", xen)
    assert code == 0
    assert out.splitlines()[0].startswith("extcap {version=")
    assert f"interface {{value=netback:{name}}}" in out
    at = ("--extcap-interface", f"netback:{name}", "--dir", str(xen))
    assert (await run("extcap", "--extcap-dlts", *at))[1] == "dlt {number=1}{name=EN10MB}{display=Ethernet}\n"
    code, out, _ = await run("extcap", "--extcap-config", *at)
    assert [line.split("{call=")[1].split("}")[0] for line in out.splitlines() if "{call=" in line] == [
        *WORDS
    ]


async def test_without_a_backend_there_is_an_interface_whose_dialog_names_the_directory(
    tmp_path: Path,
) -> None:
    code, out, err = await run("extcap", "--extcap-interfaces", "--dir", tmp_path)
    assert (code, len(err.splitlines())) == (0, 1)
    assert out.splitlines()[1:] == ["interface {value=netback}{display=netback: every device}"]


@pytest.mark.parametrize("number", [signal.SIGTERM, None])
async def test_the_end_of_an_extcap(xen: Path, backend: Backend, tmp_path: Path, number: int | None) -> None:
    """By a signal, or because Wireshark closes the fifo; no word, which Wireshark would show as an error."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    extcap = await start("extcap", "--capture", "--extcap-interface", "netback", "--fifo", fifo, "--dir", xen)
    reader = await asyncio.to_thread(os.open, fifo, os.O_RDONLY)
    assert await asyncio.to_thread(os.read, reader, 4) == b"\n\r\r\n"
    if number is not None:
        extcap.send_signal(number)
    else:
        os.close(reader)
    out, err = await asyncio.wait_for(extcap.communicate(), SECONDS)
    assert (extcap.returncode, out, err) == (0, b"", b"")
    if number is not None:
        os.close(reader)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Wireshark runs this"),
        (("--extcap-dlts", "--extcap-interface", "eth0"), "Wireshark runs this"),
        (("--extcap-interface", "netback"), "nothing to do"),
        (
            ("--extcap-interface", "netback", "--capture", "--fifo", "/x", "--queue", "one"),
            "is no number of a queue",
        ),
        (
            ("--extcap-interface", "netback", "--capture", "--fifo", "/x", "--extcap-capture-filter", "tcp"),
            "filter",
        ),
        (("--extcap-interface", "netback:vif9.9", "--capture", "--fifo", "/x"), "there is no device vif9.9"),
        (("--extcap-interface", "netback", "--capture", "--fifo", "/nonexistent/x"), "/nonexistent/x"),
    ],
)
async def test_what_wireshark_does_not_ask(
    xen: Path, backend: Backend, words: tuple[str, ...], said: str
) -> None:
    code, out, err = await run("extcap", *words, "--dir", xen)
    assert (code in (1, 2), out, len(err.splitlines())) == (True, "", 1)
    assert said in err
