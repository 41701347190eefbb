# SPDX-License-Identifier: Apache-2.0
from netback.dataplane.own_grants import OwnGrants
from netback.dataplane.peers.peer import Peer

VHOST_NET: str

class VhostTapPeer(Peer):
    def __init__(
        self,
        plain: Peer,
        *,
        always: bool = False,
        device: str = "/dev/vhost-net",
        grants: OwnGrants | None = None,
    ) -> None: ...
    @property
    def rx_by_vhost(self) -> bool: ...
    @property
    def attached(self) -> bool: ...
    @property
    def granted(self) -> int: ...
    @property
    def switches(self) -> int: ...
    @property
    def fault(self) -> str | None: ...
    def switch(self) -> bool: ...
    def settle(self, end: bool) -> bool: ...
