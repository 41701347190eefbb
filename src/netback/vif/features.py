# SPDX-License-Identifier: Apache-2.0
"""What a backend offers, and what the two ends agree on: the frontend's keys become one frozen VifConfig.

Pure. The frontend's keys are a guest's bytes: each is length-limited, strictly decimal and in range, or the vif closes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from netback.dataplane.caps import Can
from netback.errors import GuestError

DeviceType = Literal["vif", "qnic"]

OFFER: Mapping[str, str] = {
    "feature-rx-copy": "1",
    "feature-rx-flip": "0",
    "feature-sg": "1",
    "feature-gso-tcpv4": "1",
    "feature-gso-tcpv6": "1",
    "feature-ipv6-csum-offload": "1",
}
"""Backend keys that must stand before InitWait: a frontend reads them once."""

REQUIRED = ("tx-ring-ref", "rx-ring-ref", "event-channel")
OPTIONAL = (
    "request-rx-copy",
    "feature-rx-notify",
    "feature-sg",
    "feature-gso-tcpv4",
    "feature-gso-tcpv6",
    "feature-no-csum-offload",
    "feature-ipv6-csum-offload",
    "multi-queue-num-queues",
)
KEYS = REQUIRED + OPTIONAL
"""Everything that is read of a frontend that says Connected."""

RX_OFFSET: Mapping[DeviceType, int] = {"vif": 0, "qnic": 2}
"""Where a frame begins in its first page: QEMU's NIC has the IP header aligned, netback has room for a whole page."""

_DECIMAL = re.compile(r"[0-9]{1,10}")
_WORD = 1 << 32


@dataclass(frozen=True, slots=True)
class VifConfig:
    """The agreement that a connection serves."""

    tx_ring_ref: int
    rx_ring_ref: int
    event_channel: int
    caps: Can
    sg: bool
    polls: bool
    """It does not announce RX slots: look for them."""
    rx_offset: int


def parse_number(name: str, text: str | None, below: int = _WORD) -> int:
    """A key's value: decimal digits and nothing else, below a bound."""
    if text is None:
        raise GuestError(f"failed to read {name}")
    if not _DECIMAL.fullmatch(text) or int(text) >= below:
        raise GuestError(f"failed to read {name}: {text[:24]!a} is not a number below {below}")
    return int(text)


def _says(keys: Mapping[str, str | None], name: str) -> bool:
    """A feature: absent is 0."""
    return parse_number(name, keys.get(name) or "0") != 0


def _caps(keys: Mapping[str, str | None], sg: bool) -> Can:
    """IPv4 checksums unless refused, IPv6 only where asked for; TSO needs checksums and frames of several pages."""
    csum4 = not _says(keys, "feature-no-csum-offload")
    csum6 = _says(keys, "feature-ipv6-csum-offload")
    tso4 = _says(keys, "feature-gso-tcpv4") and csum4 and sg
    tso6 = _says(keys, "feature-gso-tcpv6") and csum6 and sg
    return Can(Can.CSUM4 * csum4 | Can.CSUM6 * csum6 | Can.TSO4 * tso4 | Can.TSO6 * tso6)


def agree(keys: Mapping[str, str | None], kind: DeviceType) -> VifConfig:
    """What the frontend's keys say; GuestError names the one that is missing or wrong."""
    tx, rx, port = (parse_number(name, keys.get(name)) for name in REQUIRED)
    if not _says(keys, "request-rx-copy"):
        raise GuestError("frontend doesn't support rx-copy")
    queues = parse_number("multi-queue-num-queues", keys.get("multi-queue-num-queues") or "1")
    if queues != 1:
        raise GuestError(f"frontend wants {queues} queues: one was offered")
    sg = _says(keys, "feature-sg")
    return VifConfig(
        tx_ring_ref=tx,
        rx_ring_ref=rx,
        event_channel=port,
        caps=_caps(keys, sg),
        sg=sg,
        polls=not _says(keys, "feature-rx-notify"),
        rx_offset=RX_OFFSET[kind],
    )


# ---- MAC addresses

_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
XEN_OUI = bytes([0x00, 0x16, 0x3E])


def parse_mac(text: str | None) -> str:
    """A MAC address in the store's spelling: lower-case, colons. ValueError has the reason."""
    if text is None:
        raise ValueError("no MAC address found")
    if not _MAC.fullmatch(text):
        raise ValueError("failed to parse MAC address")
    return text.lower()


def make_mac(random: bytes) -> str:
    """An address of Xen's own range from three random bytes."""
    return (XEN_OUI + random[:3]).hex(":")
