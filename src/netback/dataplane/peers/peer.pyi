# SPDX-License-Identifier: Apache-2.0
class Peer:
    """What a queue is joined to: a descriptor, its frame format and the offloads it takes."""

    def __init__(
        self,
        kind: str,
        fd: int = -1,
        *,
        vnet_hdr: bool = False,
        auxdata: bool = False,
        caps: int = 0,
        template: bytes = b"",
        owner: object = None,
    ) -> None: ...
    @property
    def fd(self) -> int: ...
    @property
    def caps(self) -> int: ...
    @property
    def blocked(self) -> bool: ...
    @property
    def closed(self) -> bool: ...
    def send(self, frames: list[bytes]) -> tuple[int, int]:
        """Hand over frames, each led by its virtio_net_hdr: (how many it is done with, how many it refused)."""

    def recv(self, count: int = 64) -> list[bytes]:
        """Up to `count` frames that wait, each led by its virtio_net_hdr; OSError where the peer refuses."""
