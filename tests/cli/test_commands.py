# SPDX-License-Identifier: Apache-2.0
"""The commands as processes: exit codes, one line per failure, and kill -9."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from importlib import metadata
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState as State
from tests.cli.commands import run, running, start
from tests.vif.guest import FRAME, SECONDS, Guest, join, until_state


@pytest.fixture
async def guest(xen: Path) -> AsyncIterator[Guest]:
    async with join(xen) as guest:
        yield guest


def test_help_names_every_command() -> None:
    code, out, _ = asyncio.run(run("--help"))
    assert code == 0
    for command in ("emulate", "run", "attach", "detach", "list", "guest", "unit", "demo"):
        assert re.search(rf"^  {command} ", out, re.MULTILINE)


def test_the_files_for_a_system_are_printed() -> None:
    program = Path(sys.executable).parent / "netback"  # no virtual environment is active
    unit = subprocess.run([program, "unit"], check=True, capture_output=True, text=True, env={"PATH": "/bin"})
    assert f"ExecStart={program} run" in unit.stdout
    code, modprobe, _ = asyncio.run(run("unit", "--modprobe"))
    assert (code, modprobe.splitlines()[-1]) == (0, "install xen-netback /bin/false")
    code, drop_in, _ = asyncio.run(run("unit", "--hotplug"))
    assert (code, "[Service]" in drop_in, "ExecStart" in drop_in) == (0, True, False)


def test_version_is_the_package_s() -> None:
    assert asyncio.run(run("--version"))[:2] == (0, f"netback {metadata.version('netback')}\n")


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("run", "--net", "wire"), 2, "network 'wire': unknown kind 'wire'"),
        (("run", "--trace", "tx"), 2, "no trace point matches 'tx'"),
        (("attach", "1", "--net", "packet"), 2, "network 'packet': it names no link"),
        (("attach", "77", "--net", "null"), 2, "there is no domain 77"),
        (("attach", "nobody", "--net", "null"), 2, "no domain is named 'nobody'"),
        (("attach", "0", "--net", "null"), 2, "domain 0 is the backend's own"),
        (
            ("attach", "0", "--net", "null", "--force", "--mac", "1:2"),
            2,
            "failed to parse MAC address: '1:2'",
        ),
        (
            ("attach", "0", "--net", "null", "--force", "--mac", "01:00:5e:00:00:01"),
            2,
            "a NIC cannot have a multicast or broadcast MAC address: '01:",
        ),
        (
            ("attach", "0", "--net", "null", "--force", "--mac", "ff:ff:ff:ff:ff:ff"),
            2,
            "a NIC cannot have a multicast or broadcast MAC address: 'ff:",
        ),
        (
            ("attach", "0", "--net", "null", "--force", "--mac", "00:00:00:00:00:00"),
            2,
            "a NIC cannot have the MAC address of zeros: '00:",
        ),
        (("detach", "0"), 2, "domain 0 has no such device"),
    ],
)
async def test_one_line_for_each_mistake(
    xen: Path, arguments: tuple[str, ...], code: int, reason: str
) -> None:
    found, out, err = await run(*arguments, "--dir", xen)
    assert (found, out, err.count("\n")) == (code, "", 1), err
    assert err.startswith(f"netback: {reason}")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("attach",), "Missing argument 'DOMAIN'; see netback attach --help"),
        (("attach", "1"), "Missing option '--net'; see netback attach --help"),
        (("guest",), "Missing option '--net'; see netback guest --help"),
        (("list", "--nonsense"), "No such option"),
        (("nonsense\x1b",), r"No such command 'nonsense\x1b'; see netback --help"),
        (("run", "--workers", "0"), "Invalid value for '--workers': "),
        (("guest", "--net", "null", "--like", "beos"), "there is no frontend 'beos'; there are linux-5.10, "),
        (("lab", "run"), "Missing argument 'SCENARIO'; see netback lab run --help"),
    ],
)
async def test_one_line_for_wrong_words(arguments: tuple[str, ...], reason: str) -> None:
    code, out, err = await run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"netback: {reason}")


async def test_without_a_command_the_help_is_shown() -> None:
    code, out, err = await run()
    assert (code, "attach" in out + err) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [("run",), ("attach", "1", "--net", "null"), ("detach", "1"), ("list",), ("guest", "--net", "null")],
)
async def test_no_xen_here(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """A missing store may appear later: EX_TEMPFAIL tells the caller to try again."""
    code, _, err = await run(*arguments, "--dir", tmp_path / "none")
    assert (code, err.count("\n")) == (os.EX_TEMPFAIL, 1)
    assert str(tmp_path / "none") in err


async def test_domain_0_gets_a_device_where_it_is_asked_for(xen: Path) -> None:
    """The kernel of the backend's own domain would take the device, so this needs `--force`."""
    assert (await run("attach", "0", "--net", "null", "--dir", xen))[0] == 2
    assert (await run("list", "--json", "--dir", xen))[1] == "[]\n"
    assert (await run("attach", "0", "--net", "null", "--force", "--dir", xen))[:2] == (0, "vif0.0\n")


async def test_print_env(tmp_path: Path) -> None:
    code, out, _ = await run("emulate", "--print-env", "--dir", tmp_path)
    assert (code, out) == (0, f"export XENSTORED_PATH='{tmp_path}/xenstored.sock'\n")


async def test_a_c_program_finds_its_header(tmp_path: Path) -> None:
    """As in `cc $(netback emulate --cflags)`, from any directory."""
    code, out, _ = await run("emulate", "--cflags")
    assert (code, out.count("\n")) == (0, 1)
    (tmp_path / "own.c").write_text(
        '#include "netback/emulated_xen.h"\nint main(void) { return EXEN_VERSION != 1; }\n'
    )
    build = f"cc -std=c11 {out.strip()} -o own own.c && ./own"
    program = await asyncio.create_subprocess_shell(build, cwd=tmp_path)
    assert await program.wait() == 0


async def test_the_directory_is_found_by_the_environment(xen: Path) -> None:
    for environment in ({"XENSTORED_PATH": f"{xen}/xenstored.sock"}, {"XDG_RUNTIME_DIR": str(xen.parent)}):
        code, out, err = await run("list", "--json", **environment)
        assert (code, out) == (0, "[]\n") or f"{xen.parent}/netback/control.sock" in err


async def test_two_backends(xen: Path) -> None:
    async with running("serving domain 0", "run", "--dir", xen):
        code, _, err = await run("run", "--dir", xen)
        assert (code, err.count("\n")) == (2, 1)
        assert "another netback serves domain 0" in err


async def sends(guest: Guest) -> None:
    assert await guest.answer(guest.send(FRAME)) == 0


async def test_a_backend_that_is_killed(xen: Path, guest: Guest) -> None:
    """Two processes share only the directory, the configuration and the rings."""
    serve = ("run", "--platform", "emulated", "--dir", xen, "--workers", "1")
    async with running("serving domain 0", *serve) as backend:
        assert (await run("attach", str(guest.domid), "--net", "null", "--dir", xen))[
            1
        ] == f"vif{guest.domid}.0\n"
        await guest.connect()
        await sends(guest)
        backend.kill()
        await backend.wait()
    waiting = guest.send(FRAME)
    async with running("serving domain 0", *serve):
        assert await guest.answer(waiting) == 0
        await sends(guest)
        assert await guest.store.read(f"{await guest.backend()}/state") == "4"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_a_backend_that_is_ended(xen: Path, guest: Guest, how: signal.Signals) -> None:
    """It ends at once, and the guest sees no change."""
    async with running("serving domain 0", "run", "--dir", xen, "--net", "null") as backend:
        await run("attach", str(guest.domid), "--net", "null", "--type", "qnic", "--dir", xen)
        await guest.connect()
        await sends(guest)
        backend.send_signal(how)
        assert await backend.wait() == 0
    assert await guest.store.read(f"{await guest.backend()}/state") == "4"


async def test_the_stores_end_is_the_backends(tmp_path: Path) -> None:
    async with running("emulated Xen in", "emulate", "--dir", tmp_path) as emulator:
        backend = await start("run", "--dir", tmp_path)
        assert backend.stderr is not None
        assert b"serving domain 0" in await backend.stderr.readline()
        emulator.terminate()
        await emulator.wait()
        _, err = await backend.communicate()
        assert (backend.returncode, err.count(b"\n")) == (os.EX_TEMPFAIL, 1), err.decode()
        assert err.startswith(b"netback: xenstore: ")


async def test_attach_list_detach(xen: Path, guest: Guest) -> None:
    async with running("serving domain 0", "run", "--dir", xen, "--trace", "xen_netdev_[cd]*") as backend:
        mac = ("--mac", "00:16:3e:00:00:07")
        code, out, _ = await run(
            "attach", str(guest.domid), "--net", "null", "--type", "qnic", "--index", "0", *mac, "--dir", xen
        )
        assert (code, out) == (0, f"qnic{guest.domid}.0\n")
        await guest.connect()
        await sends(guest)
        _, out, _ = await run("list", "--json", "--dir", xen)
        (device,) = json.loads(out)
        counters = device.pop("counters")
        assert counters["tx_frames"] == 1
        assert device.pop("queue_counters") == [counters]
        assert device.pop("rings")["tx"]["rsp_prod"] == 1
        assert device == {
            "device": f"qnic{guest.domid}.0", "type": "qnic", "domid": guest.domid, "index": "0",
            "guest": await guest.store.read(f"/local/domain/{guest.domid}/name"),
            "backend": "Connected", "frontend": "Connected", "net": "null", "mac": "00:16:3e:00:00:07",
            "online": "1", "hotplug-status": "connected", "error": None, "network": "null", "queues": 1,
            "stalled": None, "drops": {}, "queued": {},
            "tx_rate": None, "rx_rate": None, "bridge": None, "mtu": None, "path": None, "link": True, "pcap": None,
            "record": "off",
            "recording": None,
            "filters": [],
            "features": {"request-rx-copy": "1", "feature-rx-notify": "1", "feature-sg": "1"},
        }  # fmt: skip
        _, out, _ = await run("list", "--dir", xen)
        assert re.search(
            rf"^qnic{guest.domid}\.0 +\S+ +Connected +null +- +60B +0B +- +0$", out, re.MULTILINE
        )
        device_words = (str(guest.domid), "--dir", xen)
        counted = json.loads((await run("stats", *device_words, "--json"))[1])
        assert (counted["total"], counted["queues"]) == (counters, [counters])
        assert re.search(
            r"^tx_frames +1 +1 +frames given to the network", (await run("stats", *device_words))[1], re.M
        )
        rings = json.loads((await run("rings", *device_words, "--json"))[1])
        assert [(ring["ring"], ring["pending"], len(ring["slots"])) for ring in rings] == [
            ("tx", 0, 1),
            ("rx", 0, 0),
        ]
        assert (await run("rings", *device_words))[1].startswith("tx: 0 of 256 pending; ")
        leaving = asyncio.create_task(run("detach", str(guest.domid), "--dir", xen))
        await until_state(guest.store, await guest.backend(), State.CLOSING)
        await guest.set_state(State.CLOSED)
        assert await leaving == (0, f"qnic{guest.domid}.0\n", "")
        backend.terminate()
        await backend.wait()
        assert not (xen / "control.sock").exists()
        assert backend.stderr is not None
        traced = (await backend.stderr.read()).decode()
    for point in ("create", "connect", "disconnect", "destroy"):
        assert f"xen_netdev_{point} dev=qnic{guest.domid}.0" in traced
    assert "xen_netdev_realize" not in traced


async def test_a_list_without_a_backend(xen: Path, guest: Guest) -> None:
    """Also beside the socket that a killed process left."""
    async with running("serving domain 0", "run", "--dir", xen) as backend:
        await run("attach", str(guest.domid), "--net", "null", "--dir", xen)
        backend.kill()
        await backend.wait()
    assert (xen / "control.sock").exists()
    (device,) = json.loads((await run("list", "--json", "--dir", xen))[1])
    assert (device["backend"], device["counters"], device["rings"]) == ("InitWait", None, None)
    for command in ("stats", "rings"):
        code, _, err = await run(command, str(guest.domid), "--dir", xen)
        reason = f"netback: no backend listens at {xen}/control.sock: start netback run\n"
        assert (code, err) == (os.EX_TEMPFAIL, reason)
    async with running("serving domain 0", "run", "--dir", xen):
        (device,) = json.loads((await run("list", "--json", "--dir", xen))[1])
        assert device["counters"] == {}
        assert (await run("rings", str(guest.domid), "--dir", xen))[
            1
        ] == f"vif{guest.domid}.0: no guest is connected\n"


async def test_detach_says_that_it_was_forced(xen: Path, guest: Guest) -> None:
    async with running("serving domain 0", "run", "--dir", xen):
        await run("attach", str(guest.domid), "--net", "null", "--dir", xen)
        await guest.connect()
        code, out, _ = await run("detach", str(guest.domid), "--seconds", "0.1", "--dir", xen)
    assert (code, out) == (0, f"vif{guest.domid}.0 (forced: the guest did not answer)\n")


async def test_a_guest_of_our_own(xen: Path) -> None:
    """`netback guest` and `netback run`, connected by the guest's name; the guest's end is its domain's end."""
    async with running("serving domain 0", "run", "--dir", xen) as backend:
        guest = await start("guest", "--dir", xen, "--net", "null", "--name", "alice", "--domid", "5")
        assert guest.stdout is not None
        assert await guest.stdout.readline() == b"domain 5\n"
        assert (await run("attach", "alice", "--net", "null", "--dir", xen))[1] == "vif5.0\n"
        await until_connected(guest)
        guest.kill()
        await guest.communicate()
        async with asyncio.timeout(SECONDS):
            while (await run("list", "--json", "--dir", xen))[1] != "[]\n":
                assert backend.returncode is None


async def until_connected(guest: asyncio.subprocess.Process) -> None:
    """Wait for the line of `netback guest` that says so."""
    assert guest.stderr is not None
    async with asyncio.timeout(SECONDS):
        while b"backend Connected" not in await guest.stderr.readline():
            assert guest.returncode is None


async def test_a_guest_like_another(xen: Path) -> None:
    """iPXE goes straight to Closed, then begins again."""
    async with running("serving domain 0", "run", "--dir", xen):
        guest = await start("guest", "--like", "ipxe", "--dir", xen, "--net", "null", "--domid", "5")
        assert (await run("attach", "guest-5", "--net", "null", "--dir", xen))[1] == "vif5.0\n"
        await until_connected(guest)
        guest.terminate()
        _, err = await guest.communicate()
    wrote = [line for line in err.decode().splitlines() if line.startswith("frontend")]
    assert (guest.returncode, wrote) == (0, ["frontend Closed", "frontend Initialising"])


async def test_a_guest_with_hashes_and_staged_buffers(xen: Path) -> None:
    """Two lists of grants and six messages for the hash; none is refused."""
    async with running("serving domain 0", "run", "--dir", xen):
        guest = await start("guest", "--hash", "--stage", "--dir", xen, "--net", "null", "--domid", "5")
        await run("attach", "guest-5", "--net", "null", "--dir", xen)
        async with asyncio.timeout(SECONDS):
            counters: dict[str, int] = {}
            while counters.get("ctrl_requests") != 8:
                assert guest.returncode is None
                (device,) = json.loads((await run("list", "--json", "--dir", xen))[1])
                counters = device["counters"]
        assert counters["ctrl_refused"] == 0
        guest.terminate()
        await guest.communicate()


async def test_attach_waits_for_a_guest_that_was_just_started(xen: Path) -> None:
    """Two commands in a row, as in a script: the guest has not joined when `attach` starts."""
    attaching = asyncio.create_task(run("attach", "guest-1", "--net", "null", "--dir", xen))
    await asyncio.sleep(0)
    async with join(xen):
        code, out, err = await attaching
    assert (code, out) == (0, "vif1.0\n"), err
