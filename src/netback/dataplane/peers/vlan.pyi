# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterable

from netback.dataplane.peers.filter import FilterPeer
from netback.dataplane.peers.peer import Peer

class VlanPeer(FilterPeer):
    """A port with this native VLAN, 0 for none, where frames of the VLANs `allowed` pass with their tags.

    ValueError: one of them is not from 1 to 4094.
    """

    def __init__(self, inner: Peer, *, native: int = 0, allowed: Iterable[int] = ()) -> None: ...
