# SPDX-License-Identifier: Apache-2.0
"""Networks (net/base.py) of the demo and of tests: an inherited socket, and a cable that loses checksum flags."""

import asyncio
import socket
from collections import deque
from collections.abc import Callable

from netback.abi import virtio_net
from netback.dataplane.caps import EVERYTHING
from netback.dataplane.peers.peer import Peer
from netback.dataplane.peers.socket import SocketPeer
from netback.net.base import Linkless, Network
from netback.net.buffers import drain
from netback.net.python import PythonNetwork

INHERITED = "inherited:"
"""Prefix of the spec of an InheritedNetwork; the rest is the descriptor's number."""
BURST = 64


class InheritedNetwork(Linkless):
    """One end of a socketpair that this process inherited; a virtio_net_hdr precedes each frame."""

    name = "stack"

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self.peers = (SocketPeer(fd, vnet_hdr=True, caps=EVERYTHING, owner=self._socket),)

    def offloads(self, caps: int) -> None:
        """Does nothing: the data plane completes and segments what the ring's side cannot accept."""

    def drain(self) -> int:
        return drain(self._socket)

    def drops(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        self._socket.close()

    def remove(self) -> None:
        self.close()


class LossyCable(Linkless):
    """Joins a stack's network to a ring; while `losing`, it clears the virtio_net_hdr of the stack's frames.

    A stack leaves its checksums to the link and marks that in the header. Without the mark the checksums stay
    incomplete.
    """

    def __init__(self, network: Network) -> None:
        self.losing = False
        self.name = f"a cable to {network.name}"
        self._far = network
        self._pair = PythonNetwork(vnet_hdr=True)
        self.peers = self._pair.peers
        far, near = network.peers[0], SocketPeer(self._pair.socket.fileno(), vnet_hdr=True)
        self._ways = (_Way(far, near, self._lose), _Way(near, far, lambda frame: frame))

    def _lose(self, frame: bytes) -> bytes:
        return bytes(virtio_net.HEADER.size) + frame[virtio_net.HEADER.size :] if self.losing else frame

    def offloads(self, caps: int) -> None:
        self._far.offloads(caps)

    def carrier(self, on: bool) -> None:
        self._far.carrier(on)

    def drain(self) -> int:
        return self._far.drain()

    def drops(self) -> dict[str, int]:
        return self._far.drops()

    def queued(self) -> dict[str, int]:
        return self._far.queued()

    def close(self) -> None:
        for way in self._ways:
            way.close()
        self._pair.remove()
        self._far.close()

    def remove(self) -> None:
        self.close()
        self._far.remove()


class _Way:
    """Moves frames one way; while the sink is full it stops reading."""

    def __init__(self, source: Peer, sink: Peer, change: Callable[[bytes], bytes]) -> None:
        self._source, self._sink, self._change = source, sink, change
        self._waiting: deque[bytes] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(source.fd, self._move)

    def _move(self) -> None:
        if not self._waiting:
            self._waiting.extend(map(self._change, self._source.recv()))
        while self._waiting:
            sent, _ = self._sink.send(list(self._waiting)[:BURST])
            for _ in range(sent):
                self._waiting.popleft()
            if self._sink.blocked:
                self._loop.remove_reader(self._source.fd)
                self._loop.add_writer(self._sink.fd, self._resume)
                return

    def _resume(self) -> None:
        self._loop.remove_writer(self._sink.fd)
        self._loop.add_reader(self._source.fd, self._move)
        self._move()

    def close(self) -> None:
        self._loop.remove_reader(self._source.fd)
        self._loop.remove_writer(self._sink.fd)
