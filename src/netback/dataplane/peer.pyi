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
