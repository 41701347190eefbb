# SPDX-License-Identifier: Apache-2.0
class Peer:
    """What a queue is joined to. TapPeer, SocketPeer and NullPeer are the ones to make."""

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
    def send(self, frames: list[bytes]) -> tuple[int, int]:
        """Hand over frames, each led by its virtio_net_hdr: (how many it is done with, how many it refused)."""

    def recv(self, count: int = 64) -> list[bytes]:
        """Up to `count` frames that wait, each led by its virtio_net_hdr; OSError where the peer refuses."""
