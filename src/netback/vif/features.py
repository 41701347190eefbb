# SPDX-License-Identifier: Apache-2.0
"""The features that a backend offers, and the agreement: the frontend's keys become one frozen VifConfig.

Pure functions. The frontend's keys are a guest's bytes: each must be short, strictly decimal and in range; otherwise
the vif closes with an error that names the key.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from netback.abi.netif import MAX_XDP_HEADROOM
from netback.abi.netif_keys import Key
from netback.dataplane.caps import Can
from netback.errors import GuestError

DeviceType = Literal["vif", "qnic"]


MAX_QUEUES = 256
"""The most queues of any vif: those of a tap (Linux, drivers/net/tun.c)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The maximum that the running backend serves for each device."""

    queues: int = 1
    split: bool = True
    """An event channel for each ring."""

    @classmethod
    def offered(cls, keys: Mapping[str, str | None]) -> Self:
        """The limits that a backend's directory shows: what its frontend was offered, perhaps by an earlier process
        with other limits. `keys` are OFFERED; what is missing or invalid was not offered.
        """
        text = keys.get(Key.MAX_QUEUES) or ""
        queues = int(text) if _DECIMAL.fullmatch(text) else 1
        return cls(min(max(queues, 1), MAX_QUEUES), keys.get(Key.SPLIT_CHANNELS) == "1")


OFFERED = (Key.MAX_QUEUES, Key.SPLIT_CHANNELS)
"""The keys of the offer on which the agreement depends."""


def offer(limits: Limits) -> dict[str, str]:
    """The backend's keys. They must exist before InitWait, since a frontend reads them once."""
    keys = {
        Key.RX_COPY: "1",
        Key.RX_FLIP: "0",
        Key.SG: "1",
        Key.GSO_TCPV4: "1",
        Key.GSO_TCPV6: "1",
        Key.IPV6_CSUM: "1",
        Key.MULTICAST: "1",
        Key.DYNAMIC_MULTICAST: "1",
        Key.XDP: "1",
        Key.CTRL_RING: "1",
        Key.SPLIT_CHANNELS: str(int(limits.split)),
        Key.MAX_QUEUES: str(limits.queues),
    }
    return {str(key): value for key, value in keys.items()}


REQUIRED = (Key.TX_RING_REF, Key.RX_RING_REF, Key.EVENT_CHANNEL)
OPTIONAL = (
    Key.REQUEST_RX_COPY,
    Key.RX_NOTIFY,
    Key.SG,
    Key.GSO_TCPV4,
    Key.GSO_TCPV6,
    Key.NO_CSUM,
    Key.IPV6_CSUM,
    Key.QUEUES,
    Key.CTRL_RING_REF,
    Key.EVENT_CHANNEL_CTRL,
)
LIVE = (Key.REQUEST_MULTICAST, Key.XDP_HEADROOM)
"""Keys that a frontend may change while it is connected; they are watched."""
SPLIT = (Key.EVENT_CHANNEL_TX, Key.EVENT_CHANNEL_RX)
"""In place of EVENT_CHANNEL, if both exist."""
KEYS = REQUIRED + OPTIONAL + SPLIT + LIVE
"""All keys that are read from a frontend in state Connected."""

RX_OFFSET: Mapping[DeviceType, int] = {"vif": 0, "qnic": 2}
"""Where a frame begins in its first page, in bytes: QEMU's NIC aligns the IP header, Linux's backend begins at 0."""

_DECIMAL = re.compile(r"[0-9]{1,10}")
_WORD = 1 << 32


@dataclass(frozen=True, slots=True)
class WaitTimes:
    """How long frames may wait for a guest's RX slots, in seconds; the defaults are those of Linux's backend."""

    drain: float = 10.0
    """After this time a frame is dropped, with all that its network has then."""
    stall: float = 60.0
    """A guest that takes no frame for this time is stalled: its link has no carrier until it posts slots. 0: never."""

    def for_guest(self, *, rx_unannounced: bool) -> "WaitTimes":
        """Without feature-rx-notify: 30 ms and no verdict (Linux's read_xenbus_vif_flags)."""
        return WaitTimes(0.03, 0) if rx_unannounced else self


@dataclass(frozen=True, slots=True)
class QueueConfig:
    """The rings of one queue, and the frontend's port for each, the same for one shared event channel."""

    tx_ring_ref: int
    rx_ring_ref: int
    tx_channel: int
    rx_channel: int
    path: str = ""
    """The directory of its keys in the frontend's, with a slash; empty for the only queue."""

    @property
    def channels(self) -> dict[int, str]:
        """The frontend's ports, each with the key that names it."""
        if self.tx_channel == self.rx_channel:
            return {self.tx_channel: self.path + Key.EVENT_CHANNEL}
        names = {self.tx_channel: Key.EVENT_CHANNEL_TX, self.rx_channel: Key.EVENT_CHANNEL_RX}
        return {port: self.path + name for port, name in names.items()}


@dataclass(frozen=True, slots=True)
class LiveConfig:
    """The part of the agreement that the frontend may change while it is connected."""

    multicast_control: bool = False
    """The guest wants only those multicast frames whose address is in its list."""
    xdp_headroom: int = 0
    """Bytes before each RX frame in its first page, for the guest's XDP program."""


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """The control ring, and the frontend's port."""

    ring_ref: int
    event_channel: int


@dataclass(frozen=True, slots=True)
class VifConfig:
    """The features and rings of a connection."""

    queues: tuple[QueueConfig, ...]
    caps: Can
    """The offloads that the guest accepts."""
    sg: bool
    """The guest accepts frames of more than one page."""
    rx_unannounced: bool
    """The guest sends no event when it posts RX slots (no feature-rx-notify), so the worker polls for them."""
    rx_offset: int
    """Where a frame begins in its first page, in bytes."""
    live: LiveConfig = LiveConfig()
    control: ControlConfig | None = None
    """None: the frontend has no control ring."""


def parse_number(name: str, text: str | None, below: int = _WORD) -> int:
    """The value of a frontend's key: decimal digits only, below a bound. GuestError names the key."""
    if text is None:
        raise GuestError(f"the frontend's {name} is missing")
    if not _DECIMAL.fullmatch(text) or int(text) >= below:
        raise GuestError(f"the frontend's {name} is {text[:24]!a}: not a number below {below}")
    return int(text)


def _number(keys: Mapping[str, str | None], name: str, default: str = "0", below: int = _WORD) -> int:
    """An optional key; its default if absent, as in Linux's backend."""
    return parse_number(name, keys.get(name) or default, below)


def _queue_count(keys: Mapping[str, str | None], limits: Limits) -> int:
    count = _number(keys, Key.QUEUES, default="1")
    if not 1 <= count <= limits.queues:
        most = f"up to {limits.queues} were" if limits.queues > 1 else "1 was"
        raise GuestError(f"the frontend's {Key.QUEUES} is {count}: {most} offered")
    return count


def _paths(count: int) -> list[str]:
    """The directories of the queues' keys (netif.h): one queue has its keys in the frontend's own."""
    return [""] if count == 1 else [f"queue-{number}/" for number in range(count)]


def queue_keys(keys: Mapping[str, str | None], limits: Limits) -> tuple[str, ...]:
    """The keys to read beside KEYS: those of the queues of a frontend that has several. None for a number that
    `agree` refuses.
    """
    try:
        count = _queue_count(keys, limits)
    except GuestError:
        return ()
    return tuple(path + key for path in _paths(count) if path for key in (*REQUIRED, *SPLIT))


def _rings(keys: Mapping[str, str | None], limits: Limits, path: str) -> QueueConfig:
    """The rings and event channels of one queue.

    As in Linux's backend each ring has an event channel of its own if both keys exist. Where that was not offered, the
    keys are left over from another backend.
    """
    tx_ref, rx_ref = (
        parse_number(path + name, keys.get(path + name)) for name in (Key.TX_RING_REF, Key.RX_RING_REF)
    )
    names = [path + name for name in SPLIT if limits.split and keys.get(path + name)]
    channels = [parse_number(name, keys.get(name)) for name in names]
    if len(channels) < len(SPLIT):
        channels = [parse_number(path + Key.EVENT_CHANNEL, keys.get(path + Key.EVENT_CHANNEL))] * 2
    return QueueConfig(tx_ref, rx_ref, channels[0], channels[1], path)


def _caps(keys: Mapping[str, str | None], sg: bool) -> Can:
    """IPv4 checksums unless refused, IPv6 only if requested; TSO needs checksums and frames of several pages."""
    csum4 = not _number(keys, Key.NO_CSUM)
    csum6 = bool(_number(keys, Key.IPV6_CSUM))
    tso4 = bool(_number(keys, Key.GSO_TCPV4)) and csum4 and sg
    tso6 = bool(_number(keys, Key.GSO_TCPV6)) and csum6 and sg
    return Can(Can.CSUM4 * csum4 | Can.CSUM6 * csum6 | Can.TSO4 * tso4 | Can.TSO6 * tso6)


def read_live(keys: Mapping[str, str | None]) -> LiveConfig:
    """The agreement for the frontend's LIVE keys. GuestError names the key that is wrong."""
    return LiveConfig(
        multicast_control=bool(_number(keys, Key.REQUEST_MULTICAST)),
        xdp_headroom=_number(keys, Key.XDP_HEADROOM, below=MAX_XDP_HEADROOM + 1),
    )


def _control(keys: Mapping[str, str | None]) -> ControlConfig | None:
    """A control ring needs its event channel, as in Linux's backend; a channel without a ring means nothing."""
    if not keys.get(Key.CTRL_RING_REF):
        return None
    return ControlConfig(
        *(parse_number(key, keys.get(key)) for key in (Key.CTRL_RING_REF, Key.EVENT_CHANNEL_CTRL))
    )


def agree(keys: Mapping[str, str | None], kind: DeviceType, limits: Limits = Limits()) -> VifConfig:
    """The agreement for the frontend's KEYS and `queue_keys`, within the limits that it was offered; None marks a
    missing node.

    GuestError: a key is missing or wrong, or asks for what was not offered; it names the key and its value.
    """
    if not _number(keys, Key.REQUEST_RX_COPY):
        raise GuestError(f"the frontend's {Key.REQUEST_RX_COPY} is missing or 0: it must take frames by copy")
    rings = [_rings(keys, limits, path) for path in _paths(_queue_count(keys, limits))]
    sg = bool(_number(keys, Key.SG))
    return VifConfig(
        queues=tuple(rings),
        caps=_caps(keys, sg),
        sg=sg,
        rx_unannounced=not _number(keys, Key.RX_NOTIFY),
        rx_offset=RX_OFFSET[kind],
        live=read_live(keys),
        control=_control(keys),
    )


# ---- MAC addresses

MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
"""An Ethernet address in text."""
XEN_OUI = bytes([0x00, 0x16, 0x3E])


def parse_mac(text: str | None) -> str:
    """A NIC's MAC address in the store's spelling: lower-case, colons. ValueError has the reason.

    Refuses what Linux refuses for a link (is_valid_ether_addr): the zero address and any group address, such as the
    broadcast address: the lowest bit of its first octet is set (IEEE 802).
    """
    if text is None:
        raise ValueError("no MAC address found")
    if not MAC.fullmatch(text):
        raise ValueError("failed to parse MAC address")
    octets = bytes.fromhex(text.replace(":", ""))
    if octets[0] & 1:
        raise ValueError("a NIC cannot have a multicast or broadcast MAC address")
    if not any(octets):
        raise ValueError("a NIC cannot have the MAC address of zeros")
    return text.lower()


def make_mac(random: bytes) -> str:
    """An address from Xen's own range, from three random bytes."""
    return (XEN_OUI + random[:3]).hex(":")
