# SPDX-License-Identifier: Apache-2.0
"""Networks that only a demo needs: a socket that somebody else made, and a cable that loses checksum flags.

Each keeps the Protocol of net/base.py. Knows descriptors and virtio_net_hdr, neither rings nor stacks.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable

from netback.abi import virtio_net
from netback.dataplane.caps import EVERYTHING
from netback.dataplane.peers.peer import Peer
from netback.net.base import Network
from netback.net.buffers import drain
from netback.net.python import PythonNetwork


class InheritedNetwork:
    """One end of a socketpair that came with this process; frames are led by their virtio_net_hdr."""

    name = "stack"
    mtu = None

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self.peers = (Peer("socket", fd, vnet_hdr=True, caps=EVERYTHING, owner=self._socket),)

    def offloads(self, caps: int) -> None:
        """What the ring's other end cannot take is completed and cut by us."""

    def carrier(self, on: bool) -> None:
        """There is no link to show it."""

    def drain(self) -> int:
        return drain(self._socket)

    def drops(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        self._socket.close()

    def remove(self) -> None:
        self.close()


class LossyCable:
    """Between a stack's network and its ring, in plain Python: once `losing`, what the stack sends has no flags.

    A stack leaves checksums to its link and says so in the virtio_net_hdr. Without that word nobody completes them.
    """

    mtu = None

    def __init__(self, network: Network) -> None:
        self.losing = False
        self.name = f"a cable to {network.name}"
        self._far = network
        self._pair = PythonNetwork(vnet_hdr=True)
        self.peers = self._pair.peers
        self._near = Peer("socket", self._pair.socket.fileno(), vnet_hdr=True)
        self._ways = (
            _Way(self._far.peers[0], self._near, self._lose),
            _Way(self._near, self._far.peers[0], lambda frame: frame),
        )

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

    def close(self) -> None:
        for way in self._ways:
            way.close()
        self._pair.remove()
        self._far.close()

    def remove(self) -> None:
        self.close()
        self._far.remove()


class _Way:
    """Frames one way; while the far end is full they wait, and no more are read."""

    def __init__(self, source: Peer, sink: Peer, change: Callable[[bytes], bytes]) -> None:
        self._source, self._sink, self._change = source, sink, change
        self._waiting: deque[bytes] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(source.fd, self._move)

    def _move(self) -> None:
        if not self._waiting:
            self._waiting.extend(map(self._change, self._source.recv()))
        while self._waiting:
            done, _ = self._sink.send(list(self._waiting)[:64])
            for _ in range(done):
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
