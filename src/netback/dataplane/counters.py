# SPDX-License-Identifier: Apache-2.0
"""The counters of a link: what each one counts at either end. docs/statistics.md is made from it.

A link has two directions. ring_to_peer takes frames from a ring and gives them to the peer: the backend's TX, the
frontend's RX. peer_to_ring takes frames from the peer: the backend's RX, the frontend's TX.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a counter counts at a backend and at a frontend; empty: it stays 0 there."""

    backend: str
    frontend: str


NOTHING = Meaning("", "")


def _both(means: str) -> Meaning:
    return Meaning(means, means)


def _backend(means: str) -> Meaning:
    return Meaning(means, "")


def _ring_to_peer(means: str) -> tuple[Meaning, Meaning]:
    """A counter of frames that leave a ring: tx and rx."""
    return Meaning(means, ""), Meaning("", means)


def _peer_to_ring(means: str) -> tuple[Meaning, Meaning]:
    """A counter of frames that enter a ring: tx and rx."""
    return Meaning("", means), Meaning(means, "")


def _both_ways(means: str) -> tuple[Meaning, Meaning]:
    return _both(means), _both(means)


_DIRECTIONS: Mapping[str, tuple[Meaning, Meaning]] = {
    "frames": (
        Meaning("frames given to the network", "frames put on the ring"),
        Meaning("frames put on the ring", "frames given to the network"),
    ),
    "bytes": _both_ways("bytes of those frames, without virtio_net_hdr; a GSO frame counts once"),
    "slots": _both_ways("slots of the ring that were used"),
    "bursts": _both_ways("pushes to the ring"),
    "notifies": _both_ways("events that the far side asked for and got"),
    "errors": (
        Meaning("frames answered ERROR", "responses with status ERROR"),
        Meaning("slots answered ERROR: their copy failed", "responses with status ERROR"),
    ),
    "dropped": _both_ways("frames dropped: their offloads cannot be done, or they have less than 14 bytes"),
    "fixed_up": (_backend("GSO frames without csum_blank, whose checksum was fixed up"), NOTHING),
    "completed": _both_ways("frames whose checksum netback completed"),
    "segmented": _both_ways("frames that netback segmented"),
    "too_big": (NOTHING, _backend("frames dropped: no number of slots that the guest takes can hold them")),
    "full": _ring_to_peer(
        "polls after which the network had not accepted everything: the rest waits in the ring"
    ),
    "refused": _ring_to_peer("frames lost: the network will never accept them, or its device left them"),
    "stalls": _peer_to_ring("waits for slots"),
    "faults": _peer_to_ring("reads of the network that failed"),
    "short": _peer_to_ring("messages of the network without a frame"),
    "truncated": _peer_to_ring("frames longer than any buffer, lost"),
    "throttled": (
        _backend("polls after which the next frame lacked credit: the rate limit"),
        _backend("polls after which the next frame lacked credit: the rate limit"),
    ),
    "hashed": _both_ways("frames with a hash extra"),
    "copies": (
        _backend("copies from guest pages that took a grant operation"),
        _backend("copies to guest pages that took a grant operation"),
    ),
    "staged": (
        _backend("copies from staged pages, which take none"),
        _backend("copies to staged pages, which take none"),
    ),
}
"""The counters of TX and of RX, in the order of link.pxd's enum; NOTHING: there is none."""

_LINK: Mapping[str, Meaning] = {
    "events": _both("events of the queue's event channels"),
    "events_empty": _both("of those: no producer index had moved"),
    "tx_multicast": _backend("requests that change the guest's multicast list; no frames"),
    "tx_multicast_full": _backend("of those: answered ERROR, since the list was full"),
    "rx_filtered": _backend("multicast frames dropped: the guest's list does not have their address"),
    "rx_expired": _backend("frames dropped: they, or frames read before them, waited too long for slots"),
    "rx_hash_wrong": Meaning(
        "", "frames whose hash extra is not what the key in force gives for their bytes"
    ),
    "rx_inbox_full": _backend("steered frames dropped: the inbox of their queue was full"),
}

MEANINGS: Mapping[str, Meaning] = {
    **{f"tx_{name}": tx for name, (tx, _) in _DIRECTIONS.items() if tx is not NOTHING},
    **{f"rx_{name}": rx for name, (_, rx) in _DIRECTIONS.items() if rx is not NOTHING},
    **_LINK,
}
"""Every counter of a link, by name, in the order of link.pxd's enum."""

CONTROL_RING: Mapping[str, str] = {
    "ctrl_requests": "requests of the control ring that were answered",
    "ctrl_refused": "of those: with another status than SUCCESS",
}
"""The counters of a vif beside those of its queues."""


@dataclass(frozen=True, slots=True)
class Filtered:
    """What a filter counts, and whether the vif lost these frames."""

    means: str
    lost: bool = True


FILTERS: Mapping[str, Mapping[str, Filtered]] = {
    "antispoof": {
        f"tx_antispoof_{reason}": Filtered(f"frames that `antispoof` dropped: {means}")
        for reason, means in {
            "mac": "another source than the vif's MAC address",
            "ipv4": "an IPv4 source that is not the vif's",
            "ipv6": "an IPv6 source that is not the vif's",
            "arp": "ARP or RARP for another address, or malformed",
            "nd": "IPv6 neighbour discovery for another address, malformed, or in fragments",
            "headers": "headers that end early, or more of them than are parsed",
        }.items()
    },
    "vlan": {
        "tx_vlan_dropped": Filtered(
            "frames from the guest that `vlan` dropped: a tag, or none, that the port has not"
        ),
        "rx_vlan_dropped": Filtered("frames for the guest that `vlan` dropped, likewise"),
    },
    "faults": {
        f"{way}_faults_{what}": Filtered(f"{means} by `faults`", what in ("lost", "full"))
        for way in ("tx", "rx")
        for what, means in {
            "lost": "frames dropped",
            "duplicated": "frames repeated",
            "corrupted": "frames damaged, or dropped instead if they have GSO,",
            "reordered": "frames that the next one overtook, held back",
            "stalled": "pauses made",
            "full": "frames dropped since too many were held",
        }.items()
    },
    "mirror": {
        f"{way}_mirror_{what}": Filtered(means, lost=False)
        for way in ("tx", "rx")
        for what, means in {
            "copied": "copies that `mirror` sent",
            "missed": "copies that its network did not take at once, or could not take",
        }.items()
    },
    "redirect": {},
}
"""The counters of each kind of filter, in the order of its own enum (dataplane/peers)."""

FILTER_COUNTERS: Mapping[str, Filtered] = {
    name: counter for kind in FILTERS.values() for name, counter in kind.items()
}
"""Those of all kinds."""

BACKEND: Mapping[str, str] = {
    **{name: means.backend for name, means in MEANINGS.items() if means.backend},
    **CONTROL_RING,
    **{name: counter.means for name, counter in FILTER_COUNTERS.items()},
}
"""The counters of a vif at the backend: those of a queue, those of the vif alone, those of filters that it has had."""

_ETHTOOL: Mapping[str, str] = {
    "rx_packets, rx_bytes": "`tx_frames`, `tx_bytes`",
    "tx_packets, tx_bytes": "`rx_frames`, `rx_bytes`",
    "tx_dropped": "`rx_dropped` + `rx_too_big` + `rx_expired` + `rx_filtered`, and the network's own drops",
    "rx_dropped, rx_errors": "`tx_dropped` + `tx_refused` + `tx_errors`",
    "rx_gso_checksum_fixup": "`tx_fixed_up`",
    "tx_frag_overflow": "none: a frame of more slots than Linux's skb has fragments is sent as it is; see `tx_errors`",
    "tx_zerocopy_sent, tx_zerocopy_success, tx_zerocopy_fail": "none: every frame is copied; see `tx_copies`",
}
"""What xen-netback shows with `ethtool -S` and `ip -s link`, seen from its link: its RX is the guest's TX."""


def render_document() -> str:
    """docs/statistics.md."""
    return "\n".join(
        [
            "<!-- SPDX-License-Identifier: Apache-2.0 -->",
            "# Statistics",
            "",
            "Made from `src/netback/dataplane/counters.py` by `make docs`. TX is what the guest sends, RX what it",
            "receives.",
            "",
            "`netback stats DOMAIN` shows the counters of a device, in total and by queue; `netback list --json`",
            "has those of all. They are kept while the guest disconnects and connects again, and begin at 0 with a",
            "new netback process.",
            "",
            "| counter | counts |",
            "|---|---|",
            *(f"| `{name}` | {means} |" for name, means in BACKEND.items()),
            "",
            "Frames that the network lost before netback read them are shown beside these, where the kernel tells:",
            "`drops`, and `queued` for what waits there now ([networks.md](networks.md)).",
            "",
            "## For users of xen-netback",
            "Its link counts from the backend's view: what the guest sends is received there.",
            "",
            "| xen-netback | here |",
            "|---|---|",
            *(f"| {theirs} | {ours} |" for theirs, ours in _ETHTOOL.items()),
            "",
            "## At a frontend",
            "`netback guest` counts the same events from its end of the rings, but these:",
            "",
            "| counter | counts |",
            "|---|---|",
            *(
                f"| `{name}` | {means.frontend or 'nothing'} |"
                for name, means in MEANINGS.items()
                if means.frontend != means.backend
            ),
            "",
        ]
    )


def _lost(direction: str) -> tuple[str, ...]:
    return tuple(
        name for name, counter in FILTER_COUNTERS.items() if counter.lost and name.startswith(f"{direction}_")
    )


LOSSES: Mapping[str, tuple[str, ...]] = {
    "tx": ("tx_errors", "tx_dropped", "tx_refused", *_lost("tx")),
    "rx": ("rx_dropped", "rx_too_big", "rx_truncated", "rx_expired", "rx_inbox_full", *_lost("rx")),
}
"""The counters of frames that a backend lost, by direction."""


if __name__ == "__main__":
    print(render_document(), end="")
