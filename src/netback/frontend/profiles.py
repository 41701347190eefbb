# SPDX-License-Identifier: Apache-2.0
"""Known frontends, as data: the features that each requests and uses, and the order of its keys and states.

`Frontend(..., config=profile.config, handshake=profile.handshake)` behaves at the protocol as that frontend does. The
facts come from the frontends' sources; `source` names the file. docs/frontends.md shows what each gets from netback.

Linux's netfront writes the same keys and states in the same order in every copy that was read: 5.17, 6.1.15, and one
from after 6.3; the sources of 5.10 and 7.x were not. `xdp-headroom` came with 5.9. What changed between them is not
written: since 5.19, and in the stable series, it reads `trusted` and sends frames from zeroed pages if that is 0
(XSA-403); it judges responses more strictly (XSA-376), and survives a backend that goes during resume (XSA-465).
"""

from dataclasses import dataclass, replace
from enum import Enum

from netback.abi.xenbus import XenbusState as State
from netback.dataplane.caps import Can
from netback.errors import ConfigError
from netback.frontend.config import FrontConfig, Handshake, HashConfig


class Return(Enum):
    """How a frontend comes back after it has closed; the value is its text in docs/frontends.md."""

    DEVICE = "the same device"
    NEW_DEVICE = "a new device"
    NEW_DOMAIN = "a new domain"


@dataclass(frozen=True, slots=True)
class Profile:
    """One frontend. What Frontend does not imitate is in `notes`."""

    name: str
    source: str
    config: FrontConfig
    handshake: Handshake
    returns: Return = Return.DEVICE
    notes: str = ""

    @property
    def word(self) -> str:
        """The name as one word: `linux-5.10`."""
        return self.name.lower().replace(" ", "-")


def find_profile(word: str) -> Profile:
    """The profile of this `word`. ConfigError names the known ones."""
    for profile in PROFILES:
        if profile.word == word:
            return profile
    known = ", ".join(profile.word for profile in PROFILES)
    raise ConfigError(f"there is no frontend {word!r}; there are {known}")


_RINGS = ("tx-ring-ref", "rx-ring-ref", "event-channel")
_SPLIT = ("tx-ring-ref", "rx-ring-ref", "event-channel-tx", "event-channel-rx")
_CSUM = Can.CSUM4 | Can.CSUM6
_SG = ("request-rx-copy", "feature-rx-notify", "feature-sg")

LINUX = Profile(
    "Linux 5.10",
    "drivers/net/xen-netfront.c",
    FrontConfig(),
    Handshake(
        keys=(
            "xdp-headroom",
            "multi-queue-num-queues",
            *_SPLIT,
            *_SG,
            "feature-gso-tcpv4",
            "feature-gso-tcpv6",
            "feature-ipv6-csum-offload",
        ),
        more=(("xdp-headroom", "0"), ("multi-queue-num-queues", "1")),
        needs=(("multi-queue-num-queues", "multi-queue-max-queues"),),
        first=("xdp-headroom",),
    ),
    notes="asks for a queue for each of its processors, and for headroom when an XDP program is attached; closes when"
    " its driver is unbound",
)

WINDOWS = Profile(
    "Windows",
    "win-xenvif: frontend.c, receiver.c, transmitter.c, controller.c",
    FrontConfig(multicast=frozenset({bytes.fromhex("01005e000001")}), hash=HashConfig(min_queues=2)),
    Handshake(
        keys=(
            *_SG[:1],
            "feature-sg",
            "feature-rx-notify",
            "feature-gso-tcpv4",
            "feature-gso-tcpv6",
            "feature-no-csum-offload",
            "feature-ipv6-csum-offload",
            "rx-ring-ref",
            "event-channel-rx",
            "request-multicast-control",
            "tx-ring-ref",
            "event-channel-tx",
            "ctrl-ring-ref",
            "event-channel-ctrl",
            "multi-queue-num-queues",
        ),
        more=(("feature-no-csum-offload", "0"), ("multi-queue-num-queues", "1")),
        posts_late=True,
    ),
    notes="takes a backend that skips Closing for surprise removal; selects the Toeplitz hash only if it has several"
    " queues, by algorithm, mapping size, mapping, key and flags, and then sends it with its TX frames too",
)

FREEBSD = Profile(
    "FreeBSD",
    "sys/dev/xen/netfront/netfront.c",
    FrontConfig(split=False, gso6=False, csum6=False, tx=Can.CSUM4 | Can.TSO4),
    Handshake(keys=(*_RINGS, *_SG, "feature-gso-tcpv4"), posts_late=True),
    notes="closes when an administrator changes RXCSUM or LRO",
)

NETBSD = Profile(
    "NetBSD",
    "sys/arch/xen/xen/if_xennet_xenbus.c",
    FrontConfig(split=False, gso4=False, gso6=False, tx=_CSUM),
    Handshake(
        keys=(
            "vifname",
            "tx-ring-ref",
            "rx-ring-ref",
            "request-rx-copy",
            "feature-rx-notify",
            "feature-ipv6-csum-offload",
            "feature-sg",
            "event-channel",
        ),
        more=(("vifname", "xennet0"),),
    ),
    Return.NEW_DEVICE,
    "writes Closing when it shuts down; its bus detaches the device when the backend is Closed",
)

OPENBSD = Profile(
    "OpenBSD",
    "sys/dev/pv/if_xnf.c",
    FrontConfig(split=False, csum4=False, csum6=False, gso4=False, gso6=False, tx=Can(0)),
    Handshake(
        keys=(
            "rx-ring-ref",
            "request-rx-copy",
            "feature-rx-notify",
            "tx-ring-ref",
            "feature-sg",
            "feature-no-csum-offload",
            "event-channel",
        ),
        transaction=False,
        waits=False,
        posts_late=True,
        follows=False,
        leaves=(),
    ),
    Return.NEW_DOMAIN,
    "reads `mac` in the backend's directory; posts no buffers before its interface is up",
)

MIRAGEOS = Profile(
    "MirageOS",
    "mirage-net-xen: lib/netif.ml, lib/xenstore.ml",
    FrontConfig(split=False, gso6=False, csum6=False, tx=Can(0)),
    Handshake(
        keys=(
            *_RINGS,
            "feature-sg",
            "feature-gso-tcpv4",
            "request-rx-copy",
            "feature-rx-flip",
            "feature-rx-notify",
            "feature-smart-poll",
        ),
        more=(("feature-rx-flip", "0"), ("feature-smart-poll", "0")),
        waits=False,
        posts_late=True,
        follows=False,
        leaves=(),
    ),
    Return.NEW_DOMAIN,
    "never closes",
)

MINI_OS = Profile(
    "mini-os",
    "netfront.c",
    FrontConfig(split=False, sg=False, gso4=False, gso6=False, csum6=False, tx=Can(0), rx_notify=False),
    Handshake(
        keys=(*_RINGS, "request-rx-copy"),
        state_with_keys=True,
        waits=False,
        follows=False,
        leaves=(State.CLOSING, State.CLOSED, State.INITIALISING),
        removes=(*_RINGS, "request-rx-copy"),
    ),
    notes="also suspends this way; does not look at checksum flags",
)

UNIKRAFT = Profile(
    "Unikraft",
    "drivers/xen/netfront/netfront.c, netfront_xs.c",
    FrontConfig(sg=False, gso4=False, gso6=False, csum6=False, tx=_CSUM, rx_notify=False),
    Handshake(
        keys=("multi-queue-num-queues", *_SPLIT, "request-rx-copy"),
        more=(("multi-queue-num-queues", "1"),),
        state_with_keys=True,
        waits=False,
        follows=False,
        leaves=(State.CLOSING, State.CLOSED, State.INITIALISING),
        removes=_SPLIT,
    ),
    notes="writes multi-queue-num-queues even where the backend offers no queues",
)

IPXE = Profile(
    "iPXE",
    "src/drivers/net/netfront.c",
    FrontConfig(
        split=False, csum4=False, csum6=False, gso4=False, gso6=False, tx=Can(0), tx_slots=16, rx_slots=18
    ),
    Handshake(
        keys=(
            *_RINGS,
            "request-rx-copy",
            "feature-sg",
            "feature-no-csum-offload",
            "feature-rx-notify",
        ),
        transaction=False,
        posts_late=True,
        follows=False,
        leaves=(State.CLOSED, State.INITIALISING),
        removes=(
            "feature-rx-notify",
            "feature-no-csum-offload",
            "feature-sg",
            "request-rx-copy",
            "event-channel",
            "rx-ring-ref",
            "tx-ring-ref",
        ),
    ),
    notes="goes straight to Closed",
)

PROFILES = (
    LINUX,
    *(replace(LINUX, name=f"Linux {version}") for version in ("6.1", "6.12", "7.x")),
    WINDOWS,
    FREEBSD,
    NETBSD,
    OPENBSD,
    MIRAGEOS,
    MINI_OS,
    UNIKRAFT,
    IPXE,
)
