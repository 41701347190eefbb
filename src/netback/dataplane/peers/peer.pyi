# SPDX-License-Identifier: Apache-2.0
class Peer:
    """The peer of a queue. Create a TapPeer, SocketPeer, StreamPeer, VirtqueuePeer or NullPeer."""

    @property
    def fd(self) -> int: ...
    @property
    def caps(self) -> int: ...
    @property
    def blocked(self) -> bool: ...
    @property
    def closed(self) -> bool: ...
    @property
    def down(self) -> bool: ...
    def duplicate(self, fd: int) -> Peer:
        """A peer of the same network on a duplicate of its descriptor, -1 without one; the caller closes it."""

    def send(self, frames: list[bytes]) -> tuple[int, int]:
        """Send frames, each preceded by its virtio_net_hdr; returns (how many it is done with, how many it refused)."""

    def recv(self, count: int = 64) -> list[bytes]:
        """Return up to `count` pending frames, each preceded by its virtio_net_hdr. OSError: the peer refuses."""
