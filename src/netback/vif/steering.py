# SPDX-License-Identifier: Apache-2.0
"""Frames for a guest, spread over its queues by netback: for a network with fewer descriptors than the guest has
queues, and for a guest that selects a hash.

Each descriptor of the network has a distributor, and each queue an inbox from which it takes its frames; it sends
through a duplicate of a descriptor. This module makes them; the group decides when they are served.
"""

import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from netback.dataplane.back.distributor import Distributor
from netback.dataplane.peers.peer import Peer
from netback.dataplane.peers.socket import SocketPeer
from netback.dataplane.toeplitz import Toeplitz
from netback.errors import PlatformError
from netback.net.buffers import BURSTS, make_room
from netback.net.filters import Filters

INBOX_BYTES = BURSTS // 2
"""An inbox's bound: the sender's buffer, against which Linux counts a message until it is read. Linux doubles it."""


@dataclass(frozen=True, slots=True)
class Steering:
    """How a guest wants its frames spread over several queues (netif.h, SET_HASH_ALGORITHM and SET_HASH_MAPPING).

    `hash` None: netback is free to choose. An empty `mapping` is the hash modulo the number of queues.
    """

    hash: Toeplitz | None = None
    mapping: tuple[int, ...] = ()

    def table(self, queues: int) -> tuple[int, ...]:
        """The queue of each number of a frame modulo the table's length."""
        return (self.hash and self.mapping) or tuple(range(queues))


FREE = Steering()


def duplicate_peer(peer: Peer, undo: ExitStack) -> Peer:
    """Another peer of the same network for another worker or link, on a duplicate of the descriptor, which `undo`
    closes. OSError: there are too many descriptors.
    """
    fd = os.dup(peer.fd) if peer.fd >= 0 else -1
    if fd >= 0:
        undo.callback(os.close, fd)
    return peer.duplicate(fd)


@dataclass(frozen=True, slots=True)
class Distribution:
    """The distributor of each peer of a network, and each queue's peer and inbox."""

    distributors: tuple[Distributor, ...]
    peers: tuple[Peer, ...]
    inboxes: tuple[Peer, ...]

    def table(self, distributor: int, steering: Steering) -> tuple[int, ...]:
        """The table of a distributor. Where the network has a peer for each queue and the guest leaves the choice to
        netback, the network has spread the frames: a peer's are those of the queue with its number.
        """
        queues = len(self.inboxes)
        if steering.hash is None and len(self.distributors) == queues:
            return (distributor,)
        return steering.table(queues)


def distribute(network: Sequence[Peer], queues: int, undo: ExitStack, filters: Filters) -> Distribution:
    """Make what steers the frames of these peers to so many queues; `undo` closes its descriptors.

    What a distributor reads has the vif's filters around it; the queues' peers are without them.

    PlatformError: there are too many descriptors.
    """
    with ExitStack() as attempt:
        try:
            pairs = [_inbox(attempt) for _ in range(queues)]
            peers = [duplicate_peer(network[min(n, len(network) - 1)], attempt) for n in range(queues)]
        except OSError as error:
            raise PlatformError(f"cannot open the inboxes of {queues} queues: {error.strerror}") from error
        undo.callback(attempt.pop_all().close)
    return Distribution(
        # each has its own object for an inbox: an object belongs to one thread
        tuple(
            Distributor(filters.wrap(peer, first=number == 0), [_end(sender) for sender, _ in pairs])
            for number, peer in enumerate(network)
        ),
        tuple(peers),
        tuple(_end(receiver) for _, receiver in pairs),
    )


def _inbox(undo: ExitStack) -> tuple[socket.socket, socket.socket]:
    """The sending and the receiving end."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (sender, receiver):
        undo.callback(end.close)
        end.setblocking(False)
    make_room(sender, 0, INBOX_BYTES)
    return sender, receiver


def _end(sock: socket.socket) -> Peer:
    return SocketPeer(sock.fileno(), vnet_hdr=True, owner=sock)
