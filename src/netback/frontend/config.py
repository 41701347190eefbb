# SPDX-License-Identifier: Apache-2.0
"""The features that a frontend requests and those that its backend offers: frozen values, and their xenstore keys.

This module uses neither store nor rings.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Self

from netback.abi.netif import ETH_HLEN, MAX_TX_SIZE, TX_SLOTS
from netback.abi.netif_control import HashType
from netback.abi.netif_keys import Key
from netback.abi.xenbus import XenbusState
from netback.dataplane.caps import EVERYTHING, Can
from netback.net.base import ETH_DATA_LEN
from netback.vif.features import Limits

RING_SLOTS = TX_SLOTS


@dataclass(frozen=True, slots=True)
class HashConfig:
    """The Toeplitz hash of frames, as a guest selects it through its control ring; the default key is Microsoft's."""

    types: HashType = HashType.IPV4 | HashType.IPV4_TCP | HashType.IPV6 | HashType.IPV6_TCP
    key: bytes = bytes.fromhex(
        "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
    )
    min_queues: int = 1
    """With fewer queues the guest selects no hash."""


@dataclass(frozen=True, slots=True)
class FrontConfig:
    """The features of a guest; the default is everything that Linux's netfront supports.

    >>> FrontConfig(gso6=False).nodes()["feature-gso-tcpv4"]
    '1'
    """

    sg: bool = True
    """Frames of more than one slot, both ways."""
    gso4: bool = True
    gso6: bool = True
    csum4: bool = True
    """False writes feature-no-csum-offload: the backend must complete every IPv4 checksum toward this guest."""
    csum6: bool = True
    tx: Can = EVERYTHING
    """The offloads that the guest's stack uses toward the backend, of those that the backend offers."""
    rx_notify: bool = True
    """False: the guest sends no event when it posts RX buffers."""
    multicast: frozenset[bytes] | None = None
    """The multicast addresses, 6 bytes each, of the frames that this guest wants; None: all."""
    xdp_headroom: int = 0
    """Bytes before each received frame in its first buffer, as for an XDP program."""
    control: bool = False
    """A control ring, where the backend offers it, for requests of the program (`Frontend.control`)."""
    hash: HashConfig | None = None
    """Hashes of frames both ways, by way of the control ring, where the backend has them."""
    stage: bool = False
    """All buffers are staged, by way of the control ring, where the backend takes them."""
    split: bool = True
    """An event channel for each ring, where the backend offers it; otherwise one for both."""
    queues: int = 1
    """The queues that it asks for; it takes fewer where the backend offers fewer."""
    tx_slots: int = RING_SLOTS
    """Slots of the TX ring in use at a time, 1 to 256."""
    rx_slots: int = RING_SLOTS
    """Slots of the RX ring posted at a time, 1 to 256."""

    def nodes(self) -> dict[str, str]:
        """The features as keys of the frontend's directory; a feature that is off has no key."""
        features = {
            Key.REQUEST_RX_COPY: True,
            Key.RX_NOTIFY: self.rx_notify,
            Key.SG: self.sg,
            Key.GSO_TCPV4: self.gso4,
            Key.GSO_TCPV6: self.gso6,
            Key.NO_CSUM: not self.csum4,
            Key.IPV6_CSUM: self.csum6,
            Key.REQUEST_MULTICAST: self.multicast is not None,
        }
        headroom = {str(Key.XDP_HEADROOM): str(self.xdp_headroom)} if self.xdp_headroom else {}
        return {str(key): "1" for key, value in features.items() if value} | headroom

    @property
    def uses_control(self) -> bool:
        """Whether it connects with a control ring."""
        return self.control or self.hash is not None or self.stage

    @property
    def caps(self) -> Can:
        """The offloads that this guest accepts."""
        return _caps(self.sg, self.csum4, self.csum6, self.gso4, self.gso6)


@dataclass(frozen=True, slots=True)
class Handshake:
    """The order of a frontend's keys and states; the default is that of Linux's netfront."""

    keys: tuple[str, ...] = ()
    """The order in which keys are written; keys that are not named keep their places behind these."""
    more: tuple[tuple[str, str], ...] = ()
    """Keys and values that no feature of FrontConfig stands for."""
    needs: tuple[tuple[str, str], ...] = ()
    """Keys that are written only where the backend's directory has another: (key, the backend's key)."""
    first: tuple[str, ...] = ()
    """Keys that are written before the others, one by one."""
    transaction: bool = True
    """The other keys appear at once; False: one by one."""
    state_with_keys: bool = False
    """Connected is written in the transaction of the keys; otherwise after it."""
    waits: bool = True
    """Connects when the backend is in InitWait; False: connects without waiting for it."""
    posts_late: bool = False
    """Posts its RX buffers when the backend is Connected; otherwise before its own Connected."""
    follows: bool = True
    """Closes when the backend does; False: pays no attention to the backend's state once connected."""
    leaves: tuple[XenbusState, ...] = (XenbusState.CLOSING, XenbusState.CLOSED)
    """The states that it writes to close the device. It waits for the backend after each: for the same state, for
    InitWait after Initialising."""
    removes: tuple[str, ...] = ()
    """Keys that it removes at the end of that."""

    def sort(self, nodes: Mapping[str, str], offered: Collection[str] | None = None) -> dict[str, str]:
        """The nodes of a connection in the order in which they are written; `offered` are the backend's keys."""
        left_out = {key for key, other in self.needs if offered is not None and other not in offered}
        known = {**{key: value for key, value in self.more if key not in left_out}, **nodes}
        return {key: known[key] for key in dict.fromkeys((*self.keys, *nodes, *known)) if key in known}


MIN_MTU, MAX_MTU = 68, MAX_TX_SIZE - ETH_HLEN
"""The least that Linux allows an Ethernet link (ETH_MIN_MTU), and a frame's most bytes on a TX ring."""


def parse_mtu(text: str, *, sg: bool) -> int:
    """The MTU of a frontend's link, by the key `mtu` in its directory: 1500 where that is missing or cannot be, and no
    more than that where frames have one slot, as in Linux's netfront (xennet_change_mtu).
    """
    mtu = int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0
    if not MIN_MTU <= mtu <= MAX_MTU:
        return ETH_DATA_LEN
    return mtu if sg else min(mtu, ETH_DATA_LEN)


FEATURE_KEYS = (
    Key.RX_COPY,
    Key.SG,
    Key.NO_CSUM,
    Key.IPV6_CSUM,
    Key.GSO_TCPV4,
    Key.GSO_TCPV6,
    Key.MULTICAST,
    Key.XDP,
    Key.CTRL_RING,
    Key.SPLIT_CHANNELS,
    Key.MAX_QUEUES,
)


@dataclass(frozen=True, slots=True)
class BackFeatures:
    """The features that a backend offers."""

    rx_copy: bool
    sg: bool
    caps: Can
    multicast: bool
    """It filters multicast frames by a list."""
    xdp: bool
    """It leaves headroom for XDP."""
    control: bool
    """The backend serves a control ring."""
    split: bool
    """An event channel for each ring is possible."""
    queues: int = 1
    """The most queues."""
    keys: frozenset[str] = frozenset()
    """The keys of FEATURE_KEYS that exist."""

    @classmethod
    def of(cls, keys: Mapping[str, str | None]) -> Self:
        """Read from the keys FEATURE_KEYS of the backend's directory; a feature is on if its key is exactly "1"."""
        rx_copy, sg, no_csum4, csum6, gso4, gso6, multicast, xdp, control, split, _ = (
            keys.get(key) == "1" for key in FEATURE_KEYS
        )
        caps = _caps(sg, not no_csum4, csum6, gso4, gso6)
        existing = frozenset(str(key) for key, value in keys.items() if value is not None)
        return cls(rx_copy, sg, caps, multicast, xdp, control, split, Limits.offered(keys).queues, existing)


def _caps(sg: bool, csum4: bool, csum6: bool, gso4: bool, gso6: bool) -> Can:
    """Segmentation needs the checksum and frames of several slots."""
    return Can(
        Can.CSUM4 * csum4
        | Can.CSUM6 * csum6
        | Can.TSO4 * (gso4 and csum4 and sg)
        | Can.TSO6 * (gso6 and csum6 and sg)
    )
