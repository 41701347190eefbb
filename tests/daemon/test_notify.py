# SPDX-License-Identifier: Apache-2.0
"""Notifications to a service manager over a real socket, and a descriptor that it hands back."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from netback.daemon.systemd.fd_store import SystemdFdStore
from netback.daemon.systemd.notify import Notifier, take_held


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(5)
        yield listening


def heard(manager: socket.socket) -> str:
    return manager.recv(4096).decode()


def test_a_life(manager: socket.socket, tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"}
    with closing(Notifier(environment)) as notifier:
        assert notifier.watchdog == 3.0
        notifier.ready("all well")
        assert heard(manager) == "READY=1\nSTATUS=all well"
        notifier.reloading()
        assert heard(manager).startswith("RELOADING=1\nMONOTONIC_USEC=")
        notifier.stopping()
        assert heard(manager) == "STOPPING=1"


def test_no_supervisor() -> None:
    notifier = Notifier({"WATCHDOG_USEC": "3000000"})
    notifier.ready("all well")
    assert notifier.watchdog is None


def test_an_abstract_socket() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        name = f"netback-test-{os.getpid()}"
        listening.bind("\0" + name)
        listening.settimeout(5)
        with closing(Notifier({"NOTIFY_SOCKET": "@" + name})) as notifier:
            notifier.stopping()
        assert heard(listening) == "STOPPING=1"


def test_a_descriptor_is_held(manager: socket.socket, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with closing(Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})) as notifier:
        fd_store = SystemdFdStore(notifier)
        fd_store.keep("vif3.0", [writing])
        assert heard(manager) == "FDSTOREREMOVE=1\nFDNAME=vif3.0"
        message, (held,), _, _ = socket.recv_fds(manager, 4096, 1)
        assert message == b"FDSTORE=1\nFDNAME=vif3.0"
        os.close(writing)
        os.write(held, b"alive")
        os.close(held)
    assert os.read(reading, 5) == b"alive"
    os.close(reading)


def test_a_descriptor_for_each_queue_is_held(manager: socket.socket, tmp_path: Path) -> None:
    """The first queue's name is the one that a single-queue netback used, so either version adopts the other's
    descriptor.
    """
    ends = os.pipe()
    with closing(Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})) as notifier:
        fd_store = SystemdFdStore(notifier)
        fd_store.keep("vif3.0", ends)
        fd_store.forget("vif3.0")
        fd_store.forget("vif3.0")
        lines = [heard(manager) for _ in range(6)]
    assert lines == [
        "FDSTOREREMOVE=1\nFDNAME=vif3.0",
        "FDSTORE=1\nFDNAME=vif3.0",
        "FDSTORE=1\nFDNAME=vif3.0-q1",
        "FDSTOREREMOVE=1\nFDNAME=vif3.0",
        "FDSTOREREMOVE=1\nFDNAME=vif3.0-q1",
        "FDSTOREREMOVE=1\nFDNAME=vif3.0",
    ]
    for end in ends:
        os.close(end)


@pytest.mark.parametrize(("pid", "count"), [("1", "1"), ("", "1"), ("own", "x")])
def test_what_is_held_for_others_is_left_alone(pid: str, count: str) -> None:
    environment = {
        "LISTEN_PID": pid.replace("own", str(os.getpid())),
        "LISTEN_FDS": count,
        "LISTEN_FDNAMES": "a",
    }
    assert list(take_held(environment)) == []
    assert environment == {}
