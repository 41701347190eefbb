# SPDX-License-Identifier: Apache-2.0
"""Another program's virtio-net device over a UNIX socket, such as passt or Open vSwitch: netback is the front end.

The two share one file of memory with virtqueues and buffers, and nothing else; frames then pass without a system call
for each (dataplane/peers/virtqueue.pyx). The socket sets this up and shows when the other end is gone. Each connection
has a new file: an earlier device keeps its own.

Every offload is optional. What the device lacks, netback completes or segments, and what it sends, netback adapts to
the guest.

A thread of each network connects, or listens, again and again: a device that answers slowly, or never, delays nobody.
"""

import fcntl
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from netback.abi.vhost_user import (
    ADDRESSES,
    HEADER,
    MEMORY,
    NEED_REPLY,
    REPLY,
    STATE,
    U64,
    VERSION,
    VERSION_MASK,
    Feature,
    Protocol,
    Request,
)
from netback.dataplane.peers.peer import Peer
from netback.dataplane.peers.virtqueue import (
    MEMORY_BASE,
    PAIR_BYTES,
    PAIR_SLOTS,
    VirtqueuePair,
    VirtqueuePeer,
)
from netback.errors import PeerError, printable
from netback.net.base import Linkless
from netback.net.buffers import MAX_DRAIN

WANTED = (
    Feature.CSUM
    | Feature.GUEST_CSUM
    | Feature.GUEST_TSO4
    | Feature.GUEST_TSO6
    | Feature.HOST_TSO4
    | Feature.HOST_TSO6
    | Feature.MRG_RXBUF
    | Feature.EVENT_IDX
    | Feature.PROTOCOL_FEATURES
    | Feature.VERSION_1
)
"""What is used if the device offers it; VERSION_1 is required."""
MAX_PATH = 107
"""linux/un.h: bytes of sun_path without its final zero byte."""
HANDSHAKE_SECONDS = 2.0
"""For all answers of a device together."""
PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds between attempts, from the first after a connection that lasted STEADY_SECONDS."""
STEADY_SECONDS = 5.0


class _Interrupted(Exception):
    """The owner closed the network or wants another number of queues."""


def path_fault(path: str) -> str | None:
    """Why a socket cannot have this path; None if it can."""
    if not path.startswith("/"):
        return f"the socket's path {path!a} does not begin with /"
    if len(os.fsencode(path)) > MAX_PATH:
        return f"the socket's path is longer than {MAX_PATH} bytes"
    if not path.isprintable():
        return f"the socket's path {path!a} has a character that is not printable"
    return None


@dataclass(frozen=True, slots=True)
class Terms:
    """What both ends support."""

    features: Feature
    pairs: int
    """Pairs of virtqueues that the device has."""


class Conversation:
    """Requests of the front end over one connection, all answered within HANDSHAKE_SECONDS.

    PeerError: the device is silent, refuses a request, or answers with something else. `alarm` is a descriptor that
    interrupts it when it becomes readable.
    """

    def __init__(self, connection: socket.socket, alarm: int) -> None:
        self._connection, self._alarm = connection, alarm
        self._deadline = time.monotonic() + HANDSHAKE_SECONDS
        self._acknowledged = False

    def agree(self) -> Terms:
        """Settle features, and whether each request is acknowledged from here on."""
        features = WANTED & self._ask(Request.GET_FEATURES)
        if Feature.VERSION_1 not in features:
            raise PeerError("it offers no VERSION_1: devices older than virtio 1.0 are not supported")
        protocol = Protocol(0)
        if Feature.PROTOCOL_FEATURES in features:
            protocol = (Protocol.MQ | Protocol.REPLY_ACK) & self._ask(Request.GET_PROTOCOL_FEATURES)
            self._tell(Request.SET_PROTOCOL_FEATURES, U64.pack(protocol))
            self._acknowledged = Protocol.REPLY_ACK in protocol
        pairs = self._ask(Request.GET_QUEUE_NUM) if Protocol.MQ in protocol else 1
        self._tell(Request.SET_OWNER)
        self._tell(Request.SET_FEATURES, U64.pack(features))
        return Terms(Feature(features), max(1, pairs))

    def share(self, memory: int, pairs: Sequence[VirtqueuePair], terms: Terms) -> None:
        """Give the device the memory and the virtqueues in it; it may use them on return."""
        region = MEMORY.pack(1, 0, MEMORY_BASE, PAIR_BYTES * len(pairs), MEMORY_BASE, 0)
        self._tell(Request.SET_MEM_TABLE, region, memory)
        for number, pair in enumerate(pairs):
            for index, rings, kick in zip((2 * number, 2 * number + 1), pair.rings, pair.kicks, strict=True):
                descriptors, avail, used = rings
                self._tell(Request.SET_VRING_NUM, STATE.pack(index, PAIR_SLOTS))
                self._tell(Request.SET_VRING_BASE, STATE.pack(index, 0))
                self._tell(Request.SET_VRING_ADDR, ADDRESSES.pack(index, 0, descriptors, used, avail, 0))
                self._tell(Request.SET_VRING_CALL, U64.pack(index), pair.call)
                self._tell(Request.SET_VRING_ERR, U64.pack(index), pair.error)
                self._tell(Request.SET_VRING_KICK, U64.pack(index), kick)
        if Feature.PROTOCOL_FEATURES in terms.features:
            for index in range(2 * len(pairs)):
                self._tell(Request.SET_VRING_ENABLE, STATE.pack(index, 1))

    def _tell(self, request: Request, payload: bytes = b"", *fds: int) -> None:
        self._send(request, payload, NEED_REPLY if self._acknowledged else 0, fds)
        if self._acknowledged and self._answer(request):
            raise PeerError(f"it refuses {request.name}")

    def _ask(self, request: Request) -> int:
        self._send(request, b"", 0, ())
        return self._answer(request)

    def _send(self, request: Request, payload: bytes, flags: int, fds: Sequence[int]) -> None:
        """Send a message in one piece: passt takes no other."""
        message = HEADER.pack(request, VERSION | flags, len(payload)) + payload
        asides = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        try:
            sent = self._connection.sendmsg([message], asides)
        except BlockingIOError:
            sent = 0
        if sent != len(message):
            raise PeerError(f"it does not read {request.name}")

    def _answer(self, request: Request) -> int:
        kind, flags, size = HEADER.unpack(self._read(HEADER.size, request))
        if kind != request or flags & (VERSION_MASK | REPLY) != VERSION | REPLY or size != U64.size:
            raise PeerError(f"it answers {request.name} with another message")
        return int(U64.unpack(self._read(size, request))[0])

    def _read(self, count: int, request: Request) -> bytes:
        """So many bytes. Descriptors that come with them are never received: the kernel closes them."""
        data = b""
        while len(data) < count:
            left = self._deadline - time.monotonic()
            if not await_readable(self._connection.fileno(), self._alarm, max(0.0, left)):
                raise PeerError(f"it does not answer {request.name}")
            more = self._connection.recv(count - len(data))
            if not more:
                raise PeerError(f"it closed the connection at {request.name}")
            data += more
        return data


def await_readable(fd: int, alarm: int, seconds: float | None) -> bool:
    """Wait until `fd` (-1: none) is readable; False if it is not in time. `alarm` interrupts it."""
    poll = select.poll()
    poll.register(alarm, select.POLLIN)
    if fd >= 0:
        poll.register(fd, select.POLLIN)
    ready = dict(poll.poll(None if seconds is None else seconds * 1000))
    if alarm in ready:
        os.eventfd_read(alarm)
        raise _Interrupted
    return bool(ready)


@contextmanager
def shared_memory(size: int) -> Iterator[int]:
    """A file of `size` zero bytes in memory that nobody can make shorter, open until the end of the block."""
    fd = os.memfd_create("netback-vhost-user", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def shut_down(connection: socket.socket) -> Iterator[None]:
    """Shut the connection down at the end: a peer has a duplicate, which would keep it open."""
    try:
        yield
    finally:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def new_socket() -> socket.socket:
    """A UNIX stream socket that never blocks."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


class VhostUserNetwork(Linkless):
    """The device behind a socket: `server`: netback listens on it; else it connects.

    A connection that is lost is made again, until `close`. It counts as lost, too, if the device takes none of the
    frames that wait for `stall` seconds. PeerError: the first attempt to connect failed, or the socket cannot be made.
    """

    def __init__(self, path: str, *, server: bool = False, stall: float = 1.0) -> None:
        self.name = f"vhost-user:{printable(path)}"
        self._path = path
        self._lock = threading.Lock()
        """Held while pairs are given to peers, or these change."""
        self._stall = int(stall * 1e9)
        self._peers = [VirtqueuePeer(stall=self._stall)]
        self._offered = 1
        self._connected = False
        self._fault = "it has not connected yet" if server else "not connected"
        self._unreported = False
        self._closing = False
        self._undo = ExitStack()
        self._alarm = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._undo.callback(os.close, self._alarm)
        self._tried = threading.Event()
        try:
            self._listener = self._listen() if server else None
            thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            thread.start()
            self._undo.callback(thread.join)
            if not server:
                self._tried.wait(HANDSHAKE_SECONDS + 1)
                self.check()
        except BaseException:
            self.close()
            raise

    # ---- the connection, in its own thread

    def _listen(self) -> socket.socket:
        """Make the socket. One that nobody listens on is left by an earlier process, and is replaced."""
        listener = self._undo.enter_context(new_socket())
        try:
            with new_socket() as probe, suppress(FileNotFoundError):
                try:
                    probe.connect(self._path)
                except ConnectionRefusedError:
                    Path(self._path).unlink()
                else:
                    raise PeerError(f"{self.name}: another process listens there")
            listener.bind(self._path)
            self._undo.callback(self._remove_socket)
            listener.listen(1)
        except OSError as error:
            raise PeerError(f"{self.name}: cannot listen: {error.strerror}") from error
        return listener

    def _remove_socket(self) -> None:
        with suppress(OSError):
            Path(self._path).unlink()

    def _run(self) -> None:
        failures = 0
        while not self._closing:
            begun = time.monotonic()
            try:
                try:
                    self._live()
                except (PeerError, OSError) as error:
                    failures = 0 if time.monotonic() > begun + STEADY_SECONDS else failures + 1
                    self._lose(error)
                    await_readable(-1, self._alarm, PAUSES[min(failures, len(PAUSES)) - 1])
            except _Interrupted:
                self._lose(None)

    def _live(self) -> None:
        """Connect, set up, and stay until the end, which is raised as an error."""
        with self._meet() as connection, shut_down(connection):
            conversation = Conversation(connection, self._alarm)
            terms = conversation.agree()
            with self._lock:
                count = len(self._peers)
            if count > terms.pairs:
                raise PeerError(f"it has queues for {terms.pairs} of the {count} that the guest uses")
            self._give(connection, conversation, terms, count)
            await_readable(connection.fileno(), self._alarm, None)
            try:
                ended = not connection.recv(1)
            except ConnectionError:
                ended = True
            raise PeerError(
                "it closed the connection" if ended else "it sent a message that nobody asked for"
            )

    def _meet(self) -> socket.socket:
        if self._listener is not None:
            await_readable(self._listener.fileno(), self._alarm, None)
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            return connection
        connection = new_socket()
        try:
            connection.connect(self._path)
        except OSError as error:
            connection.close()
            raise PeerError(f"cannot connect: {error.strerror}") from error
        return connection

    def _give(self, connection: socket.socket, conversation: Conversation, terms: Terms, count: int) -> None:
        """Set up so many pairs and give them to the peers."""
        with shared_memory(count * PAIR_BYTES) as memory:
            pairs = [VirtqueuePair(memory, number, int(terms.features)) for number in range(count)]
            conversation.share(memory, pairs, terms)
        with self._lock:
            if len(self._peers) != count:
                raise _Interrupted
            for peer, pair in zip(self._peers, pairs, strict=True):
                peer.join(pair, connection.fileno())
            self._offered = terms.pairs
            self._connected = True
        self._tried.set()

    def _lose(self, error: Exception | None) -> None:
        """The connection ended, or was not made; None: on purpose."""
        with self._lock:
            reasons = [reason for peer in self._peers if (reason := peer.leave())]
            if error is not None:
                text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                self._fault = reasons[0] if reasons else text
                self._unreported = True
            self._connected = False
        self._tried.set()

    # ---- for control code

    @property
    def peers(self) -> tuple[Peer, ...]:
        return tuple(self._peers)

    @property
    def up(self) -> bool:
        """Whether a device is connected."""
        return self._connected

    def check(self) -> bool:
        """PeerError: no device is connected now, or one was lost since the last check."""
        if self._closing:
            return False
        with self._lock:
            fault, unreported, connected = self._fault, self._unreported, self._connected
            self._unreported = False
        if connected and unreported:
            raise PeerError(f"{self.name}: {fault}; connected again, the rings as they were")
        if not connected:
            raise PeerError(f"{self.name}: {fault}")
        return False

    def set_queues(self, count: int) -> None:
        """Have a pair of virtqueues for each queue, as far as the device has them; that takes a new connection."""
        with self._lock:
            count = max(1, min(count, self._offered))
            if count == len(self._peers) or self._closing:
                return
            del self._peers[count:]
            while len(self._peers) < count:
                self._peers.append(VirtqueuePeer(stall=self._stall))
        os.eventfd_write(self._alarm, 1)

    def offloads(self, caps: int) -> None:
        """Does nothing: the device may use what was agreed upon, and netback adapts its frames to the guest."""

    def drain(self) -> int:
        """Discard the frames that the device sent before the guest connected."""
        count = 0
        for peer in self._peers:
            while count < MAX_DRAIN and (frames := peer.recv()):
                count += len(frames)
        return count

    def drops(self) -> dict[str, int]:
        """The device does not tell; it drops what it has no buffers for."""
        return {}

    def close(self) -> None:
        """End the connection. What the device has not taken yet is lost."""
        if self._closing:
            return
        self._closing = True
        os.eventfd_write(self._alarm, 1)
        self._undo.close()

    def remove(self) -> None:
        """Nothing was made that outlives the connection."""
        self.close()
