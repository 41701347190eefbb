# SPDX-License-Identifier: Apache-2.0
"""The asyncio client over real sockets, against our server and against a server that misbehaves."""

import asyncio
import os
import socket
import tty
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest

from netback.abi.xs_wire import Op
from netback.errors import PlatformError
from netback.xenstore.aio import MAX_TRANSACTIONS, Store, StoreError, StoreGone
from netback.xenstore.server import Server
from netback.xenstore.wire import Packet, Parser

from .serving import guest_store, serving, until


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path / "s") as server:
        server.introduce(1)
        yield server


@pytest.fixture
async def dom0(server: Server, tmp_path: Path) -> AsyncIterator[Store]:
    async with await Store.connect(tmp_path / "s") as store:
        yield store


async def failure(awaitable: Awaitable[object]) -> str:
    with pytest.raises(StoreError) as caught:
        await asyncio.wait_for(awaitable, 10)
    return caught.value.errno


async def test_nodes(dom0: Store) -> None:
    await dom0.write("/a/b", "v")
    await dom0.mkdir("/a/c")
    await dom0.write("/a/odd", "\udcff\x00ü")
    assert await dom0.read("/a/b") == "v"
    assert await dom0.read("/a/odd") == "\udcff\x00ü"
    assert await dom0.directory("/a") == ["b", "c", "odd"]
    assert await dom0.directory("/a/b") == []
    assert await dom0.read_or("/a/none") is None
    assert await dom0.read_or("/a/none", "x") == "x"
    assert await dom0.read_or("/a/b", "x") == "v"
    await dom0.set_perms("/a/b", ["n0", "r5"])
    assert await dom0.get_perms("/a/b") == ["n0", "r5"]
    await dom0.rm("/a")
    assert await failure(dom0.rm("/a/b/c")) == "ENOENT"
    await dom0.rm("/a/b/c", missing_ok=True)
    assert await failure(dom0.rm("/", missing_ok=True)) == "EINVAL"
    assert await failure(dom0.directory("/none")) == "ENOENT"


async def test_an_error_says_what_was_asked_and_of_which_path(dom0: Store) -> None:
    with pytest.raises(StoreError, match="READ /none/such: ENOENT"):
        await dom0.read("/none/such")
    assert await failure(dom0.read_or("//")) == "EINVAL"


async def test_domains(dom0: Store) -> None:
    assert await dom0.domain_path(7) == "/local/domain/7"
    assert not await dom0.introduced(7)
    await dom0.introduce(7)
    assert await dom0.introduced(7)
    await dom0.set_target(7, 1)
    await dom0.release(7)
    assert await failure(dom0.release(7)) == "ENOENT"


async def test_a_guest_has_its_own_rights(server: Server, dom0: Store) -> None:
    async with await guest_store(server, 1) as guest:
        await guest.write("data", "x")
        assert await dom0.read("/local/domain/1/data") == "x"
        assert await failure(guest.read("/tool")) == "EACCES"
        await dom0.release(1)
        assert await failure(guest.read("data")) == "EIO"


async def test_a_long_directory(dom0: Store) -> None:
    names = [f"child-{number:04}" for number in range(2000)]
    await asyncio.gather(*(dom0.mkdir(f"/long/{name}") for name in names))
    assert await dom0.directory("/long") == names


async def test_a_directory_that_changes_while_it_is_listed(dom0: Store, tmp_path: Path) -> None:
    names = [f"child-{number:04}" for number in range(2000)]
    await asyncio.gather(*(dom0.mkdir(f"/long/{name}") for name in names))
    async with await Store.connect(tmp_path / "s") as other:
        listing = asyncio.ensure_future(dom0.directory("/long"))
        await other.rm("/long/child-0007")
        assert not listing.done()
        names.remove("child-0007")
        assert await asyncio.wait_for(listing, 10) == names


async def test_watches(dom0: Store, tmp_path: Path) -> None:
    async with await Store.connect(tmp_path / "s") as other, await dom0.watch("/w") as watch:
        assert await anext(watch) == "/w"  # at once
        for value in ("1", "2", "3"):
            await other.write("/w/a", value)
        await other.write("/w/b", "1")
        await dom0.read("/w/a")  # all events are here before this answer
        assert [await anext(watch), await anext(watch)] == ["/w/a", "/w/b"]  # one for three
        await other.rm("/w")
        assert await asyncio.wait_for(anext(watch), 10) == "/w"
    await dom0.write("/w", "1")  # closed: an event more does no harm


async def test_a_closed_watch_ends_its_iteration(dom0: Store) -> None:
    watch = await dom0.watch("/w")
    seen: list[str] = []

    async def iterate() -> None:
        async for path in watch:
            seen.append(path)

    task = asyncio.ensure_future(iterate())
    await dom0.write("/w", "1")
    await watch.close()
    await watch.close()
    await asyncio.wait_for(task, 10)
    assert set(seen) == {"/w"}


async def test_reset_watches_ends_all(dom0: Store, server: Server) -> None:
    watch = await dom0.watch("/w")
    await dom0.reset_watches()
    assert [path async for path in watch] == []
    assert server.watches._by_path == {}
    await watch.close()


async def test_a_watch_that_is_refused_is_not_kept(dom0: Store) -> None:
    assert await failure(dom0.watch("//")) == "EINVAL"
    assert dom0._watches == {}


async def test_transact_commits_and_returns(dom0: Store) -> None:
    await dom0.write("/n", "1")

    async def body(tx: int) -> int:
        value = int(await dom0.read("/n", tx))
        await dom0.write("/n", str(value + 1), tx)
        assert await dom0.read("/n") == str(value)
        return value

    assert await dom0.transact(body) == 1
    assert await dom0.read("/n") == "2"


async def test_transactions_that_conflict_are_run_again(dom0: Store, tmp_path: Path) -> None:
    await dom0.write("/n", "0")
    stores = [await Store.connect(tmp_path / "s") for _ in range(5)]
    runs = 0

    async def count(store: Store) -> None:
        async def body(tx: int) -> None:
            nonlocal runs
            runs += 1
            value = int(await store.read("/n", tx))
            await store.write("/n", str(value + 1), tx)

        for _ in range(5):
            await store.transact(body)

    await asyncio.wait_for(asyncio.gather(*map(count, stores)), 60)
    assert await dom0.read("/n") == "25"
    assert runs > 25
    for store in stores:
        await store.close()


async def test_a_transaction_that_always_conflicts_ends(dom0: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netback.xenstore.aio._FIRST_DELAY", 0.0)
    runs = 0

    async def body(tx: int) -> None:
        nonlocal runs
        runs += 1
        await dom0.write("/n", "in", tx)
        await dom0.write("/n", "out")

    assert await failure(dom0.transact(body)) == "EAGAIN"
    assert runs == 30


async def test_a_body_that_fails_drops_the_transaction(dom0: Store, server: Server) -> None:
    async def body(tx: int) -> None:
        await dom0.write("/n", "x", tx)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await dom0.transact(body)
    assert await dom0.read_or("/n") is None
    assert not any(connection.transactions for connection in server.connections)


async def test_what_was_asked_by_a_cancelled_task_is_dropped(dom0: Store) -> None:
    task = asyncio.ensure_future(dom0.read("/tool"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await dom0.read("/tool") == ""
    assert (dom0._waiting, dom0._asked) == ({}, {})


def transactions(server: Server) -> int:
    """How many are open, of every connection."""
    return sum(len(connection.transactions) for connection in server.connections)


@pytest.mark.parametrize("moment", range(12))
async def test_a_cancelled_transaction_is_ended(dom0: Store, server: Server, moment: int) -> None:
    """xenstored counts a transaction against the domain until it is ended: at its start, in its body, at its commit."""

    async def body(tx: int) -> None:
        for number in range(3):
            await dom0.write(f"/n/{number}", "x", tx)

    task = asyncio.ensure_future(dom0.transact(body))
    for _ in range(moment):
        await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await dom0.read("/tool")
    assert transactions(server) == 0


@pytest.mark.parametrize("moment", range(4))
async def test_a_cancelled_watch_is_removed(dom0: Store, server: Server, moment: int) -> None:
    task = asyncio.ensure_future(dom0.watch("/w"))
    for _ in range(moment):
        await asyncio.sleep(0)
    task.cancel()
    try:
        await (await task).close()
    except asyncio.CancelledError:
        await dom0.read("/tool")
    assert dom0._watches == {}
    assert server.watches._by_path == {}


async def test_a_dropped_watch_is_removed(dom0: Store, server: Server) -> None:
    """Without waiting for the store, as a cancelled task must."""
    watch = await dom0.watch("/w")
    watch.drop()
    watch.drop()
    await dom0.read("/tool")
    assert server.watches._by_path == {}
    assert [path async for path in watch] == []


async def test_a_watch_that_calls_back(dom0: Store) -> None:
    seen: list[str] = []
    watch = await dom0.watch("/w", seen.append)
    await dom0.write("/w/a", "1")
    assert seen == ["/w", "/w/a"]
    await watch.close()


async def test_few_transactions_at_once(server: Server) -> None:
    """An unprivileged domain may have ten, and its other programs need some of them."""
    most = 0

    async def body(tx: int) -> None:
        nonlocal most
        most = max(most, transactions(server))
        await guest.read_or("data", tx=tx)

    async with await guest_store(server, 1) as guest:
        await asyncio.gather(*(guest.transact(body) for _ in range(50)))
        assert most == MAX_TRANSACTIONS


async def test_a_transaction_waits_for_others_of_its_domain(server: Server) -> None:
    """ENOSPC at the start means that the domain has too many: another program's end makes room."""
    async with await guest_store(server, 1) as guest:
        (connection,) = server.connections
        taken = [connection.begin() for _ in range(connection.caller.quota.transactions)]
        tries = 0

        def begin() -> int:
            nonlocal tries
            tries += 1
            if tries == 3:
                connection.transactions.pop(taken[0])
            return type(connection).begin(connection)

        connection.begin = begin  # type: ignore[method-assign]
        await guest.transact(lambda tx: guest.write("data", "x", tx))
        assert tries == 3
        assert await guest.read("data") == "x"


async def test_no_room_in_a_body_is_the_caller_s_error(server: Server) -> None:
    """ENOSPC of a write means that the domain has too many nodes: repeating does not help."""
    runs = 0

    async def body(tx: int) -> None:
        nonlocal runs
        runs += 1
        await guest.write("data", "x" * 3000, tx)

    async with await guest_store(server, 1) as guest:
        assert await failure(guest.transact(body)) == "ENOSPC"
    assert runs == 1


async def test_what_cannot_be_sent_is_refused_here(dom0: Store) -> None:
    """As the store refuses it: a value longer than a message, a path that would arrive as two words."""
    assert await failure(dom0.write("/a", "x" * 5000)) == "E2BIG"
    assert await failure(dom0.read("/a\0/b")) == "EINVAL"
    assert await failure(dom0.write("/a\0/b", "x")) == "EINVAL"
    assert await failure(dom0.watch("/a\0/b")) == "EINVAL"
    assert await dom0.read_or("/a") is None


async def test_who_is_privileged(server: Server, dom0: Store) -> None:
    assert await dom0.privileged()
    async with await guest_store(server, 1) as guest:
        assert not await guest.privileged()
    with pytest.raises(StoreGone):
        await guest.privileged()


async def test_a_request_refused_for_another_reason_takes_no_privilege(
    dom0: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Domain 0's backend would share one watch, and wake for every write of every guest."""

    def refuse(*_: object) -> NoReturn:
        raise StoreError("ENOMEM", "IS_DOMAIN_INTRODUCED 0")

    monkeypatch.setattr(dom0, "_post", refuse)
    assert await dom0.privileged()


async def test_children(dom0: Store) -> None:
    await dom0.mkdir("/a/b")
    assert await dom0.children("/a") == ["b"]
    assert await dom0.children("/none") == []


async def test_thousands_of_requests_at_once(dom0: Store) -> None:
    await asyncio.gather(*(dom0.write(f"/n/{number}", "x" * 2000) for number in range(3000)))
    values = await asyncio.gather(*(dom0.read(f"/n/{number}") for number in range(3000)))
    assert values == ["x" * 2000] * 3000


async def test_a_watch_that_nobody_takes_from_stays_small(
    dom0: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netback.xenstore.aio._MAX_PATHS", 4)
    watch = await dom0.watch("/w")
    for number in range(5):
        await dom0.write(f"/w/{number}", "x")
    assert list(watch._fired) == ["/w", "/w/4"]


async def test_a_device_takes_shorter_messages() -> None:
    """A pseudo terminal in raw mode stands for /dev/xen/xenbus: a character device that carries bytes both ways."""
    master, slave = os.openpty()
    tty.setraw(slave)
    store = await Store.open_device(os.ttyname(slave))
    reading = asyncio.ensure_future(store.read("/a"))
    await asyncio.sleep(0)
    assert os.read(master, 100) == Packet(Op.READ, 1, 0, b"/a\0").encode()
    os.write(master, Packet(Op.READ, 1, 0, b"value").encode())
    assert await asyncio.wait_for(reading, 10) == "value"
    with pytest.raises(PlatformError, match="4080 are allowed"):
        await store.write("/a", "x" * 4078)
    await store.close()
    os.close(slave)
    os.close(master)


async def test_a_device_has_one_request_at_a_time() -> None:
    """Linux 6.12: the payload of the next request would overwrite this one's before xenstored has it."""
    master, slave = os.openpty()
    tty.setraw(slave)
    store = await Store.open_device(os.ttyname(slave))
    reading = [asyncio.ensure_future(store.read(path)) for path in ("/a", "/b")]
    for number, path in ((1, b"/a\0"), (2, b"/b\0")):
        await asyncio.sleep(0)
        assert os.read(master, 100) == Packet(Op.READ, number, 0, path).encode()
        os.write(master, Packet(Op.READ, number, 0, path).encode())
        await asyncio.wait_for(reading[number - 1], 10)
    await store.close()
    os.close(slave)
    os.close(master)


async def test_messages_that_go_in_pieces_stay_whole_and_in_order() -> None:
    """A pseudo terminal takes four kilobytes at a time."""
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    store = Store(os.fdopen(os.dup(slave), "r+b", buffering=0))
    writing = [asyncio.ensure_future(store.write("/a", letter * 3000)) for letter in "xyz"]
    received = b""
    async with asyncio.timeout(10):
        while len(received) < 3 * 3019:
            await asyncio.sleep(0)
            with suppress(BlockingIOError):
                received += os.read(master, 65536)
    expected = [Packet(Op.WRITE, n, 0, b"/a\0" + v * 3000) for n, v in ((1, b"x"), (2, b"y"), (3, b"z"))]
    assert received == b"".join(packet.encode() for packet in expected)
    await store.close()
    for task in writing:
        assert await failure(task) == "EIO"
    os.close(slave)
    os.close(master)


# ---- the far end goes, or misbehaves


class Fake:
    """A store that answers as its function returns."""

    def __init__(self, answer: Callable[[Packet], Packet]) -> None:
        self._sock, self.far = socket.socketpair()
        self._parser = Parser()
        self._answer = answer
        asyncio.get_running_loop().add_reader(self._sock, self._readable)

    def _readable(self) -> None:
        self._parser.feed(self._sock.recv(65536))
        while packet := self._parser.next_packet():
            self._sock.sendall(self._answer(packet).encode())

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()


async def test_a_directory_that_never_rests_is_given_up() -> None:
    parts = 0

    def answer(packet: Packet) -> Packet:
        nonlocal parts
        if packet.type == Op.DIRECTORY:
            return Packet(Op.ERROR, packet.req_id, 0, b"E2BIG\0")
        parts += 1
        return packet._replace(payload=b"%d\0name\0" % parts)

    fake = Fake(answer)
    store = await Store.from_socket(fake.far)
    assert await failure(store.directory("/long")) == "EAGAIN"
    await store.close()
    fake.close()


async def test_an_event_for_nobody_does_no_harm() -> None:
    def answer(packet: Packet) -> Packet:
        event = Packet(Op.WATCH_EVENT, 0, 0, b"/a\0no such token\0").encode()
        fake._sock.sendall(event)
        return packet._replace(payload=b"value")

    fake = Fake(answer)
    store = await Store.from_socket(fake.far)
    assert await store.read("/a") == "value"
    await store.close()
    fake.close()


async def test_a_body_that_loses_its_connection_says_so(dom0: Store, server: Server) -> None:
    async def body(tx: int) -> None:
        server.close()
        await dom0.write("/n", "x", tx)

    assert await failure(dom0.transact(body)) == "EIO"


async def test_when_the_server_goes_everybody_gets_eio(server: Server, dom0: Store) -> None:
    watch = await dom0.watch("/w")
    await anext(watch)
    iterating = asyncio.ensure_future(anext(watch))
    reading = [asyncio.ensure_future(dom0.read("/tool")) for _ in range(2)]
    server.close()
    assert await failure(iterating) == "EIO"
    for task in reading:
        assert await failure(task) == "EIO"
    assert await failure(dom0.read("/tool")) == "EIO"
    assert await failure(anext(watch)) == "EIO"
    await watch.close()


async def test_close_gives_eio_to_those_who_wait() -> None:
    ours, theirs = socket.socketpair()
    store = await Store.from_socket(theirs)
    reading = asyncio.ensure_future(store.read("/a"))
    await asyncio.sleep(0)
    await store.close()
    assert await failure(reading) == "EIO"
    assert ours.recv(100)[16:] == b"/a\0"
    assert ours.recv(100) == b""
    ours.close()


@pytest.mark.parametrize("garbage", [b"\xff" * 16, Packet(Op.READ, 99, 0, b"x").encode()])
async def test_garbage_from_the_server_ends_the_connection(garbage: bytes) -> None:
    ours, theirs = socket.socketpair()
    store = await Store.from_socket(theirs)
    reading = asyncio.ensure_future(store.read("/a"))
    await asyncio.sleep(0)
    ours.send(garbage)
    assert await failure(reading) == "EIO"
    ours.close()


async def test_a_write_that_fails_is_eio() -> None:
    ours, theirs = socket.socketpair()
    store = await Store.from_socket(theirs)
    ours.close()
    assert await failure(store.read("/a")) == "EIO"


async def test_no_store_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="none"):
        await Store.connect(tmp_path / "none")
    with pytest.raises(StoreError, match="none"):
        await Store.open_device(tmp_path / "none")


async def test_a_device_is_read_and_written_message_by_message() -> None:
    """As on /dev/xen/xenbus, where what follows a message in its write is lost: here one write is one packet."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    store = Store(theirs)
    reading = [asyncio.ensure_future(store.read(path)) for path in ("/a", "/b")]
    await asyncio.sleep(0)
    assert [ours.recv(100)[16:], ours.recv(100)[16:]] == [b"/a\0", b"/b\0"]
    ours.send(Packet(Op.READ, 1, 0, b"x").encode() + Packet(Op.READ, 2, 0, b"y").encode())
    assert await asyncio.gather(*reading) == ["x", "y"]
    await store.close()
    ours.close()


async def test_a_client_that_does_not_read_is_not_served_until_it_does(
    server: Server, tmp_path: Path
) -> None:
    """Ten megabytes of answers are asked for and not read: the server keeps neither them nor the requests."""
    count, loop = 100_000, asyncio.get_running_loop()
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    await loop.sock_connect(sock, str(tmp_path / "s"))
    await loop.sock_sendall(sock, Packet(Op.WRITE, 1, 0, b"/a\0" + b"x" * 84).encode())
    sending = asyncio.ensure_future(loop.sock_sendall(sock, Packet(Op.READ, 2, 0, b"/a\0").encode() * count))
    await until(lambda: any(connection.paused for connection in server.connections))
    connection = next(connection for connection in server.connections if connection.paused)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert len(connection._parser._buffer) < 16384 + 19  # one reading, and a message begun before
    assert connection._out_bytes < 65536 + 100
    assert not sending.done()
    due = 19 + count * 100
    while due:
        due -= len(await asyncio.wait_for(loop.sock_recv(sock, 65536), 10))
    await sending
    sock.close()


async def test_the_socket_is_its_owners_alone(server: Server, tmp_path: Path) -> None:
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
