# SPDX-License-Identifier: Apache-2.0
"""The emulated Xen of a directory as a process: only one at a time, nothing left afterwards, however it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from netback.errors import ConfigError, PlatformError
from netback.platforms.emulated import EmulatedDomain, EmulatedPlatform, Emulator, print_env
from netback.platforms.emulated.protocol import HYPERVISOR_SOCKET, STORE_SOCKET

PROGRAM = (
    "import asyncio, pathlib, sys; from netback.platforms.emulated import emulate;"
    "asyncio.run(emulate(pathlib.Path(sys.argv[1]), lambda: print('ready', flush=True)))"
)


@contextmanager
def emulating(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """An emulator in its own process, ready."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order_and_leaves_nothing(directory: Path, number: signal.Signals) -> None:
    with emulating(directory) as process:
        assert directory.stat().st_mode & 0o777 == 0o700
        guest = EmulatedDomain.join(directory)
        process.send_signal(number)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert not directory.exists()
        guest.close()


def test_a_directory_that_was_there_stays_with_what_others_put_in_it(directory: Path) -> None:
    directory.mkdir(0o700)
    (directory / "journal").write_text("kept")
    with Emulator(directory):
        assert (directory / STORE_SOCKET).is_socket()
    assert [path.name for path in directory.iterdir()] == ["journal"]


def test_what_a_killed_one_left_is_no_hindrance(directory: Path) -> None:
    with emulating(directory) as process:
        process.kill()
        process.wait()
    assert (directory / HYPERVISOR_SOCKET).is_socket()
    with Emulator(directory), EmulatedDomain.join(directory) as guest:
        assert guest.domid == 1
    assert list(directory.iterdir()) == []


def test_two_in_one_directory_is_one_clear_error(xen: Path) -> None:
    with pytest.raises(ConfigError, match="another `netback emulate` serves this directory"), Emulator(xen):
        pass
    with EmulatedDomain.join(xen) as guest:  # the first one is unharmed
        assert guest.domid == 1


def test_a_path_too_long_for_a_socket_is_one_clear_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="a UNIX socket's path has at most 107"),
        Emulator(tmp_path / ("x" * 108)),
    ):
        pass


def test_a_client_s_path_too_long_for_a_socket_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a UNIX socket's path has at most 107"):
        EmulatedDomain.join(tmp_path / ("x" * 108))


def test_a_directory_of_others_is_one_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="other users may write to it"), Emulator(tmp_path):
        pass


def test_a_link_in_the_place_of_a_socket_or_the_lock_leads_nowhere(directory: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    directory.mkdir(0o700)
    for name in (STORE_SOCKET, HYPERVISOR_SOCKET):
        (directory / name).symlink_to(victim)
    with Emulator(directory), EmulatedDomain.join(directory) as guest:
        assert guest.domid == 1
    (directory / "lock").symlink_to(victim)
    with pytest.raises(ConfigError, match="symbolic link"), Emulator(directory):
        pass
    assert victim.read_text() == "kept"


def test_a_path_that_is_no_directory_is_one_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "below"):
        with pytest.raises(ConfigError), Emulator(path):
            pass


def test_the_sockets_are_their_owner_s_alone(xen: Path) -> None:
    sockets = list(xen.glob("*.sock"))
    assert len(sockets) == 2
    assert {path.stat().st_mode & 0o777 for path in sockets} == {0o600}


def test_a_shell_evaluates_the_environment(tmp_path: Path) -> None:
    directory = tmp_path / "it's $HOME"
    script = f'{print_env(directory)}; printf %s "$XENSTORED_PATH"'
    shown = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert shown.stdout == str(directory / STORE_SOCKET)


def test_many_emulators_in_one_process(tmp_path: Path) -> None:
    here, there = tmp_path / "a", tmp_path / "b"
    with Emulator(here), Emulator(there), EmulatedDomain.join(here) as one, EmulatedDomain.join(there) as two:
        assert one.domid == two.domid == 1


def test_the_emulator_s_end_is_an_error_for_its_domains(directory: Path) -> None:
    with Emulator(directory):
        platform = EmulatedPlatform(directory)
        events = platform.open_events()
    for ask in (lambda: platform.open_memory(1), lambda: events.alloc_unbound(1)):
        with pytest.raises(PlatformError) as refused:
            ask()
        assert refused.value.errno == "EIO"
    platform.close()


def test_the_example_of_the_docs(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/emulated-xen.md").read_text()
    example = text.split("```python\n")[1].split("```")[0].replace("Path.home()", f"Path({str(tmp_path)!r})")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
