# SPDX-License-Identifier: Apache-2.0
"""The backends that `netback conform` plays, as data: what each offers, how it answers, and what it does next."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from netback.abi.netif import Status
from netback.abi.netif_keys import Key
from netback.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BackendProfile:
    """One backend."""

    name: str
    about: str
    offer: Mapping[str, str]
    statuses: tuple[Status, ...] = (Status.OKAY,)
    """The statuses of TX frames, in turn."""
    reverse: bool = False
    """TX responses of one push come in the reverse order of their requests; netif.h identifies them by `id`."""
    late: bool = False
    """TX responses wait: first for the frontend's further requests, then for a moment."""
    lazy: bool = False
    """It looks at a ring for a while before it asks for the next event, as NAPI does."""
    rx_offset: int = 0
    """Where a frame begins in its first page."""
    rx_errors: bool = False
    """Some RX buffers come back with the status ERROR."""
    conflicts: bool = False
    """The frontend's first transaction conflicts, so its end is refused with EAGAIN."""
    odd_states: bool = False
    """While Connected it writes states that xenbus.h has no use for there."""
    restarts: bool = False
    """It unmaps the rings without a change of state, and returns to them as netback does after a kill."""
    forms: tuple[str, ...] = field(default=())
    """The frames for the guest, by their names in drive.py."""

    def offers(self, key: str) -> bool:
        """Whether a feature is offered."""
        return self.offer.get(key, "0") not in ("", "0")


_PLAIN = ("arp", "neighbour", "echo", "shortest", "longest", "tcp", "broadcast")
_LARGE = (
    "two-slots",
    "many-slots",
    "udp-blank",
    "tcp-blank",
    "udp6-blank",
    "gso4",
    "gso6",
    "validated",
    "hashed",
)

_RX_COPY = {str(Key.RX_COPY): "1", str(Key.RX_FLIP): "0"}
_SEGMENTS = {str(key): "1" for key in (Key.SG, Key.GSO_TCPV4, Key.GSO_TCPV6, Key.IPV6_CSUM)}
_LINUX = {
    **_RX_COPY,
    **_SEGMENTS,
    **{str(key): "1" for key in (Key.MULTICAST, Key.DYNAMIC_MULTICAST, Key.SPLIT_CHANNELS, Key.XDP)},
    str(Key.MAX_QUEUES): "1",
    str(Key.CTRL_RING): "1",
}

STRICT = BackendProfile(
    "strict",
    "offers frames of several slots, checksums and GSO, one event channel, no queues; answers at once and in order",
    {**_RX_COPY, **_SEGMENTS},
    forms=(*_PLAIN, *_LARGE),
)
LINUX = BackendProfile(
    "linux",
    "offers what Linux 6.12's xen-netback offers, with one queue",
    _LINUX,
    lazy=True,
    forms=(*_PLAIN, *_LARGE),
)
PLAIN = BackendProfile(
    "plain",
    "takes frames of several slots, no blank checksum and no segmentation: it offers feature-no-csum-offload",
    {**_RX_COPY, str(Key.SG): "1", str(Key.NO_CSUM): "1"},
    forms=(*_PLAIN, *_LARGE),
)
QNIC = BackendProfile(
    "qnic",
    "offers what QEMU's xen-net-device offers: one slot a frame, no checksums; frames begin at offset 2",
    _RX_COPY,
    rx_offset=2,
    forms=_PLAIN,
)
QUEUES = BackendProfile(
    "queues",
    "as linux, with four queues, an event channel for each ring, and a control ring",
    {**_LINUX, str(Key.MAX_QUEUES): "4"},
    lazy=True,
    forms=(*_PLAIN, *_LARGE, *_PLAIN),
)
EVERYTHING = BackendProfile(
    "everything",
    "offers every feature of netif.h with 16 queues, and keys that no frontend knows",
    {
        **_LINUX,
        str(Key.MAX_QUEUES): "16",
        str(Key.CARRIER): "1",
        "feature-of-tomorrow": "1",
        "feature-persistent": "0",
    },
    forms=(*_PLAIN, *_LARGE),
)
ADVERSARIAL = BackendProfile(
    "adversarial",
    "answers late, in reverse order, with ERROR and DROPPED; makes a transaction conflict; writes odd states; leaves"
    " the rings and returns",
    _LINUX,
    statuses=(Status.OKAY, Status.ERROR, Status.DROPPED),
    reverse=True,
    late=True,
    rx_errors=True,
    conflicts=True,
    odd_states=True,
    restarts=True,
    forms=(*_PLAIN, *_LARGE),
)
NOTHING = BackendProfile(
    "nothing",
    "offers no feature at all, not even feature-rx-copy",
    {},
    forms=_PLAIN,
)

PROFILES = (STRICT, LINUX, PLAIN, QNIC, QUEUES, EVERYTHING, ADVERSARIAL, NOTHING)


def find_profile(name: str) -> BackendProfile:
    """The profile of this name. ConfigError names the known ones."""
    for profile in PROFILES:
        if profile.name == name:
            return profile
    raise ConfigError(
        f"there is no backend profile {name!r}; there are {', '.join(p.name for p in PROFILES)}"
    )
