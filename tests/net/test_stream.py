# SPDX-License-Identifier: Apache-2.0
"""Frames over a stream to another program, and everything that it can do wrong."""

from __future__ import annotations

import os
import random
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from netback.errors import ConfigError, GoneError, PeerError
from netback.net import connected
from netback.net.connected import ConnectedNetwork
from netback.net.stream import StreamNetwork
from tests.descriptors import open_descriptors

from .contract import FilteredNetwork, FrameNetwork, Site, fill, frame, receive
from .far import PATIENCE, PLAIN, await_readable
from .program import LENGTH, Program, wire

LARGEST = 65536 + 512
"""Bytes of the largest frame."""
WAYS = {
    "unix": (False, "{path}"),
    "unix, netback listens": (True, "{path}"),
    "tcp": (False, "127.0.0.1"),
    "tcp, netback listens": (True, "127.0.0.1"),
    "tcp, ipv6": (False, "::1"),
}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def joined(place: str, path: Path, *, server: bool) -> tuple[StreamNetwork, Program]:
    """A network and the program at its other end."""
    if place == "{path}":
        address: Path | tuple[str, int] = path
    else:
        address = (place, free_port() if server else 0)
    if server:
        network = StreamNetwork(written(address), server=True)
        return network, Program(address, client=True)
    program = Program(address)
    return StreamNetwork(written(path if place == "{path}" else program.address)), program


def written(address: object) -> str:
    """An address as in a spec."""
    if isinstance(address, tuple):
        host, port = address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(address)


def await_up(network: ConnectedNetwork) -> None:
    """Wait until the other program is connected: the peer's descriptor tells."""
    while not network.up:
        await_readable(network.peers[0].fd)
    take_edges(network)


def take_edges(network: ConnectedNetwork) -> int:
    """Do what the peer's `wake` does; returns how many events there were."""
    network.peers[0].send([])
    with select.epoll.fromfd(os.dup(network.peers[0].fd)) as events:
        return len(events.poll(0))


def await_fault(network: ConnectedNetwork, words: str) -> str:
    """Wait until a check of the network fails with these words; returns the line."""
    deadline = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < deadline:
        network.peers[0].recv()
        try:
            network.check()
        except PeerError as error:
            if words in str(error):
                return str(error)
    raise AssertionError(f"no fault has {words!r}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stream.sock"


@pytest.fixture(params=list(WAYS), ids=list(WAYS))
def site(request: pytest.FixtureRequest, path: Path) -> Iterator[Site]:
    server, place = WAYS[request.param]
    network, program = joined(place, path, server=server)
    with program:
        assert program.connection
        await_up(network)
        yield Site(network, program)  # type: ignore[arg-type]
        network.remove()


@pytest.fixture
def program(path: Path) -> Iterator[Program]:
    with Program(path) as program:
        yield program


@pytest.fixture
def network(path: Path, program: Program) -> Iterator[StreamNetwork]:
    network = StreamNetwork(str(path))
    assert program.connection
    await_up(network)
    yield network
    network.remove()


class TestUnderFilters(FilteredNetwork):
    """With filters around its peers."""


class TestStream(FrameNetwork):
    """By every way to connect."""

    def test_frames_of_any_length_in_any_pieces(self, site: Site) -> None:
        """Both ways at once, cut anywhere, and over the end of every buffer."""
        rng = random.Random(5)
        (peer,) = site.network.peers
        connection = site.far.connection  # type: ignore[union-attr]
        sent: list[bytes] = []
        got: list[bytes] = []
        unsent, incoming, waiting = b"", b"", []
        connection.setblocking(False)
        for number in range(3000):
            size = rng.choice((60, 60, 1514, 9000, LARGEST - 10)) if number % 3 else rng.randint(14, 3000)
            sent.append(frame(number, size))
            unsent += wire(sent[-1])
            while unsent and (len(unsent) > 200_000 or number == 2999):
                with suppress(BlockingIOError):
                    unsent = unsent[connection.send(unsent[: rng.randint(1, 100_000)]) :]
                waiting += peer.recv(rng.randint(1, 64))
                done, refused = peer.send(waiting[:64])
                assert refused == 0
                del waiting[:done]
                incoming, more = parse(incoming + read_some(connection, rng.randint(1, 150_000)))
                got += more
        while len(got) < len(sent):
            waiting += peer.recv()
            del waiting[: peer.send(waiting[:64])[0]]
            peer.send([])
            incoming, more = parse(incoming + read_some(connection, 1 << 20))
            got += more
        assert got == sent

    def test_the_largest_frame_and_a_longer_one(self, site: Site) -> None:
        sent = [frame(1, LARGEST), frame(2), frame(3, LARGEST)]
        site.far.send(sent[0])
        assert receive(site.network, 1) == sent[:1]
        done, refused = site.network.peers[0].send([frame(1, 65535), frame(2)])
        assert (done, refused) == (2, 0)
        assert [site.far.recv() for _ in range(2)] == [frame(1, 65535), frame(2)]


def read_some(connection: socket.socket, size: int) -> bytes:
    with suppress(BlockingIOError):
        return connection.recv(size)
    return b""


def parse(data: bytes) -> tuple[bytes, list[bytes]]:
    """What is left of a stream's bytes, and the frames before it."""
    frames = []
    while len(data) >= LENGTH.size and len(data) >= LENGTH.size + LENGTH.unpack_from(data)[0]:
        end = LENGTH.size + LENGTH.unpack_from(data)[0]
        frames.append(PLAIN + data[LENGTH.size : end])
        data = data[end:]
    return data, frames


# ---- a slow program


def test_backpressure(network: StreamNetwork, program: Program) -> None:
    """A program that reads nothing fills the socket; its room is announced once."""
    (peer,) = network.peers
    sent = fill(network)
    assert sent > 20
    assert peer.blocked
    take_edges(network)
    assert peer.send([frame(1)]) == (0, 0)
    assert take_edges(network) == 0
    program.recv()
    for _ in range(sent - 1):
        program.recv()
    await_readable(peer.fd)
    assert peer.send([frame(1)]) == (1, 0)
    assert not peer.blocked
    while program.recv() != frame(1):
        pass


def test_a_program_that_sends_byte_by_byte(network: StreamNetwork, program: Program) -> None:
    """A call reads a bounded number of times and is made again."""
    sent = [frame(number, 60 + number) for number in range(30)]
    data = wire(*sent)
    got: list[bytes] = []
    for at in range(0, len(data), 50):
        for byte in data[at : at + 50]:
            program.connection.sendall(bytes([byte]))
        for _ in range(10):
            if select.select([network.peers[0].fd], [], [], 0)[0]:
                take_edges(network)
                got += network.peers[0].recv()
    assert got == sent


def test_queues_send_through_one_connection(network: StreamNetwork, program: Program) -> None:
    """Frames of several queues are never mixed, even those that are taken in part."""
    network.set_queues(3)
    (peer,) = network.peers
    queues = (peer, peer.duplicate(-1), peer.duplicate(-1))
    assert queues[1].recv() == []
    rng = random.Random(2)
    program.connection.setblocking(False)
    sent: list[bytes] = []
    got: list[bytes] = []
    data = b""
    for number in range(400):
        burst = [frame(number + n, rng.randint(60, 60000)) for n in range(rng.randint(1, 20))]
        queue = rng.choice(queues)
        done, refused = queue.send(burst)
        assert (refused, queue.blocked) == (0, done < len(burst))
        sent += burst[:done]
        data, more = parse(data + read_some(program.connection, rng.randint(1, 400_000)))
        assert more == sent[len(got) : len(got) + len(more)]
        got += more
    while len(got) < len(sent):
        peer.send([])
        data, more = parse(data + read_some(program.connection, 1 << 20))
        got += more
    assert (got, data) == (sent, b"")


# ---- connections


def test_nothing_listens(path: Path) -> None:
    with pytest.raises(PeerError, match=f"stream:{path}: cannot connect: No such file"):
        StreamNetwork(str(path))
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
        with pytest.raises(PeerError, match="cannot connect: Connection refused"):
            StreamNetwork(str(path))
    with pytest.raises(PeerError, match=r"stream:127\.0\.0\.1:[0-9]+: cannot connect: Connection refused"):
        StreamNetwork(f"127.0.0.1:{free_port()}")


def test_nobody_accepts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program whose backlog is full."""
    monkeypatch.setattr(connected, "CONNECT_SECONDS", 0.1)
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(path))
        busy.listen(0)
        first.connect(str(path))
        with pytest.raises(PeerError, match="cannot connect: too many others wait to be accepted"):
            StreamNetwork(str(path))
    with socket.socket() as busy, socket.socket() as first:
        busy.bind(("127.0.0.1", 0))
        busy.listen(0)
        first.connect(busy.getsockname())
        with pytest.raises(PeerError, match="cannot connect: no answer"):
            StreamNetwork(written(busy.getsockname()))


@pytest.mark.parametrize("place", ["{path}", "127.0.0.1"])
def test_a_network_that_listens(place: str, path: Path) -> None:
    network, program = joined(place, path, server=True)
    assert not network.up
    with pytest.raises(PeerError, match="it has not connected yet"):
        network.check()
    assert network.peers[0].send([frame(1)]) == (1, 1)
    assert network.peers[0].down
    for number in range(3):
        assert program.connection
        await_up(network)
        program.send(frame(number))
        assert receive(network, 1) == [frame(number)]
        assert network.peers[0].send([frame(9)]) == (1, 0)
        assert program.recv() == frame(9)
        assert not network.peers[0].down
        program.drop()
        await_fault(network, "it closed the connection")
    network.remove()
    assert not path.exists()


@pytest.mark.parametrize("place", ["{path}", "127.0.0.1"])
def test_one_network_listens_at_a_place(place: str, path: Path) -> None:
    """A path that a killed process left is replaced."""
    if place == "{path}":
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
    network, program = joined(place, path, server=True)
    with pytest.raises(
        PeerError, match=r"another process listens there|cannot listen: Address already in use"
    ):
        StreamNetwork(written(program.address), server=True)
    network.remove()
    with pytest.raises(PeerError, match="cannot listen: No such file"):
        StreamNetwork(str(path / "no" / "directory"), server=True)


def test_a_program_that_restarts(network: StreamNetwork, program: Program) -> None:
    (peer,) = network.peers
    for number in range(4):
        program.send(frame(number))
        program.drop()
        assert receive(network, 1) == [frame(number)]
        await_fault(network, "it closed the connection")
        assert program.connection
        await_up(network)
        assert network.check() is False
        assert peer.send([frame(2)]) == (1, 0)
        assert program.recv() == frame(2)


def test_a_part_of_a_frame_dies_with_its_connection(network: StreamNetwork, program: Program) -> None:
    """Either end's: the next connection begins with a length."""
    (peer,) = network.peers
    assert fill(network) > 20
    program.connection.sendall(wire(frame(1, 5000))[:3000])
    assert peer.recv() == []
    program.drop()
    await_fault(network, "Connection reset by peer")
    assert program.connection
    await_up(network)
    program.send(frame(2))
    assert receive(network, 1) == [frame(2)]
    assert peer.send([frame(3)]) == (1, 0)
    assert program.recv() == frame(3)


def test_frames_are_refused_without_a_program(network: StreamNetwork, program: Program) -> None:
    program.close()
    await_fault(network, "cannot connect: No such file")
    assert not network.up
    (peer,) = network.peers
    assert peer.send([frame(1)] * 3) == (3, 3)
    assert peer.recv() == []
    assert peer.down
    assert not peer.closed


def test_a_program_that_reads_no_more(network: StreamNetwork, program: Program) -> None:
    """It shuts down one half: what it sent counts, and the connection is made again."""
    program.send(frame(1))
    program.connection.shutdown(socket.SHUT_WR)
    assert receive(network, 1) == [frame(1)]
    await_fault(network, "it closed the connection")
    program.drop()
    program.send(frame(2))
    assert receive(network, 1) == [frame(2)]


def test_a_reset(path: Path) -> None:
    network, program = joined("127.0.0.1", path, server=False)
    with program:
        assert program.connection
        await_up(network)
        linger = struct.pack("ii", 1, 0)
        program.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        program.drop()
        await_fault(network, "Connection reset by peer")
        program.send(frame(1))
        assert receive(network, 1) == [frame(1)]
        network.remove()


def test_a_tcp_connection_has_its_options(path: Path) -> None:
    """Small frames go at once, and a host that is gone is noticed."""
    for server in (False, True):
        network, program = joined("127.0.0.1", path, server=server)
        with program:
            assert program.connection
            await_up(network)
            network.peers[0].recv()
            options = (socket.TCP_NODELAY, socket.TCP_USER_TIMEOUT)
            ends = tcp_sockets()
            found = [end for end in ends if end.getpeername() == program.connection.getsockname()]
            assert found
            for end in found:
                assert [end.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [1, 30000]
                assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            for end in ends:
                end.close()
            network.remove()


def tcp_sockets() -> list[socket.socket]:
    """Duplicates of this process's connected TCP sockets."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            fd = os.dup(int(path.name))
            try:
                sock = socket.socket(fileno=fd)
            except OSError:
                os.close(fd)
                continue
            if sock.family == socket.AF_INET and sock.type == socket.SOCK_STREAM:
                with suppress(OSError):
                    sock.getpeername()
                    found.append(sock)
                    continue
            sock.close()
    return found


# ---- descriptors that netback was started with


def test_a_connected_socket() -> None:
    """It is used once: after its end nothing can be met again."""
    near, far = socket.socketpair()
    near.set_inheritable(True)
    network = StreamNetwork(f"fd:{near.fileno()}")
    far.sendall(wire(frame(1)))
    assert receive(network, 1) == [frame(1)]
    assert network.peers[0].send([frame(2)]) == (1, 0)
    assert far.recv(1000) == wire(frame(2))
    far.close()
    await_fault(network, "it closed the connection")
    while True:
        try:
            network.check()
        except GoneError:
            break
        except PeerError:
            continue
    network.remove()
    assert near.fileno() >= 0
    near.close()


def test_a_socket_that_listens(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.set_inheritable(True)
        network = StreamNetwork(f"fd:{listener.fileno()}")
        with Program(path, client=True) as program:
            for number in range(2):
                program.send(frame(number))
                assert receive(network, 1) == [frame(number)]
                program.drop()
        network.remove()
        with Program(path, client=True) as program:
            assert program.connection


def test_what_is_no_descriptor_for_it(tmp_path: Path) -> None:
    """Netback's own sockets are not inheritable: no spec reaches them."""
    own, other = socket.socketpair()
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with (tmp_path / "file").open("w") as file, own, other, datagrams:
        for sock in (file, datagrams):
            os.set_inheritable(sock.fileno(), True)
        for fd, words in (
            (own.fileno(), "is no socket that netback was started with"),
            (file.fileno(), "is no socket that netback was started with"),
            (datagrams.fileno(), "is a socket of another kind: it takes SOCK_STREAM"),
            (999_999, "Bad file descriptor"),
        ):
            with pytest.raises(ConfigError, match=f"stream:fd:{fd}: descriptor {fd}.*{words}"):
                StreamNetwork(f"fd:{fd}")


def test_a_descriptor_from_another_process(path: Path) -> None:
    """As a service manager, or a shell, passes it."""
    code = (
        "import sys; from netback.net.spec import open_network, parse_spec;"
        "n = open_network(parse_spec(sys.argv[1]), name='x');"
        "n.peers[0].send([bytes(10) + bytes(range(60))]); sys.stdin.read()"
    )
    near, far = socket.socketpair()
    with near, far:
        command = [sys.executable, "-c", code, f"stream:fd:{near.fileno()}"]
        with subprocess.Popen(command, pass_fds=(near.fileno(),), stdin=subprocess.PIPE) as process:
            far.settimeout(PATIENCE / 1000)
            assert far.recv(1000) == wire(PLAIN + bytes(range(60)))
            process.communicate(b"")


# ---- a program that lies


@pytest.mark.parametrize("length", [LARGEST + 1, 1 << 31, (1 << 32) - 1])
def test_a_length_that_no_frame_has(network: StreamNetwork, program: Program, length: int) -> None:
    """The connection ends at once, with what was sent before it delivered, and the next one works."""
    program.connection.sendall(wire(frame(1)) + LENGTH.pack(length) + bytes(1000))
    assert receive(network, 1) == [frame(1)]
    assert network.peers[0].recv() == []
    assert network.peers[0].down
    await_fault(network, f"it broke the protocol: a frame longer than {LARGEST} bytes")
    program.drop()
    assert program.connection
    await_up(network)
    program.send(frame(2))
    assert receive(network, 1) == [frame(2)]
    program.drop()
    assert "broke" not in await_fault(network, "it closed the connection")


def test_frames_of_no_length(network: StreamNetwork, program: Program) -> None:
    """They are no frames; any number of them costs bounded time a call."""
    program.connection.sendall(LENGTH.pack(0) * 20_000 + wire(frame(1)))
    assert receive(network, 1) == [frame(1)]


def test_garbage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random bytes are frames or end the connection, again and again; nothing is left of it."""
    monkeypatch.setattr(connected, "PAUSES", (0.001,))
    rng = random.Random(1)
    with Program(path) as program:
        network = StreamNetwork(str(path))
        before = None
        for _ in range(100):
            with suppress(OSError):
                program.connection.sendall(rng.randbytes(rng.randint(1, 5000)))
            network.peers[0].recv()
            program.drop()
            network.peers[0].send([frame(1)])
            before = before or open_descriptors()
        assert open_descriptors() <= before + 5
        network.remove()


def test_descriptors_in_its_messages_are_closed(network: StreamNetwork, program: Program) -> None:
    before = open_descriptors()
    for number in range(20):
        aside = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", program.connection.fileno()))
        program.connection.sendmsg([wire(frame(number))], [aside])
    assert receive(network, 20) == [frame(number) for number in range(20)]
    assert open_descriptors() == before


def test_any_number_of_programs_that_come_and_go(path: Path) -> None:
    """One is served at a time; the others wait in the backlog, or are refused by the kernel."""
    network = StreamNetwork(str(path), server=True)
    with Program(path, client=True) as program:
        program.send(frame(1))
        assert receive(network, 1) == [frame(1)]
        for _ in range(50):
            with socket.socket(socket.AF_UNIX) as other:
                other.setblocking(False)
                with suppress(BlockingIOError):
                    other.connect(str(path))
        program.send(frame(2))
        assert receive(network, 1) == [frame(2)]
        assert network.check() is False
    network.remove()
