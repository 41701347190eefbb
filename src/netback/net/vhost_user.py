# SPDX-License-Identifier: Apache-2.0
"""Another program's virtio-net device over a UNIX socket, such as passt or Open vSwitch: netback is the front end.

The two share one file of memory with virtqueues and buffers, and nothing else; frames then pass without a system call
for each (dataplane/peers/virtqueue.pyx). The socket sets this up and shows when the other end is gone. Each connection
has a new file: an earlier device keeps its own.

Every offload is optional. What the device lacks, netback completes or segments, and what it sends, netback adapts to
the guest.
"""

import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

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
from netback.net.buffers import MAX_DRAIN
from netback.net.connected import ConnectedNetwork, Interrupted, await_event
from netback.net.endpoints import UnixPath

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
HANDSHAKE_SECONDS = 2.0
"""For all answers of a device together."""


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
            if not await_event(self._connection.fileno(), select.POLLIN, self._alarm, max(0.0, left)):
                raise PeerError(f"it does not answer {request.name}")
            more = self._connection.recv(count - len(data))
            if not more:
                raise PeerError(f"it closed the connection at {request.name}")
            data += more
        return data


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


class VhostUserNetwork(ConnectedNetwork):
    """The device behind a socket: `server`: netback listens on it; else it connects.

    A connection that is lost is made again, until `close`. It counts as lost, too, if the device takes none of the
    frames that wait for `stall` seconds. PeerError: the first attempt to connect failed, or the socket cannot be made.
    """

    def __init__(self, path: str, *, server: bool = False, stall: float = 1.0) -> None:
        super().__init__(f"vhost-user:{printable(path)}")
        self._stall = int(stall * 1e9)
        self._peers = [VirtqueuePeer(stall=self._stall)]
        self._offered = 1
        self._start(UnixPath(path), server=server, seconds=HANDSHAKE_SECONDS + 1)

    # ---- the connection, in its own thread

    def _serve(self, connection: socket.socket) -> None:
        """Set the device up, and stay until the end, which is raised as an error."""
        conversation = Conversation(connection, self._alarm)
        terms = conversation.agree()
        with self._lock:
            count = len(self._peers)
        if count > terms.pairs:
            raise PeerError(f"it has queues for {terms.pairs} of the {count} that the guest uses")
        self._give(connection, conversation, terms, count)
        await_event(connection.fileno(), select.POLLIN, self._alarm, None)
        try:
            ended = not connection.recv(1)
        except ConnectionError:
            ended = True
        raise PeerError("it closed the connection" if ended else "it sent a message that nobody asked for")

    def _give(self, connection: socket.socket, conversation: Conversation, terms: Terms, count: int) -> None:
        """Set up so many pairs and give them to the peers."""
        with shared_memory(count * PAIR_BYTES) as memory:
            pairs = [VirtqueuePair(memory, number, int(terms.features)) for number in range(count)]
            conversation.share(memory, pairs, terms)
        with self._lock:
            if len(self._peers) != count:
                raise Interrupted
            for peer, pair in zip(self._peers, pairs, strict=True):
                peer.join(pair, connection.fileno())
            self._offered = terms.pairs
            self._joined()

    def _leave(self) -> str | None:
        return next((reason for reason in [peer.leave() for peer in self._peers] if reason), None)

    # ---- for control code

    @property
    def peers(self) -> tuple[Peer, ...]:
        return tuple(self._peers)

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
