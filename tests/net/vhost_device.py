# SPDX-License-Identifier: Apache-2.0
"""A small vhost-user device, the back end of a VhostUserNetwork: honest, unless a test makes it lie.

A thread answers the requests; the test's own thread moves frames. Imports only constants from netback.
"""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from netback.abi.vhost_user import (
    ADDRESSES,
    HEADER,
    MEMORY,
    NEED_REPLY,
    REPLY,
    STATE,
    U64,
    VERSION,
    Feature,
    Protocol,
    Request,
)
from netback.abi.virtio_net import HEADER as VNET_HEADER

from .far import PATIENCE, await_readable

EVERY_FEATURE = Feature(sum(Feature))
EVERY_PROTOCOL = Protocol(sum(Protocol))
NET_HEADER = 12
"""Bytes: virtio_net_hdr_mrg_rxbuf."""
DESCRIPTOR = struct.Struct("<QIHH")
ELEMENT = struct.Struct("<II")
NO_EVENT = 1
MAX_CONNECTIONS = 64
ASKING = frozenset({Request.GET_FEATURES, Request.GET_PROTOCOL_FEATURES, Request.GET_QUEUE_NUM})


class Virtqueue:
    """The device's end of one virtqueue, in the memory of the connection."""

    def __init__(self, device: Device, index: int) -> None:
        self.device, self.index = device, index
        self.size = self.used = self.avail = self.descriptors = 0
        self.seen = self.done = 0
        """The next entry of the avail and of the used ring."""
        self.kick = self.call = self.error = -1
        self.enabled = False
        self.memory: mmap.mmap | None = None

    def read16(self, at: int) -> int:
        assert self.memory is not None
        return int(struct.unpack_from("<H", self.memory, at)[0])

    def write16(self, at: int, value: int) -> None:
        assert self.memory is not None
        struct.pack_into("<H", self.memory, at, value & 0xFFFF)

    @property
    def waiting(self) -> int:
        """Descriptors that the driver published and the device has not taken."""
        return (self.read16(self.avail + 2) - self.seen) & 0xFFFF

    def await_waiting(self) -> None:
        """Ask for a kick, then wait for a descriptor."""
        while not self.waiting:
            self.write16(self.used + 4 + 8 * self.size, self.seen)
            if not self.waiting:
                await_readable(self.kick)
                os.read(self.kick, 8)

    def take(self) -> int:
        """The next descriptor's id."""
        self.await_waiting()
        self.seen += 1
        return self.read16(self.avail + 4 + 2 * ((self.seen - 1) % self.size))

    def buffer(self, id: int) -> tuple[int, int]:
        """Where a descriptor's buffer is in the memory, and its bytes."""
        assert self.memory is not None
        address, length, flags, _ = DESCRIPTOR.unpack_from(self.memory, self.descriptors + 16 * id)
        assert flags == (2 if self.index % 2 == 0 else 0)
        return address - self.device.base, length

    def put(self, *elements: tuple[int, int]) -> None:
        """Publish used descriptors, (id, bytes written), at once."""
        assert self.memory is not None
        before = self.done
        for id, length in elements:
            ELEMENT.pack_into(
                self.memory, self.used + 4 + 8 * (self.done % self.size), id & 0xFFFFFFFF, length & 0xFFFFFFFF
            )
            self.done += 1
        self.publish(self.done)
        if self.wants_call(before):
            self.notify()

    def publish(self, index: int) -> None:
        """Store the used ring's index, whatever it is."""
        self.write16(self.used + 2, index)

    def wants_call(self, before: int) -> bool:
        if Feature.EVENT_IDX not in self.device.agreed:
            return not self.read16(self.avail) & NO_EVENT
        event = self.read16(self.avail + 4 + 2 * self.size)
        return (self.done - event - 1) & 0xFFFF < (self.done - before) & 0xFFFF

    def notify(self) -> None:
        os.eventfd_write(self.call, 1)


class Device:
    """Listens at `path`, or connects to it with `client`, one connection at a time; the last one counts.

    `lies`: what it does instead of answering a request: bytes to send, b"" for silence, or a function of the
    connection.
    """

    def __init__(
        self,
        path: Path,
        *,
        features: int = EVERY_FEATURE,
        protocol: int = EVERY_PROTOCOL,
        pairs: int = 1,
        client: bool = False,
    ) -> None:
        self.path, self.features, self.protocol, self.pairs, self.client = (
            path,
            features,
            protocol,
            pairs,
            client,
        )
        self.lies: dict[Request, bytes | Callable[[socket.socket], object]] = {}
        self.requests: list[Request] = []
        self.agreed = Feature(0)
        self.base = 0
        self.connections = 0
        self.virtqueues: list[Virtqueue] = []
        self.connection: socket.socket | None = None
        self._ready = [threading.Event() for _ in range(MAX_CONNECTIONS)]
        self._given: list[int] = []
        self._ended = False
        self._listener: socket.socket | None = None
        if not client:
            self.listen()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def listen(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen(8)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, and its socket."""
        if self._ended:
            return
        self._ended = True
        self.drop()
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self.path.unlink(missing_ok=True)
        self._thread.join()
        for fd in self._given:
            os.close(fd)

    def drop(self) -> None:
        """Close the connection; the next one may come."""
        connection = self.connection
        if connection is not None:
            with suppress(OSError):  # it has ended by itself
                connection.shutdown(socket.SHUT_RDWR)

    # ---- requests, in the thread

    def _run(self) -> None:
        while not self._ended:
            try:
                self._meet()
                self._serve()
            except (OSError, EOFError):
                pass
            finally:
                if self.connection is not None:
                    self.connection.close()
                    self.connection = None

    def _meet(self) -> None:
        if self.client:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(str(self.path))
            except OSError:
                connection.close()
                raise
        else:
            assert self._listener is not None
            connection, _ = self._listener.accept()
        self.virtqueues = [Virtqueue(self, index) for index in range(2 * self.pairs)]
        self.connections += 1
        self.connection = connection

    def _serve(self) -> None:
        connection = self.connection
        assert connection is not None
        while True:
            data, asides, _, _ = connection.recvmsg(HEADER.size, 256)
            if not data:
                raise EOFError
            kind, flags, size = HEADER.unpack(data)
            payload = connection.recv(size) if size else b""
            fds = array.array("i")
            for _, _, aside in asides:
                fds.frombytes(aside)
            self._given += fds
            self._handle(Request(kind), flags, payload, list(fds))

    def _handle(self, request: Request, flags: int, payload: bytes, fds: list[int]) -> None:
        assert self.connection is not None
        self.requests.append(request)
        answer = self._act(request, payload, fds)
        lie = self.lies.get(request)
        if callable(lie):
            lie(self.connection)
        elif lie is not None:
            self.connection.sendall(lie)
        elif request in ASKING or flags & NEED_REPLY:
            self.connection.sendall(reply(request, answer))
        if request is Request.SET_VRING_ENABLE or Feature.PROTOCOL_FEATURES not in self.agreed:
            self._note_ready()

    def _note_ready(self) -> None:
        pairs = [queue for queue in self.virtqueues if queue.kick >= 0]
        enabled = Feature.PROTOCOL_FEATURES not in self.agreed
        if len(pairs) > 1 and all(enabled or queue.enabled for queue in pairs):
            self._ready[self.connections - 1].set()

    def _act(self, request: Request, payload: bytes, fds: list[int]) -> int:
        match request:
            case Request.GET_FEATURES:
                return self.features
            case Request.GET_PROTOCOL_FEATURES:
                return self.protocol
            case Request.GET_QUEUE_NUM:
                return self.pairs
            case Request.SET_FEATURES:
                self.agreed = Feature(*U64.unpack(payload))
                assert not self.agreed & ~self.features
            case Request.SET_MEM_TABLE:
                _, _, self.base, size, _, _ = MEMORY.unpack(payload)
                memory = mmap.mmap(fds.pop(), size)
                for queue in self.virtqueues:
                    queue.memory = memory
            case Request.SET_VRING_NUM:
                index, self.virtqueues[index].size = STATE.unpack(payload)
            case Request.SET_VRING_ADDR:
                index, _, *addresses, _ = ADDRESSES.unpack(payload)
                queue = self.virtqueues[index]
                queue.descriptors, queue.used, queue.avail = (at - self.base for at in addresses)
            case Request.SET_VRING_CALL:
                self.virtqueues[payload[0]].call = fds.pop()
            case Request.SET_VRING_ERR:
                self.virtqueues[payload[0]].error = fds.pop()
            case Request.SET_VRING_KICK:
                self.virtqueues[payload[0]].kick = fds.pop()
            case Request.SET_VRING_ENABLE:
                index, self.virtqueues[index].enabled = STATE.unpack(payload)
        return 0

    # ---- frames, in the test's thread: each with its virtio_net_hdr

    def await_ready(self, connection: int = 0) -> None:
        """Wait until the virtqueues of the connection with this number may be used; 0: of the last one."""
        number = (connection or max(1, self.connections)) - 1
        assert self._ready[number].wait(PATIENCE / 1000), "nobody set up virtqueues"

    @property
    def is_ready(self) -> bool:
        """Whether the virtqueues of the last connection may be used."""
        return self.connections > 0 and self._ready[self.connections - 1].is_set()

    @property
    def rx(self) -> Virtqueue:
        self.await_ready()
        return self.virtqueues[0]

    @property
    def tx(self) -> Virtqueue:
        self.await_ready()
        return self.virtqueues[1]

    def send(self, message: bytes, pair: int = 0) -> None:
        """Give the driver a frame, in as many buffers as it takes."""
        self.await_ready()
        queue = self.virtqueues[2 * pair]
        assert queue.memory is not None
        body = message[VNET_HEADER.size :]
        parts: list[tuple[int, int]] = []
        left = NET_HEADER + len(body)
        while left:
            id = queue.take()
            parts.append((id, min(left, queue.buffer(id)[1])))
            left -= parts[-1][1]
        assert len(parts) == 1 or Feature.MRG_RXBUF in self.agreed
        data = message[: VNET_HEADER.size] + struct.pack("<H", len(parts)) + body
        for id, length in parts:
            at, _ = queue.buffer(id)
            queue.memory[at : at + length] = data[:length]
            data = data[length:]
        queue.put(*parts)

    def recv(self, pair: int = 0) -> bytes:
        """The driver's next frame."""
        self.await_ready()
        queue = self.virtqueues[2 * pair + 1]
        assert queue.memory is not None
        id = queue.take()
        at, length = queue.buffer(id)
        data = queue.memory[at : at + length]
        queue.put((id, 0))
        assert data[VNET_HEADER.size : NET_HEADER] == b"\0\0"
        return data[: VNET_HEADER.size] + data[NET_HEADER:]


def reply(request: int, value: int, *, flags: int = VERSION | REPLY, size: int = U64.size) -> bytes:
    """A device's reply."""
    return HEADER.pack(request, flags, size) + U64.pack(value)
