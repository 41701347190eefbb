# SPDX-License-Identifier: Apache-2.0
"""passt behind a vif: what it is told, and a passt that fails, is silent, lies or dies; then the real one."""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netback.errors import ConfigError, PeerError
from netback.net import user
from netback.net.spec import open_network, parse_spec
from netback.net.user import UserNetwork
from tests.descriptors import open_descriptors

from .contract import AnyNetwork, FrameNetwork, Site, frame, receive
from .far import PATIENCE, PLAIN, await_readable
from .namespace import ip, new_network, veth
from .program import Program
from .test_stream import await_fault, await_up, take_edges

FAKE = """#!{python}
import os, select, socket, struct, sys
place, mode = {place!r}, {mode!r}
with open(place + "/command", "a") as file:
    print(os.getpid(), *sys.argv[1:], file=file)
stream = socket.socket(fileno=int(sys.argv[sys.argv.index("-F") + 1]))
if mode == "fails":
    sys.exit("Failed to send 9 bytes to syslog\\nNo route\\x1b[2J\\nExternal interface not usable")
if mode == "silent":
    stream.recv(1 << 20)
    select.select([stream], [], [])
    sys.exit()
if mode == "lies":
    stream.sendall(b"\\xff" * 100)
    sys.exit()
print("It says a lot", file=sys.stderr)
size = struct.unpack(">I", stream.recv(4))[0]
for byte in struct.pack(">I", size) + stream.recv(size):
    stream.sendall(bytes([byte]))
if mode == "chatty":
    os.set_blocking(2, False)
    try:
        while os.write(2, b"noise" * 1000):
            pass
    except BlockingIOError:
        pass
far = socket.socket(socket.AF_UNIX)
far.connect(place + "/far")
ends = {{stream: far, far: stream}}
while True:
    for end in select.select(list(ends), [], [])[0]:
        data = end.recv(1 << 16)
        if not data:
            sys.exit()
        ends[end].sendall(data)
"""
"""A program that answers its first frame with itself, and joins its stream to the socket `far`."""


@pytest.fixture
def passt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a fake in passt's place."""

    def put(mode: str) -> None:
        program = tmp_path / "passt"
        program.write_text(FAKE.format(python=sys.executable, place=str(tmp_path), mode=mode))
        program.chmod(0o755)
        monkeypatch.setattr(user, "PROGRAM", str(program))

    return put


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Program]:
    with Program(tmp_path / "far") as program:
        yield program


def commands(tmp_path: Path) -> list[list[str]]:
    """The process's id and the arguments of every fake that was started."""
    return [line.split() for line in (tmp_path / "command").read_text().splitlines()]


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.fixture(params=["echo", "chatty"])
def site(request: pytest.FixtureRequest, passt: Callable[[str], None], far: Program) -> Iterator[Site]:
    passt(request.param)
    network = UserNetwork()
    assert far.connection
    await_up(network)
    yield Site(network, far)  # type: ignore[arg-type]
    network.remove()


class TestUser(FrameNetwork):
    """Its frames are a stream's."""


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("user", "-a 10.0.2.15 -n 24 -g 10.0.2.2 -a fd00:10:0:2::15 --no-map-gw"),
        ("user,ipv6=off", "-a 10.0.2.15 -n 24 -g 10.0.2.2 -4 --no-map-gw"),
        ("user,ipv4=off", "-a fd00:10:0:2::15 -6 --no-map-gw"),
        (
            "user,ipv4=192.0.2.2/28,ipv6=2001:db8::1",
            "-a 192.0.2.2 -n 28 -g 192.0.2.1 -a 2001:db8::1 --no-map-gw",
        ),
        ("user,ipv6=off,host_loopback", "-a 10.0.2.15 -n 24 -g 10.0.2.2 -4"),
        (
            "user,ipv6=off,dns=none,link=eth0,mtu=1500",
            "-a 10.0.2.15 -n 24 -g 10.0.2.2 -4 --no-map-gw -D none -i eth0 -m 1500",
        ),
        (
            "user,ipv6=off,dns=::1,tcp=80,tcp=0.0.0.0/8080:80,udp=::/53:5353",
            "-a 10.0.2.15 -n 24 -g 10.0.2.2 -4 --no-map-gw -D ::1 -t 127.0.0.1/80:80 -t 0.0.0.0/8080:80 -u ::/53:5353",
        ),
    ],
)
def test_what_passt_is_told(
    passt: Callable[[str], None], far: Program, tmp_path: Path, spec: str, words: str
) -> None:
    passt("echo")
    network = open_network(parse_spec(spec), name="vif1.0")
    ((_, *arguments),) = commands(tmp_path)
    assert " ".join(arguments[:-2]) == f"-f -q {words}"
    assert arguments[-2] == "-F"
    assert network.name == "user"
    network.remove()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("user:web", "user takes no link: write 'user'"),
        ("user,ipv4=off,ipv6=off", "with ipv4=off and ipv6=off nothing is left"),
        (
            "user,ipv4=10.0.2.15",
            "ipv4='10.0.2.15' is not the guest's ADDRESS/PREFIX, or off: its network's length is",
        ),
        ("user,ipv4=10.0.2.15/30", "its network has no room for the gateway"),
        ("user,ipv4=::1/64", "ipv4='::1/64' is not the guest's ADDRESS/PREFIX"),
        ("user,ipv6=10.0.2.15", "ipv6='10.0.2.15' is not the guest's address, or off"),
        ("user,ipv4=10.0.2.15/24,ipv4=off", "option ipv4 is given twice"),
        ("user,mtu=1000", "mtu='1000' is not a number from 1280 to 65520"),
        ("user,dns=host", "dns='host' is not the address of a name server, or none"),
        ("user,link=a/b", "link='a/b' is not a link of the host, whose routes are used: link name 'a/b' has"),
        ("user,tcp=0:80", r"tcp='0:80' is not \[ADDRESS/\]PORT\[:PORT\], the host's and the guest's"),
        ("user,tcp=80:65536", "tcp='80:65536' is not"),
        ("user,tcp=80-90", "tcp='80-90' is not"),
        ("user,tcp=/80", "tcp='/80' is not"),
        ("user,udp=host/80", "udp='host/80' is not"),
        ("user,host_loopback=on", "option host_loopback takes no value"),
        ("user,secret", "user has no option 'secret'"),
    ],
)
def test_specs_that_are_wrong(spec: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_spec(spec)


def test_options_of_python_are_checked() -> None:
    with pytest.raises(ConfigError, match="user: with ipv4=off and ipv6=off nothing is left"):
        UserNetwork(ipv4=None, ipv6=None)


# ---- a passt that is broken


def test_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user, "PROGRAM", "/no/such/passt")
    with pytest.raises(PeerError, match="user: cannot start /no/such/passt: No such file or directory"):
        UserNetwork()


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("fails", r"No route\\x1b\[2J; External interface not usable"),
        ("silent", "it does not answer"),
        ("lies", "it does not answer"),
    ],
)
def test_it_does_not_start(
    passt: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, words: str
) -> None:
    """One line says why, and no process or descriptor is left."""
    passt(mode)
    monkeypatch.setattr(user, "START_SECONDS", 0.5)
    monkeypatch.setattr(user, "END_SECONDS", 0.1)
    before = open_descriptors()
    with pytest.raises(PeerError, match=f"user: .*passt: {words}"):
        UserNetwork()
    assert open_descriptors() <= before + PEER_DESCRIPTORS
    assert not any(is_running(int(pid)) for pid, *_ in commands(tmp_path))


PEER_DESCRIPTORS = 2
"""Which the error's traceback still holds."""


def test_it_dies(passt: Callable[[str], None], far: Program, tmp_path: Path) -> None:
    """It is started again, and frames pass."""
    passt("echo")
    network = UserNetwork()
    for number in range(3):
        assert far.connection
        await_up(network)
        far.send(frame(number))
        assert receive(network, 1) == [frame(number)]
        pid = int(commands(tmp_path)[-1][0])
        os.kill(pid, signal.SIGKILL)
        await_fault(network, "passt: it ended")
        far.drop()
        assert not is_running(pid)
    network.remove()
    assert not any(is_running(int(pid)) for pid, *_ in commands(tmp_path))


def test_it_stops(passt: Callable[[str], None], far: Program, tmp_path: Path) -> None:
    """A process that is stopped, and ignores what it is told, ends with its network all the same."""
    passt("echo")
    network = UserNetwork()
    pid = int(commands(tmp_path)[0][0])
    os.kill(pid, signal.SIGSTOP)
    network.remove()
    assert not is_running(pid)


def test_it_lies_later(passt: Callable[[str], None], far: Program, tmp_path: Path) -> None:
    passt("echo")
    network = UserNetwork()
    far.connection.sendall(b"\xff" * 1000)
    await_fault(network, "it broke the protocol: a frame longer than")
    far.drop()
    assert far.connection
    await_up(network)
    assert len(commands(tmp_path)) == 2
    network.remove()


# ---- passt itself


@pytest.fixture
def host() -> Iterator[None]:
    """A namespace with routes, as a host has them."""
    with new_network():
        ip("link set lo up")
        veth("up0", "far0")
        ip("addr add 192.0.2.2/24 dev up0")
        ip("route add default via 192.0.2.1")
        yield


MAC = b"\x00\x16\x3e\x00\x00\x01"


def discover() -> bytes:
    """A DHCP DISCOVER, as a whole frame."""
    bootp = struct.pack(">BBBBIHH", 1, 1, 6, 0, 7, 0, 0x8000) + bytes(16) + MAC + bytes(10 + 192)
    bootp += bytes.fromhex("63825363") + b"\x35\x01\x01" + b"\xff" + bytes(60)
    udp = struct.pack(">HHHH", 68, 67, 8 + len(bootp), 0) + bootp
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + bytes(4) + b"\xff" * 4
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
    return b"\xff" * 6 + MAC + b"\x08\x00" + head + udp


@pytest.mark.usefixtures("host")
class TestPasst(AnyNetwork):
    """Debian's."""

    @pytest.fixture
    def site(self) -> Iterator[Site]:
        network = UserNetwork(ipv6=None)
        await_up(network)
        yield Site(network, None)
        network.remove()

    def test_it_gives_addresses(self, site: Site) -> None:
        site.network.peers[0].send([PLAIN + discover()])
        deadline = time.monotonic() + PATIENCE / 1000
        while time.monotonic() < deadline:
            await_readable(site.network.peers[0].fd)
            take_edges(site.network)  # type: ignore[arg-type]
            for got in site.network.peers[0].recv():
                if got[len(PLAIN) + 23] == 17:
                    assert got[len(PLAIN) + 42 + 16 :][:4] == bytes([10, 0, 2, 15])
                    return
        raise AssertionError("no offer")


@pytest.mark.usefixtures("host")
def test_a_port_of_the_host_leads_to_the_guest() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    network = open_network(parse_spec(f"user,ipv6=off,tcp={port}:80"), name="vif1.0")
    await_up(network)  # type: ignore[arg-type]
    network.peers[0].send([PLAIN + discover()])
    with socket.socket() as client:
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", port))
        asked = b""
        while not asked:
            await_readable(network.peers[0].fd)
            frames = network.peers[0].recv()
            asked = b"".join(got for got in frames if got[len(PLAIN) + 23] == 6)
        assert asked[len(PLAIN) + 30 :][:4] == bytes([10, 0, 2, 15])
        assert asked[len(PLAIN) + 36 :][:2] == (80).to_bytes(2, "big")
    network.remove()
