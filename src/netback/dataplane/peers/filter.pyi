# SPDX-License-Identifier: Apache-2.0
from netback.dataplane.peers.peer import Peer

class FilterPeer(Peer):
    """A filter around `inner`, which it keeps alive. Make one of the kinds in net/filters.py."""

    @property
    def inner(self) -> Peer: ...
    @property
    def counters(self) -> dict[str, int]:
        """What this filter counted, by the names in dataplane/counters.py."""
