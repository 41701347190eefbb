# SPDX-License-Identifier: Apache-2.0
from netback.dataplane.peers.filter import FilterPeer
from netback.dataplane.peers.peer import Peer

PROBABLE: int
"""The number that stands for the probability 1."""

class FaultsPeer(FilterPeer):
    """Probabilities are parts of PROBABLE, times in ns; `tx` and `rx`: whether that direction is a bad one.

    `pause`: how long a stall lasts. Each instance counts its frames from 0.
    """

    def __init__(
        self,
        inner: Peer,
        *,
        seed: int = 0,
        loss: int = 0,
        duplicate: int = 0,
        corrupt: int = 0,
        reorder: int = 0,
        stall: int = 0,
        delay: int = 0,
        pause: int = 0,
        tx: bool = True,
        rx: bool = True,
    ) -> None: ...
