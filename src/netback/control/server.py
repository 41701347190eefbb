# SPDX-License-Identifier: Apache-2.0
"""Serves the control socket: requests of many clients at the same time, one at a time of each, and subscriptions.

What any client may cost is bounded. Memory: one line that it sends, one that it does not read, and a feed of
`feed.MAX_EVENTS` for each subscription. Places: a new client takes the place of the one that can best do without it.
Time: after each answer the loop belongs to others for as long as the answer took.

This module transports. The backend gives it a coroutine for each method and a source for each topic.
"""

import asyncio
import logging
import os
import socket
import struct
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import msgspec

from netback.control import rpc
from netback.control.feed import Batch, Topics
from netback.control.rpc import Call, Code, RpcError
from netback.control.schema import (
    METHODS,
    Subscribed,
    SubscribeRequest,
    Unsubscribed,
    UnsubscribeRequest,
)
from netback.directory import OWNER_ONLY, Access, Directory
from netback.errors import ConfigError, NetbackError, printable
from netback.observe.trace import LogBudget

log = logging.getLogger("netback.control")

MAX_CLIENTS = 32
"""Connections served at the same time."""
MAX_SUBSCRIPTIONS = 8
"""Subscriptions of one connection."""
WRITE_SECONDS = 10.0
"""Seconds in which a client must read an answer."""
_FLUSH_SECONDS = 1.0
"""Seconds in which a client that is sent away may read why."""
_MAX_PAUSE = 0.25
"""Seconds, at most, that a client waits after an answer."""
_PEER = struct.Struct("3i")
"""struct ucred of unix(7): pid, uid, gid."""

Calls = Mapping[str, Callable[[Any], Awaitable[object]]]
"""A coroutine for each method but `subscribe` and `unsubscribe`: from its parameters to its result (`schema.METHODS`).
A NetbackError that it raises is the answer."""


class _Event(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of the notification `event`."""

    subscription: int
    topic: str
    lost: int
    more: bool
    events: object


class _Ended(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of the notification `ended`."""

    subscription: int
    reason: str


ACCEPT_STEPS = 8
"""Iterations of the loop in which a connection that asyncio has accepted becomes a client, which can then be ended.
asyncio never closes one that it has accepted, but not made a transport of, when its server is closed.
"""


@asynccontextmanager
async def serve_control(
    directory: Directory, calls: Calls, topics: Topics, access: Access = OWNER_ONLY
) -> AsyncIterator[None]:
    """Serve while the context lasts. The caller holds the backend's lock, so an existing socket is a dead process's.

    Calls run in the loop's thread. ConfigError: the socket cannot be made, or its group not be set.
    """
    shared = _Shared(calls, topics)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _Client(shared, reader, writer).run()

    listening = directory.listen(rpc.SOCKET, backlog=MAX_CLIENTS, access=access)
    server = await asyncio.start_unix_server(serve, sock=listening, limit=rpc.MAX_LINE)
    try:
        yield
    finally:
        asyncio.get_running_loop().remove_reader(listening)  # accept no more
        for _ in range(ACCEPT_STEPS):
            await asyncio.sleep(0)
        server.close()
        directory.unlink(rpc.SOCKET)
        clients = tuple(shared.clients)
        for client in clients:
            client.task.cancel()
        await asyncio.gather(*(client.task for client in clients), return_exceptions=True)
        for client in clients:
            client.drop()


@dataclass(slots=True)
class _Shared:
    """What all clients of one socket share."""

    calls: Calls
    topics: Topics
    clients: "list[_Client]" = field(default_factory=list)
    pause: asyncio.Lock = field(default_factory=asyncio.Lock)
    budget: LogBudget = field(default_factory=LogBudget)

    def admit(self, client: "_Client") -> None:
        """Give a client a place. If there is none left, one of the user with the most clients loses its own: a client
        without a subscription rather than one with, and the one that has been silent for longest.
        """
        self.clients.append(client)
        if len(self.clients) <= MAX_CLIENTS:
            return
        ((greediest, _),) = Counter(client.uid for client in self.clients).most_common(1)
        candidates = [each for each in self.clients if each.uid == greediest and each is not client]
        victim = min(candidates or [client], key=lambda each: (bool(each.feeds), each.heard))
        self.clients.remove(victim)  # now: more clients may come before its task runs
        victim.send_away(f"there are more than {MAX_CLIENTS} clients, and this one was silent for longest")


@dataclass(frozen=True, slots=True)
class _Subscription:
    """A subscription's source and the task that forwards it."""

    batches: AsyncGenerator[Batch, None]
    task: asyncio.Task[None]

    async def end(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task
        await self.batches.aclose()  # a task that was cancelled before its first step has not closed it


class _Client:
    """One connection."""

    def __init__(self, shared: _Shared, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.uid = _uid(writer.get_extra_info("socket"))
        self.feeds: dict[int, _Subscription] = {}
        self._shared, self._reader, self._writer = shared, reader, writer
        self._loop = asyncio.get_running_loop()
        self.heard = self._loop.time()
        self._numbers = count(1)
        self._writing = asyncio.Lock()
        self._answered = asyncio.Event()
        """Set while no request is being answered."""

    async def run(self) -> None:
        """Serve until the connection ends."""
        self._shared.admit(self)
        try:
            while line := await self._reader.readline():
                if not line.endswith(b"\n"):
                    return
                await self._serve(line)
        except TimeoutError:
            self._warn(f"did not read its answer within {WRITE_SECONDS:g} s")
        except ValueError:  # from readline
            self._say_last(Code.INVALID_REQUEST, f"a line has at most {rpc.MAX_LINE} bytes")
        except OSError:
            pass
        finally:
            with suppress(ValueError):  # it was sent away
                self._shared.clients.remove(self)
            self._close()
            for feed in tuple(self.feeds.values()):
                await feed.end()

    def send_away(self, reason: str) -> None:
        """End the connection, and say why if the client has read everything before."""
        self._say_last(Code.BUSY, reason)
        self.task.cancel()

    async def _serve(self, line: bytes) -> None:
        """Answer one line, then leave the loop to others: all clients together get half of its time."""
        self.heard = start = self._loop.time()
        self._answered.clear()
        try:
            answer = await self._answer_line(line)
            if answer:
                async with asyncio.timeout(WRITE_SECONDS):
                    await self._send(answer)
        finally:
            self._answered.set()
        pause = min(self._loop.time() - start, _MAX_PAUSE)
        async with self._shared.pause:
            await asyncio.sleep(pause)

    async def _answer_line(self, line: bytes) -> bytes:
        try:
            message = rpc.decode_line(line)
        except RpcError as error:
            return rpc.encode_error(error.code, printable(str(error)))
        if isinstance(message, msgspec.Raw):
            return await self._answer(message)
        answers: list[bytes] = []
        for each in message:
            full = sum(map(len, answers)) > rpc.MAX_BATCH_ANSWER
            answers.append(await self._answer(each, refuse=full))
        return rpc.join_batch(filter(None, answers))

    async def _answer(self, message: msgspec.Raw, *, refuse: bool = False) -> bytes:
        """The answer to one request, nothing to a notification. `refuse`: its batch's answers are too long already."""
        try:
            call = rpc.decode_call(message)
        except RpcError as error:
            return rpc.encode_error(error.code, printable(str(error)))
        try:
            if refuse:
                raise RpcError(Code.FAILED, "the answers to this batch are too long: send fewer requests")
            answer = rpc.encode_result(await self._result(call), call.id)
        except Exception as error:
            answer = rpc.encode_error(*self._explain(call, error), call.id)
        return answer if call.id else b""

    async def _result(self, call: Call) -> object:
        method = METHODS.get(call.method)
        if method is None:
            raise RpcError(
                Code.NO_METHOD, f"there is no method {call.method[:64]!a}; there are {', '.join(METHODS)}"
            )
        params = rpc.decode_params(call, method.params)
        match params:
            case SubscribeRequest():
                return await self._subscribe(params)
            case UnsubscribeRequest():
                return await self._unsubscribe(params)
        return await self._shared.calls[call.method](params)

    def _explain(self, call: Call, error: Exception) -> tuple[int, str]:
        """The code and the text of an error. A bug in one method must not end the backend."""
        text = printable(str(error))
        match error:
            case RpcError():
                return error.code, text
            case ConfigError():
                return Code.REFUSED, text
            case NetbackError() | OSError():
                return Code.FAILED, text
        self._shared.budget.warn(log, f"cannot answer {printable(call.method[:64])}", exc_info=True)
        return Code.INTERNAL, printable(f"{call.method[:64]}: unexpected {error!r}")

    # ---- subscriptions

    async def _subscribe(self, request: SubscribeRequest) -> Subscribed:
        if len(self.feeds) >= MAX_SUBSCRIPTIONS:
            raise RpcError(Code.BUSY, f"a connection has at most {MAX_SUBSCRIPTIONS} subscriptions")
        batches = self._shared.topics[request.topic](request)
        first = await anext(batches)
        number = next(self._numbers)
        task = asyncio.create_task(self._forward(number, request.topic, batches, first))
        self.feeds[number] = _Subscription(batches, task)
        return Subscribed(subscription=number)

    async def _unsubscribe(self, request: UnsubscribeRequest) -> Unsubscribed:
        feed = self.feeds.pop(request.subscription, None)
        if feed is None:
            raise ConfigError(f"there is no subscription {request.subscription} on this connection")
        await feed.end()
        return Unsubscribed(subscription=request.subscription)

    async def _forward(
        self, number: int, topic: str, batches: AsyncGenerator[Batch, None], batch: Batch
    ) -> None:
        """Send a topic's batches, each when the client has room for it, the first after the answer to `subscribe`."""
        await self._answered.wait()
        try:
            while True:
                event = _Event(
                    subscription=number, topic=topic, lost=batch.lost, more=batch.more, events=batch.events
                )
                await self._send(rpc.encode_notification("event", event), batch.descriptors)
                batch = await anext(batches)
        except (NetbackError, OSError) as error:
            reason = printable(str(error))
        except Exception as error:
            self._shared.budget.warn(log, f"a subscription to {topic} ended", exc_info=True)
            reason = printable(f"unexpected {error!r}")
        self.feeds.pop(number, None)
        with suppress(OSError):
            await self._send(rpc.encode_notification("ended", _Ended(subscription=number, reason=reason)))

    # ---- output

    async def _send(self, line: bytes, descriptors: tuple[int, ...] = ()) -> None:
        """Write a line, with descriptors if there are some, and wait until the client has read most of it. OSError: the
        connection is gone.
        """
        async with self._writing:
            if self._writer.transport.is_closing():  # asyncio logs each further write
                raise ConnectionResetError
            if descriptors:
                line = line[await self._hand_over(line, descriptors) :]
            self._writer.write(line)
            await self._writer.drain()

    async def _hand_over(self, line: bytes, descriptors: tuple[int, ...]) -> int:
        """Send the beginning of a line with descriptors (SCM_RIGHTS of unix(7)), which asyncio cannot; returns how many
        bytes were sent. It waits until everything before was: the kernel ties descriptors to a byte.
        """
        transport = self._writer.transport
        low, high = transport.get_write_buffer_limits()
        transport.set_write_buffer_limits(0)
        await self._writer.drain()
        transport.set_write_buffer_limits(high, low)
        with socket.socket(fileno=os.dup(self._writer.get_extra_info("socket").fileno())) as sock:
            while True:
                try:
                    return socket.send_fds(sock, [line], descriptors, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    writable = self._loop.create_future()
                    self._loop.add_writer(sock, writable.set_result, None)
                    try:
                        await writable
                    finally:
                        self._loop.remove_writer(sock)

    def _say_last(self, code: Code, reason: str) -> None:
        """The last line of a connection, if nothing waits before it; no memory is spent on one that does not read."""
        self._warn(f"is sent away: {reason}")
        if not self._writer.transport.get_write_buffer_size():
            self._writer.write(rpc.encode_error(code, reason))

    def _close(self) -> None:
        self._writer.close()
        self._loop.call_later(_FLUSH_SECONDS, self.drop)

    def drop(self) -> None:
        """End the connection at once, whatever the client has not read."""
        self._writer.transport.abort()

    def _warn(self, what: str) -> None:
        self._shared.budget.warn(log, f"a client of user {self.uid} {what}")


def _uid(sock: socket.socket) -> int:
    """The user at the other end (SO_PEERCRED of unix(7))."""
    _, uid, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return int(uid)
