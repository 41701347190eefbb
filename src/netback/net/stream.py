# SPDX-License-Identifier: Apache-2.0
"""Another program by a stream socket, each frame after its length: QEMU's `-netdev stream`, passt, gvproxy,
socket_vmnet. UNIX or TCP; netback connects or listens, or was started with the socket.

The frames are plain: netback completes and segments what its guest leaves to the network. A network that the other
program does not read makes the guest wait, and a guest that takes nothing makes the program wait, as their sockets do.
"""

import os
import select
import socket

from netback.dataplane.peers.peer import Peer
from netback.dataplane.peers.stream import StreamPeer
from netback.errors import PeerError, printable
from netback.net.buffers import MAX_DRAIN
from netback.net.connected import CONNECT_SECONDS, ConnectedNetwork, Meet, await_event
from netback.net.endpoints import read_endpoint


class StreamNetwork(ConnectedNetwork):
    """The other end of a stream socket.

    `where`: as in a spec (net/endpoints.py); or a connected socket, which the network owns from here on; or what makes
    each connection, in the network's thread, within `seconds`. `server`: netback listens there.
    """

    def __init__(
        self,
        where: str | socket.socket | Meet,
        *,
        server: bool = False,
        name: str = "",
        seconds: float = CONNECT_SECONDS,
    ) -> None:
        super().__init__(name or f"stream:{printable(str(where))}")
        self._peer = StreamPeer()
        endpoint = read_endpoint(where) if isinstance(where, str) else where
        self._start(endpoint, server=server, seconds=seconds + 1)

    # ---- the connection, in its own thread

    def _serve(self, connection: socket.socket) -> None:
        """Stay until the end. What the other program sent before is still read: the peer has its own descriptor."""
        with self._lock:
            self._peer.join(connection.fileno())
            self._joined()
        await_event(connection.fileno(), select.POLLRDHUP, self._alarm, None)
        fault = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        raise PeerError(os.strerror(fault) if fault else "it closed the connection")

    def _leave(self) -> str | None:
        return self._peer.leave()

    # ---- for control code

    @property
    def peers(self) -> tuple[Peer, ...]:
        return (self._peer,)

    def offloads(self, caps: int) -> None:
        """Does nothing: frames are plain both ways."""

    def drain(self) -> int:
        """Discard the frames that the other program sent before the guest connected."""
        count = 0
        while count < MAX_DRAIN and (frames := self._peer.recv()):
            count += len(frames)
        return count

    def drops(self) -> dict[str, int]:
        """No frame is lost here: the other program waits."""
        return {}
