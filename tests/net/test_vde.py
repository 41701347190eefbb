# SPDX-License-Identifier: Apache-2.0
"""A port of a VDE switch: Debian's vde_switch, and one that is written here and can do everything wrong."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from netback.errors import ConfigError, PeerError
from netback.net import vde
from netback.net.spec import open_network, parse_spec
from netback.net.vde import VdeNetwork

from .contract import FrameNetwork, Site, fill, frame, receive
from .far import PATIENCE, PLAIN, await_readable
from .namespace import ip, new_network
from .program import Program

REQUEST = struct.Struct("@IIIH108s")


class Switch:
    """A switch with one port: the far side of a network. Imports only constants from netback."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)
        self.control = Program(path / "ctl")
        self.port = self.new_port("001")

    def new_port(self, name: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(str(self.path / name))
        return sock

    def admit(self, answer: bytes | None = None) -> None:
        """Give the client that asks now the port, or send it this answer."""
        data = self.control.connection.recv(4096)
        magic, version, kind, family, self.client = REQUEST.unpack_from(data)
        assert (magic, version, kind & 0xFF, family) == (0xFEEDFACE, 3, 0, socket.AF_UNIX)
        self.wanted = kind >> 8
        self.described = data[REQUEST.size :]
        if answer is None:
            self.port.connect(self.client)
            answer = struct.pack("@H108s", socket.AF_UNIX, self.port.getsockname().encode())
        self.control.connection.sendall(answer)

    def send(self, message: bytes) -> None:
        self.port.send(message[len(PLAIN) :])

    def recv(self) -> bytes:
        await_readable(self.port.fileno())
        return PLAIN + self.port.recv(70000)

    def close(self) -> None:
        self.control.close()
        self.port.close()


def wait(condition: Callable[[], bool]) -> None:
    """Wait until it holds; the network's own thread changes it."""
    deadline = time.monotonic() + PATIENCE / 1000
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


def opened(path: Path, options: str = "") -> VdeNetwork:
    network = open_network(parse_spec(f"vde:{path}{options}"), name="vif1.0")
    assert isinstance(network, VdeNetwork)
    return network


@contextmanager
def admitting(switch: Switch, answer: bytes | None = None) -> Iterator[None]:
    """Admit a client meanwhile, which waits for the answer."""
    import threading

    thread = threading.Thread(target=switch.admit, args=(answer,))
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    """With queues of the length that systemd sets."""
    with new_network():
        ip("link set lo up")
        Path("/proc/sys/net/unix/max_dgram_qlen").write_text("512")
        yield


@pytest.fixture
def switch(tmp_path: Path) -> Iterator[Switch]:
    switch = Switch(tmp_path / "sw")
    yield switch
    switch.close()


@pytest.fixture
def network(switch: Switch) -> Iterator[VdeNetwork]:
    with admitting(switch):
        network = opened(switch.path)
    yield network
    network.remove()


@pytest.fixture
def site(network: VdeNetwork, switch: Switch) -> Site:
    return Site(network, switch)  # type: ignore[arg-type]


class TestVde(FrameNetwork):
    """By a port of the switch here."""

    def test_is_up_and_fine(self, site: Site) -> None:
        assert site.network.up
        assert site.network.check() is False

    def test_queues_send_through_one_port(self, site: Site) -> None:
        (peer,) = site.network.peers
        further = peer.duplicate(peer.fd)
        for number, each in enumerate((peer, further)):
            assert each.send([frame(number)]) == (1, 0)
            assert site.far.recv() == frame(number)


def test_what_is_asked_for(switch: Switch) -> None:
    with admitting(switch):
        network = opened(switch.path, ",port=12")
    assert switch.wanted == 12
    assert switch.described == b"netback\0"
    network.remove()


# ---- vde_switch


@contextmanager
def vde_switch(path: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Debian's switch; it ends with its standard input."""
    command = ["vde_switch", "-s", str(path), *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        wait(lambda: (path / "ctl").exists())
        yield process
        process.kill()


def test_frames_through_vde_switch(tmp_path: Path) -> None:
    """Ordinary and large ones, both ways; then to where the address was learned; and after its restart."""
    path = tmp_path / "sw"
    with ExitStack() as undo:
        with vde_switch(path):
            one, two, three = (undo.enter_context(closing_down(opened(path))) for _ in range(3))
            for source, sender, others in ((1, one, (two, three)), (2, two, (one, three))):
                station = b"\x02\0\0\0\0" + bytes([source])
                sent = [PLAIN + b"\xff" * 6 + station + frame(n, 60 + n)[22:] for n in range(20)]
                assert sender.peers[0].send(sent) == (20, 0)
                for other in others:
                    assert receive(other, 20) == sent
            known = PLAIN + b"\x02\0\0\0\0\x02" + b"\x02\0\0\0\0\x03" + frame(1)[22:]
            assert three.peers[0].send([known]) == (1, 0)
            assert receive(two, 1) == [known]
            assert one.peers[0].recv() == []
        for each in (one, two):
            wait(lambda: not each.up)  # noqa: B023
            with pytest.raises(PeerError, match=f"vde:{path}: (cannot connect|it closed the connection)"):
                each.check()
            assert each.peers[0].send([frame(1)] * 3) == (3, 3)
            assert each.peers[0].down
        (path / "ctl").unlink(missing_ok=True)
        with vde_switch(path):
            for each in (one, two):
                wait(lambda: each.up)  # noqa: B023
                with suppress(PeerError):  # which says that it was lost, and once
                    each.check()
                assert each.check() is False
            assert one.peers[0].send([frame(5)]) == (1, 0)
            assert not one.peers[0].down
            assert receive(two, 1) == [frame(5)]


@contextmanager
def closing_down(network: VdeNetwork) -> Iterator[VdeNetwork]:
    yield network
    network.remove()


def test_ports_of_vde_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sw"
    with vde_switch(path, "-n", "4"):
        opened(path, ",port=3").remove()
        monkeypatch.setattr(vde, "ANSWER_SECONDS", 0.2)
        with pytest.raises(
            PeerError, match=f"vde:{path}: it gives no port: is it a VDE switch, and has it one"
        ):
            opened(path, ",port=9")


def test_nothing_is_left_after_kill(tmp_path: Path) -> None:
    path = tmp_path / "sw"
    script = f"import os; from netback.net.vde import VdeNetwork as V; V('{path}'); os.kill(os.getpid(), 9)"
    with vde_switch(path):
        before = set(path.iterdir())
        assert (
            subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode
            == -signal.SIGKILL
        )
        wait(lambda: set(path.iterdir()) == before)
        opened(path).remove()


# ---- switches that are absent, slow, or lie


def test_nothing_listens(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=f"vde:{tmp_path}: cannot connect: No such file or directory"):
        opened(tmp_path)


def test_a_switch_that_restarts(network: VdeNetwork, switch: Switch) -> None:
    """Its new port has another address; the old one is heard no more."""
    for number in range(3):
        old = switch.port
        switch.port = switch.new_port(f"new{number}")
        switch.control.drop()
        wait(lambda: not network.up)
        switch.admit()
        wait(lambda: network.up)
        with pytest.raises(OSError, match=r"not permitted|refused"):
            old.send(frame(9))
        old.close()
        switch.send(frame(number))
        assert receive(network, 1) == [frame(number)]
        assert network.peers[0].send([frame(number)]) == (1, 0)
        assert switch.recv() == frame(number)


def test_a_stranger_is_not_heard(network: VdeNetwork, switch: Switch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger, pytest.raises(PermissionError):
        stranger.sendto(bytes(60), switch.client)


def test_what_a_stranger_sent_before_is_discarded(switch: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = vde.read_answer

    def read_answer(connection: socket.socket, alarm: int) -> str:
        found = asked(connection, alarm)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(bytes(60), switch.client)
        return found

    monkeypatch.setattr(vde, "read_answer", read_answer)
    with admitting(switch):
        network = opened(switch.path)
    switch.send(frame(1))
    assert receive(network, 1) == [frame(1)]
    network.remove()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "it gives no port"),
        (b"x" * 50, "it gives no port"),
        (bytes(110), "its answer is no address of a socket"),
        (struct.pack("@H108s", 1, b""), "its answer is no address of a socket"),
        (struct.pack("@H108s", 1, b"\0hidden"), "its answer is no address of a socket"),
        (struct.pack("@H108s", 2, b"/p"), "its answer is no address of a socket"),
        (struct.pack("@H108s", 1, b"/" * 108), "its answer is no address of a socket"),
        (struct.pack("@H108s", 1, b"/nonexistent"), "cannot reach the port's socket: No such file"),
        (os.urandom(4096), "its answer is no address of a socket"),
    ],
)
def test_answers_that_are_none(
    switch: Switch, monkeypatch: pytest.MonkeyPatch, answer: bytes, words: str
) -> None:
    if words == "it gives no port":
        monkeypatch.setattr(vde, "ANSWER_SECONDS", 0.2)
    with admitting(switch, answer), pytest.raises(PeerError, match=f"vde:{switch.path}: {words}"):
        opened(switch.path)


def test_a_switch_that_closes_at_once(switch: Switch) -> None:
    import threading

    def turn_away() -> None:
        switch.control.connection.recv(4096)
        switch.control.drop()

    thread = threading.Thread(target=turn_away)
    thread.start()
    with pytest.raises(PeerError, match="it closed the connection and gave no port"):
        opened(switch.path)
    thread.join()


def test_garbage_after_the_answer(network: VdeNetwork, switch: Switch) -> None:
    """It is never read."""
    switch.control.connection.setblocking(False)
    with suppress(BlockingIOError):
        while switch.control.connection.send(bytes(65536)):
            pass
    switch.send(frame(1))
    assert receive(network, 1) == [frame(1)]


def test_a_slow_switch(network: VdeNetwork, switch: Switch) -> None:
    """Its queue is full: poll tells when it has room."""
    assert fill(network) > 5
    assert network.peers[0].blocked
    poll = select.poll()
    poll.register(network.peers[0].fd, select.POLLOUT)
    assert poll.poll(0) == []
    while not poll.poll(0):
        switch.recv()
    assert network.peers[0].send([frame(1)]) == (1, 0)


def test_datagrams_that_are_no_frames(network: VdeNetwork, switch: Switch) -> None:
    for data in (b"", bytes(66_100)):
        switch.port.send(data)
    switch.send(frame(1))
    assert receive(network, 1) == [frame(1)]
    assert not network.peers[0].closed


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("vde", "it names no switch: write for example 'vde:/run/vde.ctl'"),
        ("vde:sw", "the socket's path 'sw/ctl' does not begin with /"),
        ("vde:/" + 103 * "p", "is longer than 107 bytes"),
        ("vde:/sw,port=0", "port='0' is not a number from 1 to 255"),
        ("vde:/sw,port=256", "port='256' is not a number from 1 to 255"),
        ("vde:/sw,group=kvm", r"vde has no option 'group' \(options: port\)"),
    ],
)
def test_bad_specs(spec: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_spec(spec)
