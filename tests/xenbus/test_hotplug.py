# SPDX-License-Identifier: Apache-2.0
"""Hotplug scripts that netback runs: the order and environment of udev and libxl, and scripts that go wrong."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState as State
from netback.daemon import Backend, BackendConfig
from netback.net.python import PythonNetwork
from netback.platforms.emulated import EmulatedDomain, EmulatedPlatform
from netback.xenbus import scripts
from netback.xenbus.names import DeviceName
from netback.xenbus.scripts import HotplugConfig, ScriptError, Scripts, check_script
from netback.xenstore.aio import Store
from tests.vif.guest import SECONDS, Guest, exchange, join, readable, serving, until, until_state
from tests.xenbus.toolstack import add, gone, looked, passing, take_away

CONNECT = 'test "$1" != online || xenstore-write "$XENBUS_PATH/hotplug-status" connected\n'


class Files:
    """A directory of scripts, and the file in which each writes what it was called with."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "scripts"
        self.directory.mkdir(mode=0o755)
        self.calls = directory / "calls"

    def write(self, name: str, body: str, *, shell: str = "/bin/sh") -> str:
        """A script that records its call, then does `body`; returns its path."""
        path = self.directory / name
        path.write_text(f"#!{shell}\necho $1 $2 $vif $XENBUS_PATH >>{self.calls}\n{body}")
        path.chmod(0o755)
        return str(path)

    def config(self, seconds: float = SECONDS) -> HotplugConfig:
        return HotplugConfig(seconds, (str(self.directory),))

    def called(self) -> list[str]:
        """The actions so far."""
        return [line.partition(" ")[0] for line in self.lines()]

    def lines(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
async def backend(xen: Path, network: PythonNetwork, files: Files) -> AsyncIterator[Backend]:
    """A backend that runs scripts."""
    async with serving(xen, network, hotplug=files.config()) as backend:
        yield backend


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def remove(backend: Backend, guest: Guest, name: DeviceName) -> None:
    """What libxl and the guest do to remove a device."""
    await take_away(backend.store, name)
    await guest.set_state(State.CLOSED)
    await gone(backend, name)


async def test_the_order_and_what_a_script_is_told(
    backend: Backend, guest: Guest, files: Files, network: PythonNetwork
) -> None:
    """`add` and `online`, then the guest connects; `offline` and `remove` when the device goes, each once."""
    script = files.write("vif-test", f"env >{files.directory}/$1\n{CONNECT}")
    name = await add(
        backend.store, guest.domid, script=script, hotplug_status="", gatewaydev="eth7", type="vif_ioemu"
    )
    await guest.connect()
    await exchange(guest, network)
    assert files.called() == ["add", "online"]
    await guest.set_state(State.CLOSED)
    await until_state(guest.store, name.backend, State.CLOSED)
    await guest.set_state(State.INITIALISING)
    await guest.connect()
    assert files.called() == ["add", "online"]
    await remove(backend, guest, name)
    path = f"backend/vif/{guest.domid}/0"
    assert files.lines() == [
        f"{action} type_if=vif {name.link} {path}" for action in ("add", "online", "offline", "remove")
    ]
    for action in files.called():
        given = dict(line.split("=", 1) for line in (files.directory / action).read_text().splitlines())
        assert {key: value for key, value in given.items() if key not in ("PWD", "SHLVL", "_", "OLDPWD")} == {
            "PATH": scripts.PATH,
            "XENSTORED_PATH": str(backend.config.directory / "xenstored.sock"),
            "ACTION": action,
            "SUBSYSTEM": "xen-backend",
            "XENBUS_TYPE": "vif",
            "XENBUS_PATH": path,
            "XENBUS_BASE_PATH": "backend",
            "script": script,
            "vif": name.link,
            "netdev": "eth7",
            "INTERFACE": f"{name.link}-emu",
        }
    assert await backend.store.read_or(f"{name.backend}/hotplug-status") is None
    assert await backend.store.read_or(f"{name.backend}/online") == "0"  # the toolstack's own to remove


async def test_the_guest_waits_for_the_script(backend: Backend, guest: Guest, files: Files) -> None:
    """hotplug-status is what the script writes, even after its end, by a process that it left."""
    script = files.write("vif-slow", "")
    name = await add(backend.store, guest.domid, script=script)
    await guest.connect(wait=False)
    await looked(backend, backend.devices[name], State.CONNECTED)
    await passing(backend, lambda: files.called() == ["add", "online"])
    assert backend.devices[name].state is State.INIT_WAIT
    await backend.store.write(f"{name.backend}/hotplug-status", "connected")
    await until_state(guest.store, name.backend, State.CONNECTED)


async def test_a_toolstack_s_script_is_not_touched(
    xen: Path, network: PythonNetwork, guest: Guest, files: Files
) -> None:
    async with serving(xen, network) as backend:
        name = await add(
            backend.store, guest.domid, script=files.write("vif-test", CONNECT), hotplug_status=""
        )
        await guest.connect(wait=False)
        await looked(backend, backend.devices[name], State.CONNECTED)
        await backend.store.write(f"{name.backend}/hotplug-status", "connected")
        await until_state(guest.store, name.backend, State.CONNECTED)
        await remove(backend, guest, name)
        assert await backend.store.read(f"{name.backend}/hotplug-status") == "connected"
    assert files.called() == []


def missing(files: Files) -> str:
    return str(files.directory / "vif-none")


def plain(files: Files) -> str:
    path = Path(files.write("vif-plain", ""))
    path.chmod(0o644)
    return str(path)


def elsewhere(files: Files) -> str:
    return "/bin/true"


def above(files: Files) -> str:
    return f"{files.directory}/../../../bin/true"


def linked_away(files: Files) -> str:
    (files.directory / "bin").symlink_to("/bin")
    return f"{files.directory}/bin/true"


def shared(files: Files) -> str:
    path = Path(files.write("vif-shared", ""))
    path.chmod(0o777)
    return str(path)


def directory(files: Files) -> str:
    return str(files.directory)


def body(text: str, *, shell: str = "/bin/sh") -> Callable[[Files], str]:
    def write(files: Files) -> str:
        return files.write("vif-bad", text, shell=shell)

    return write


BAD = {
    "missing": (missing, "cannot be found: No such file or directory (ENOENT)"),
    "not executable": (plain, "is not executable: chmod +x it"),
    "elsewhere": (elsewhere, "is not below {directory}: see hotplug_directories"),
    "above": (above, "is no absolute path"),
    "linked away": (linked_away, "is not below {directory}: see hotplug_directories"),
    "shared": (shared, "is not run: other users may change {directory}/vif-shared"),
    "relative": (lambda files: "vif-bridge", "is no absolute path"),
    "directory": (directory, "is not below {directory}: see hotplug_directories"),
    "no interpreter": (body("", shell="/none"), "add cannot be started: No such file or directory (ENOENT)"),
    "exit code": (body("echo no bridge xenbr9 >&2; exit 3"), "online exited with 3: no bridge xenbr9"),
    "exit code, silent": (body("exit 3"), "online exited with 3"),
    "signal": (body("kill -SEGV $$"), "online was killed by SIGSEGV"),
    "escapes": (body(r"printf '\033[2J\377\n'; exit 1"), r"online exited with 1: \x1b[2J\xff"),
    "hangs": (body("echo waiting; sleep 1000"), "add did not end within 0.3 s and was killed: waiting"),
    "hangs, deaf": (
        body("trap '' TERM; while :; do sleep 1000; done"),
        "add did not end within 0.3 s and was killed",
    ),
    "floods": (body("yes"), "add printed more than 65536 bytes and was killed"),
    "no status": (body(""), "online ended, but hotplug-status was not 'connected' within 0.3 s"),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_script_that_goes_wrong(
    xen: Path, network: PythonNetwork, files: Files, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    """One error, in the log and in the nodes; the device beside it connects."""
    make, reason = BAD[case]
    script = make(files)
    good = files.write("vif-good", CONNECT)
    config = files.config(0.3 if "0.3" in reason else SECONDS)
    async with serving(xen, network, hotplug=config) as backend, join(xen) as guest, join(xen) as other:
        name = await add(backend.store, guest.domid, script=script, hotplug_status="")
        beside = await add(backend.store, other.domid, net="null")
        await other.connect()
        await until(backend.store, f"{name.backend}/hotplug-status", lambda status: status == "error")
        text = f"{script} {reason.format(directory=files.directory)}"
        assert await backend.store.read(f"{name.backend}/hotplug-error") == text
        error = await until(backend.store, f"{name.errors}/error", bool)
        assert f"the hotplug script failed: {text}".startswith((error or "").removesuffix("..."))
        await guest.connect(wait=False)
        await looked(backend, backend.devices[name], State.CONNECTED)
        assert backend.devices[name].state is State.INIT_WAIT
        assert backend.devices[beside].state is State.CONNECTED
        assert len(warnings(caplog)) == 1
        await backend.store.write(f"{name.backend}/script", good)
        await backend.store.write(f"{name.backend}/hotplug-status", "")
        await until_state(guest.store, name.backend, State.CONNECTED)


async def test_a_value_that_no_environment_can_have(
    backend: Backend, guest: Guest, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    name = await add(backend.store, guest.domid, script=files.write("vif-test", CONNECT), gatewaydev="a\0b")
    error = await until(backend.store, f"{name.errors}/error", bool)
    assert (error or "").endswith("add cannot be started: embedded null byte")
    assert len(warnings(caplog)) == 1


async def test_a_reason_that_the_script_gave(backend: Backend, guest: Guest, files: Files) -> None:
    """Xen's scripts write both nodes, xapi's the error alone."""
    for number, status in enumerate(("", '"$XENBUS_PATH/hotplug-status" error')):
        body = f'xenstore-write "$XENBUS_PATH/hotplug-error" "no br0" {status}\nexit 1\n'
        script = files.write(f"vif-{number}", f"test $1 != online && exit\n{body}")
        name = await add(backend.store, guest.domid, number=str(number), net="null", script=script)
        assert await until(backend.store, f"{name.errors}/error", bool) == "the hotplug script failed: no br0"
        assert await backend.store.read(f"{name.backend}/hotplug-status") == "error"


async def test_a_daemon_that_keeps_the_output(backend: Backend, guest: Guest, files: Files) -> None:
    """It neither delays the script's end nor is it killed."""
    leave = f"test $1 != online || {{ sleep 1000 & echo $! >{files.directory}/pid; }}\n"
    name = await add(backend.store, guest.domid, script=files.write("vif-dhcpd", f"{CONNECT}{leave}"))
    await guest.connect()
    await passing(backend, (files.directory / "pid").exists)
    daemon = int((files.directory / "pid").read_text())
    try:
        await remove(backend, guest, name)
        assert files.called() == ["add", "online", "offline", "remove"]
        os.kill(daemon, 0)
    finally:
        os.kill(daemon, signal.SIGKILL)


async def test_a_script_that_runs_while_its_device_goes(backend: Backend, guest: Guest, files: Files) -> None:
    """It is killed, and cleans up."""
    script = files.write("vif-hangs", "test $1 != online || sleep 1000\n")
    name = await add(backend.store, guest.domid, script=script, hotplug_status="")
    await passing(backend, lambda: "online" in files.called())
    await remove(backend, guest, name)
    assert files.called() == ["add", "online", "offline", "remove"]


async def test_a_directory_that_goes_before_the_script(backend: Backend, guest: Guest, files: Files) -> None:
    """What the script writes there does not stay."""
    complain = 'test $1 != offline || xenstore-write "$XENBUS_PATH/hotplug-error" "no br0"\n'
    name = await add(backend.store, guest.domid, script=files.write("vif-test", f"{CONNECT}{complain}"))
    await guest.connect()
    await backend.store.rm(name.backend)
    await gone(backend, name)
    assert files.called() == ["add", "online", "offline", "remove"]
    assert await backend.store.children("/local/domain/0/backend/vif") == []


@pytest.mark.parametrize("status", ["", None, "connected", "error"])
async def test_what_the_next_backend_finds(
    xen: Path, network: PythonNetwork, guest: Guest, files: Files, status: str | None
) -> None:
    """What ran is not run again; what did not run to its end is."""
    script = files.write("vif-test", CONNECT)
    async with serving(xen, network) as backend:  # which runs none
        name = await add(backend.store, guest.domid, script=script, hotplug_status=status)
        await until_state(guest.store, name.backend, State.INIT_WAIT)
    async with serving(xen, network, hotplug=files.config()) as backend:
        if status == "error":
            await guest.connect(wait=False)
            await looked(backend, backend.devices[name], State.CONNECTED)
        else:
            await guest.connect()
        begun = [] if status else ["add", "online"]
        assert files.called() == begun
    async with serving(xen, network, hotplug=files.config()) as backend:
        await remove(backend, guest, name)
        assert files.called() == [*begun, "offline", "remove"]
        assert await backend.store.read_or(f"{name.backend}/hotplug-status") is None
    async with serving(
        xen, network, hotplug=files.config()
    ) as backend:  # killed before the toolstack was done
        await gone(backend, name)
        assert files.called() == [*begun, "offline", "remove"]


async def test_a_driver_domain_without_xl_devd(xen: Path, network: PythonNetwork, files: Files) -> None:
    """dom0's libxl waits until the backend's directory is gone; `xl devd` removes it after the script."""
    script = files.write("vif-test", CONNECT)
    with EmulatedDomain.join(xen, domid=7), EmulatedPlatform(xen, domid=7) as platform:
        config = BackendConfig(xen, networks={"python:lan": network}, workers=1, hotplug=files.config())
        async with (
            Backend(platform, config),
            join(xen, backend=7) as guest,
            await Store.connect(xen / "xenstored.sock") as dom0,
        ):
            name = await add(dom0, guest.domid, backend=7, script=script, hotplug_status="")
            await guest.connect()
            await take_away(dom0, name)
            await guest.set_state(State.CLOSED)
            await until(dom0, f"{name.backend}/state", lambda state: state is None)
            assert files.called() == ["add", "online", "offline", "remove"]
            await until(dom0, name.backend.rpartition("/")[0], lambda value: value is None)


# ---- the runner


async def run(body: str, files: Files, seconds: float = SECONDS) -> list[str]:
    """What a script prints."""
    said: list[str] = []
    await Scripts().run((files.write("test", body),), {}, seconds, said.append)
    return said


INHERITED = """
import os, signal, sys
print(sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1])  # the last one is the listing's own
print(signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
print(os.getsid(0) == os.getpid(), os.getcwd(), oct(os.umask(0)), repr(sys.stdin.read()))
"""


async def test_what_a_child_inherits() -> None:
    """None of our descriptors, no blocked and no ignored signal; /dev/null to read; a session of its own."""
    held = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(held, True)
    former = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGCHLD})
    said: list[str] = []
    try:
        await Scripts().run((sys.executable, "-c", INHERITED), {}, SECONDS, said.append)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGTERM, former)
        os.close(held)
    assert said == ["[0, 1, 2]", "set() True", "True / 0o22 ''"]


async def test_the_output_is_bounded_and_printable(files: Files) -> None:
    said = await run("printf 'a\\033[31m\\n'; head -c 1000 /dev/zero | tr '\\0' x; echo; seq 100\n", files)
    assert said[0] == r"a\x1b[31m"
    assert said[1] == "x" * 197 + "..."
    assert len(said) == scripts.MAX_LINES + 1
    assert said[-1] == "(52 more lines)"


async def test_scripts_that_hang_delay_no_other(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than may run at once: each gives its place to others soon."""
    monkeypatch.setattr(scripts, "YOUNG_SECONDS", 0.05)
    pool = Scripts()
    hanging = files.write("hangs", "exec sleep 1000\n")
    tasks = [
        asyncio.create_task(pool.run((hanging,), {}, SECONDS, print)) for _ in range(2 * scripts.MAX_YOUNG)
    ]
    await asyncio.sleep(0)  # each is in line, or runs
    async with asyncio.timeout(SECONDS):
        await pool.run((files.write("quick", ""),), {}, SECONDS, print)
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_many_at_once_are_bounded(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than the bound start while all are young; all run in the end."""
    monkeypatch.setattr(scripts, "MAX_YOUNG", 3)
    monkeypatch.setattr(scripts, "YOUNG_SECONDS", SECONDS)
    waits = files.write("waits", f"until test -e {files.directory}/go; do sleep 0.01; done\n")
    pool, others = Scripts(), Scripts()
    tasks = [asyncio.create_task(pool.run((waits,), {}, SECONDS, print)) for _ in range(12)]
    await asyncio.sleep(0)  # each is in line, or runs
    async with asyncio.timeout(SECONDS):
        while len(files.called()) < 3:
            await others.run(("/bin/true",), {}, SECONDS, print)
    for _ in range(10):
        await others.run(("/bin/true",), {}, SECONDS, print)
    assert len(files.called()) == 3
    (files.directory / "go").touch()
    await asyncio.gather(*tasks)
    assert len(files.called()) == 12


async def test_the_whole_session_is_killed(files: Files) -> None:
    """What a hanging script started goes with it."""
    with pytest.raises(ScriptError, match="did not end"):
        await run(f"sh -c 'echo $$ >{files.directory}/pid; sleep 1000; true'\n", files, 0.3)
    child = int((files.directory / "pid").read_text())
    with suppress(ProcessLookupError):  # init reaps it, or has
        async with asyncio.timeout(SECONDS):
            await readable(os.pidfd_open(child))


def test_a_link_in_a_directory_of_scripts(files: Files, tmp_path: Path) -> None:
    """An administrator's link to a script elsewhere is that directory's content."""
    (files.directory / "vif-link").symlink_to("/bin/true")
    check_script(str(files.directory / "vif-link"), [str(files.directory)])
    (tmp_path / "as").symlink_to(files.directory)
    check_script(str(files.directory / "vif-link"), [str(tmp_path / "as")])
    below = files.directory / "a" / "b"
    below.mkdir(parents=True)
    (below / "vif-link").symlink_to("/bin/true")
    check_script(str(below / "vif-link"), [str(files.directory)])
    for shared in (below, files.directory / "a", files.directory):
        shared.chmod(0o777)
        with pytest.raises(ScriptError, match=f"other users may change {shared}$"):
            check_script(str(below / "vif-link"), [str(files.directory)])
        shared.chmod(0o755)
