# SPDX-License-Identifier: Apache-2.0
"""The asyncio store client, over a descriptor that speaks xs_wire.

One class serves xenstored's socket, the emulated store's and /dev/xen/xenbus.

A caller may be cancelled at any await. A request that was sent is still answered, so its effect is undone without the
caller: a transaction is ended, a watch is removed. Requests of one connection are served in order, so the undoing
request needs no reply.
"""

import asyncio
import math
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from netback.abi.xs_wire import HEADER, PAYLOAD_MAX, Errno, Op
from netback.errors import PlatformError
from netback.xenstore.client import (
    Answer,
    Client,
    Event,
    directory_part,
    joined,
    strings,
    to_bytes,
    to_text,
    transaction_id,
)
from netback.xenstore.errors import StoreProtocolError

T = TypeVar("T")

_READ_BYTES = 65536
_TRIES = 30  # attempts of a transaction that conflicts or is refused; with the delays below about two seconds
_FIRST_DELAY = 0.001
_MAX_DELAY = 0.1
_MAX_PATHS = 16384  # paths that a watch keeps until they are taken

MAX_TRANSACTIONS = 8
"""Maximum open transactions of one connection. An unprivileged domain may have 10 for all its programs."""

QUOTA_ERRNOS: Mapping[str, str] = {
    Errno.ENOSPC: "nodes, or transactions open at once",
    Errno.E2BIG: "watches",
    "EQUOTA": "nodes, watches or transactions",
}
"""The errors for a domain that reached a quota, and that quota. oxenstored returns EQUOTA for all."""


class StoreError(PlatformError):
    """The store refused a request. `errno` is the name that the store returned."""

    def __init__(self, errno: str, what: str) -> None:
        super().__init__(f"xenstore: {what}: {errno}", errno)


class StoreGone(StoreError):
    """The connection to the store ended: no further request on it is answered. `errno` is EIO."""

    def __init__(self, what: str) -> None:
        super().__init__(Errno.EIO, what)


class _TryAgain(StoreError):
    """A transaction that may succeed when it is repeated."""


class Endpoint(Protocol):
    """A socket, or a file opened without buffering."""

    def fileno(self) -> int: ...
    def close(self) -> None: ...


class Store:
    """A connection to the store.

    async with await Store.connect(path) as store:
        await store.write("/local/domain/3/name", "guest")
        async for path in await store.watch("/local/domain/3"):
            ...
    """

    def __init__(
        self, endpoint: Endpoint, payload_max: int = PAYLOAD_MAX, in_flight_max: float = math.inf
    ) -> None:
        self._endpoint = endpoint
        self._fd = endpoint.fileno()
        os.set_blocking(self._fd, False)
        self._loop = asyncio.get_running_loop()
        self._client = Client(payload_max)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._asked: dict[int, str] = {}
        self._watches: dict[str, Watch] = {}
        self._last_token = 0
        self._in_flight = 0
        self._in_flight_max = in_flight_max
        self._unsent: deque[bytes] = deque()
        self._transactions = asyncio.Semaphore(MAX_TRANSACTIONS)
        self._gone = ""  # why the connection ended
        self._loop.add_reader(self._fd, self._readable)

    @classmethod
    async def connect(cls, path: str | Path) -> Self:
        """Connect to a store's UNIX socket."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, str(path))
        except OSError as error:
            sock.close()
            raise StoreGone(f"cannot connect to {path} ({error.strerror or error})") from error
        return cls(sock)

    @classmethod
    async def from_socket(cls, sock: socket.socket) -> Self:
        """Take over a connected socket."""
        return cls(sock)

    @classmethod
    async def open_device(cls, path: str | Path) -> Self:
        """Open a character device, /dev/xen/xenbus."""
        try:
            device = open(path, "r+b", buffering=0)  # noqa: ASYNC230, PTH123, SIM115 (a device opens at once)
        except OSError as error:
            raise StoreGone(f"cannot open {path} ({error.strerror or error})") from error
        # Linux accepts no more in one message with its header. It keeps a request's payload in this descriptor's only
        # buffer until it has copied it to xenstored, and a second request would overwrite it: one at a time, as
        # libxenstore does.
        return cls(device, PAYLOAD_MAX - HEADER.size, in_flight_max=1)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; requests that wait for an answer raise StoreGone."""
        self._fail("closed")

    # ---- nodes

    async def read(self, path: str, tx: int | None = None) -> str:
        return to_text(await self._request(Op.READ, path, tx=tx))

    async def read_or(self, path: str, default: str | None = None, tx: int | None = None) -> str | None:
        """The value, or the default if the node does not exist."""
        try:
            return await self.read(path, tx)
        except StoreError as error:
            if error.errno != Errno.ENOENT:
                raise
            return default

    async def write(self, path: str, value: str, tx: int | None = None) -> None:
        if "\0" in path:  # the server would take the text after it as the value
            raise StoreError(Errno.EINVAL, f"WRITE {path!a}")
        await self._send(Op.WRITE, path, joined(to_bytes(path)) + to_bytes(value), tx)

    async def mkdir(self, path: str, tx: int | None = None) -> None:
        await self._request(Op.MKDIR, path, tx=tx)

    async def rm(self, path: str, tx: int | None = None, missing_ok: bool = False) -> None:
        """Remove the node and all below it. xenstored answers OK if only the node is missing, ENOENT if its parent is
        missing as well; `missing_ok` accepts both."""
        try:
            await self._request(Op.RM, path, tx=tx)
        except StoreError as error:
            if not (missing_ok and error.errno == Errno.ENOENT):
                raise

    async def directory(self, path: str, tx: int | None = None) -> list[str]:
        """The names of the children."""
        try:
            names = await self._request(Op.DIRECTORY, path, tx=tx)
        except StoreError as error:
            if error.errno != Errno.E2BIG:
                raise
            names = await self._long_directory(path, tx)
        return [to_text(name) for name in strings(names)]

    async def children(self, path: str, tx: int | None = None) -> list[str]:
        """As `directory`, but empty if the node does not exist."""
        try:
            return await self.directory(path, tx)
        except StoreError as error:
            if error.errno != Errno.ENOENT:
                raise
            return []

    async def get_perms(self, path: str, tx: int | None = None) -> list[str]:
        return [to_text(perm) for perm in strings(await self._request(Op.GET_PERMS, path, tx=tx))]

    async def set_perms(self, path: str, perms: list[str], tx: int | None = None) -> None:
        await self._request(Op.SET_PERMS, path, *perms, tx=tx)

    async def transact(self, body: Callable[[int], Awaitable[T]]) -> T:
        """Run the body in a transaction and commit it.

        The body runs again, after growing pauses, while others interfere (EAGAIN at the commit). A domain with too many
        open transactions (ENOSPC at the start) waits in the same way. Both are bounded: StoreError has the last errno.
        """
        delay = _FIRST_DELAY
        for _ in range(_TRIES - 1):
            try:
                async with self._transactions:
                    return await self._try_transaction(body)
            except _TryAgain:
                pass
            await asyncio.sleep(delay)
            delay = min(delay * 2, _MAX_DELAY)
        async with self._transactions:
            return await self._try_transaction(body)

    # ---- watches

    async def watch(self, path: str, on_fire: Callable[[str], object] | None = None) -> "Watch":
        """Watch the node and all below it. The first event, the watch's own path, comes at once.

        `on_fire` is called with each path that fires; without it the watch is iterated.
        """
        self._last_token += 1
        watch = Watch(self, path, f"{self._last_token:x}", on_fire)
        self._watches[watch.token] = watch  # the first event may come before the reply
        try:
            await self._request(Op.WATCH, path, watch.token)
        except StoreError:
            del self._watches[watch.token]
            raise
        except BaseException:
            watch.drop()
            raise
        return watch

    async def reset_watches(self) -> None:
        """Remove every watch and transaction of this connection (left by a predecessor in this domain)."""
        await self._send(Op.RESET_WATCHES, "", b"\0", None)
        for watch in self._watches.values():
            watch.end()
        self._watches.clear()

    # ---- domains

    async def privileged(self) -> bool:
        """Whether this connection has domain 0's rights, to which no quota applies."""
        try:
            await self.introduced(0)
        except StoreGone:
            raise
        except StoreError as error:  # xenstore.txt: IS_DOMAIN_INTRODUCED is for domain 0 alone
            return error.errno != Errno.EACCES
        return True

    async def domain_path(self, domid: int) -> str:
        return to_text((await self._request(Op.GET_DOMAIN_PATH, str(domid))).rstrip(b"\0"))

    async def introduced(self, domid: int) -> bool:
        return await self._request(Op.IS_DOMAIN_INTRODUCED, str(domid)) == b"T\0"

    async def introduce(self, domid: int, frame: int = 1, port: int = 1) -> None:
        await self._request(Op.INTRODUCE, str(domid), str(frame), str(port))

    async def release(self, domid: int) -> None:
        await self._request(Op.RELEASE, str(domid))

    async def set_target(self, domid: int, target: int) -> None:
        await self._request(Op.SET_TARGET, str(domid), str(target))

    # ---- requests

    async def _request(self, op: Op, *words: str, tx: int | None = None) -> bytes:
        if any("\0" in word for word in words):  # the server would take it as two words
            raise StoreError(Errno.EINVAL, f"{op.name} {words[0]!a}")
        return await self._send(op, words[0], joined(*map(to_bytes, words)), tx)

    async def _send(self, op: Op, what: str, payload: bytes, tx: int | None) -> bytes:
        return await self._post(op, what, payload, tx)

    def _post(self, op: Op, what: str, payload: bytes, tx: int | None) -> asyncio.Future[bytes]:
        """Send a request; the future has the reply's payload, or StoreError."""
        about = f"{op.name} {what}".rstrip()
        if self._gone:
            raise StoreGone(f"{about} ({self._gone})")
        try:
            number, message = self._client.request(op, payload, tx or 0)
        except PlatformError as error:  # longer than a message may be
            raise StoreError(error.errno, f"{about} ({error})") from error
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting[number] = future
        self._asked[number] = about
        self._unsent.append(message)
        if len(self._unsent) == 1:
            self._write()
        return future

    def _undo(self, op: Op, what: str, payload: bytes, tx: int | None = None) -> None:
        """Send a request whose reply does not matter."""
        with suppress(StoreError):
            self._post(op, what, payload, tx).add_done_callback(_ignore)

    async def _try_transaction(self, body: Callable[[int], Awaitable[T]]) -> T:
        tx = await self._begin()
        try:
            result = await body(tx)
        except BaseException:
            self._end(tx)
            raise
        try:
            await self._send(Op.TRANSACTION_END, "commit", b"T\0", tx)
        except StoreError as error:
            if error.errno == Errno.EAGAIN:
                raise _TryAgain(error.errno, "TRANSACTION_END commit") from error
            raise
        return result

    async def _begin(self) -> int:
        """Start a transaction; one that starts after its caller was cancelled is ended."""
        starting = self._post(Op.TRANSACTION_START, "", b"\0", None)
        try:
            await asyncio.wait((starting,))  # a cancelled shield would log a refusal as unhandled
            return transaction_id(starting.result())
        except asyncio.CancelledError:
            starting.add_done_callback(self._end_started)
            raise
        except StoreError as error:
            if error.errno == Errno.ENOSPC:
                raise _TryAgain(error.errno, "TRANSACTION_START") from error
            raise

    def _end_started(self, starting: asyncio.Future[bytes]) -> None:
        if not starting.cancelled() and starting.exception() is None:
            self._end(transaction_id(starting.result()))

    def _end(self, tx: int) -> None:
        self._undo(Op.TRANSACTION_END, "abort", b"F\0", tx)

    async def _long_directory(self, path: str, tx: int | None) -> bytes:
        """Read part after part; start again if the node changed between two parts."""
        for _ in range(_TRIES):
            names, generation, complete = b"", b"", False
            while not complete:
                part = directory_part(await self._request(Op.DIRECTORY_PART, path, str(len(names)), tx=tx))
                if names and part.generation != generation:
                    break
                names, generation, complete = names + part.names, part.generation, part.complete
            else:
                return names
        raise StoreError(Errno.EAGAIN, f"DIRECTORY_PART {path}: keeps changing")

    async def _unwatch(self, watch: "Watch") -> None:
        if self._watches.pop(watch.token, None) is not None and not self._gone:
            await self._request(Op.UNWATCH, watch.path, watch.token)

    def _drop(self, watch: "Watch") -> None:
        if self._watches.pop(watch.token, None) is not None:
            self._undo(Op.UNWATCH, watch.path, joined(to_bytes(watch.path), to_bytes(watch.token)))

    # ---- bytes

    def _readable(self) -> None:
        try:
            for item in self._client.receive(self._read()):
                self._take(item)
            self._write()
        except BlockingIOError:
            return
        except (OSError, StoreProtocolError) as error:
            self._fail(str(error))

    def _read(self) -> bytes:
        data = os.read(self._fd, _READ_BYTES)
        if not data:
            raise ConnectionResetError("the store ended the connection")
        return data

    def _take(self, item: Answer | Event) -> None:
        if isinstance(item, Event):
            if (watch := self._watches.get(item.token)) is not None:
                watch.fired(item.path)
            return
        self._in_flight -= 1
        future = self._waiting.pop(item.req_id)
        about = self._asked.pop(item.req_id)
        if future.done():  # its caller was cancelled
            return
        if item.errno:
            future.set_exception(StoreError(item.errno, about))
        else:
            future.set_result(item.payload)

    def _write(self) -> None:
        """Send queued messages, one per write: /dev/xen/xenbus drops what follows a message in its write."""
        try:
            while self._unsent and self._in_flight < self._in_flight_max:
                message = self._unsent[0]
                rest = message[os.write(self._fd, message) :]
                self._unsent.popleft()
                if rest:
                    self._unsent.appendleft(rest)
                else:
                    self._in_flight += 1
        except BlockingIOError:
            self._loop.add_writer(self._fd, self._writable)
        except OSError as error:
            self._fail(str(error))

    def _writable(self) -> None:
        self._loop.remove_writer(self._fd)
        self._write()

    def _fail(self, why: str) -> None:
        if self._gone:
            return
        self._gone = why
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._endpoint.close()
        self._unsent.clear()
        for number, future in self._waiting.items():
            if not future.done():
                future.set_exception(StoreGone(f"{self._asked[number]} ({why})"))
        self._waiting.clear()
        for watch in self._watches.values():
            watch.fail(StoreGone(f"watch on {watch.path} ({why})"))


class Watch:
    """The paths that fired, as an async iterator; a path that fires again before it was taken comes once.

    If more than 16384 are queued, the watch's own path replaces them all: read everything, as at the beginning. The
    iterator ends when the watch is closed, and raises StoreGone when the connection ended. With `on_fire` no path is
    queued.
    """

    def __init__(
        self, store: Store, path: str, token: str, on_fire: Callable[[str], object] | None = None
    ) -> None:
        self.path = path
        self.token = token
        self._store = store
        self._on_fire = on_fire
        self._fired: dict[str, None] = {}
        self._news = asyncio.Event()
        self._ended = False
        self._error: StoreError | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        await self._news.wait()
        if self._error is not None:
            raise self._error
        if self._ended:
            raise StopAsyncIteration
        path = next(iter(self._fired))
        del self._fired[path]
        if not self._fired:
            self._news.clear()
        return path

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop watching, and wait until the store confirms it; the iteration ends."""
        self.end()
        await self._store._unwatch(self)

    def drop(self) -> None:
        """Stop watching without waiting for the store."""
        self.end()
        self._store._drop(self)

    def fired(self, path: str) -> None:
        """Note an event; its path need not come from the store."""
        if self._on_fire is not None:
            self._on_fire(path)
            return
        if len(self._fired) >= _MAX_PATHS:
            self._fired = {self.path: None}
        else:
            self._fired[path] = None
        self._news.set()

    def end(self) -> None:
        self._ended = True
        self._news.set()

    def fail(self, error: StoreError) -> None:
        self._error = error
        self._news.set()


def _ignore(done: asyncio.Future[bytes]) -> None:
    """Consume the error of a future that is not awaited; asyncio would log it."""
    if not done.cancelled():
        done.exception()
