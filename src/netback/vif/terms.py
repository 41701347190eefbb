# SPDX-License-Identifier: Apache-2.0
"""What both ends said of each feature, and what came of it: for people who wonder why a guest has none of it.

A pure function beside `vif.features`, which decides; this explains. A key that both ends publish speaks of each end's
own abilities: the backend's `feature-sg` permits the guest to send such frames, the guest's has it receive them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from netback.abi.netif_keys import Key
from netback.dataplane.caps import Can
from netback.errors import GuestError
from netback.vif.features import DeviceType, Limits, VifConfig, agree

Keys = Mapping[str, str | None]
_OFF = (None, "", "0")


@dataclass(frozen=True, slots=True)
class Term:
    """One feature."""

    feature: str
    means: str
    """What it gives."""
    offered: str | None
    """The value of the backend's key; None if there is none."""
    asked: str | None
    """The value of the frontend's key."""
    agreed: bool | None
    """Whether it is in force; None before the frontend connects."""
    reason: str | None
    """Why it is not."""


@dataclass(frozen=True, slots=True)
class Row:
    """What decides about one feature; docs/reference.md is made from them."""

    feature: str
    means: str
    offered: Key | None
    """The backend's key; None: netif has none, it is always there."""
    asked: Key
    agreed: Callable[[VifConfig], bool]
    needs: tuple[str, ...] = ()
    """Other features."""
    refusal: str = "the guest does not ask for it"
    inverted: bool = False
    """The frontend's key refuses it."""


def _can(cap: Can) -> Callable[[VifConfig], bool]:
    return lambda config: bool(config.caps & cap)


SG, CSUM4, CSUM6 = "frames of several pages", "IPv4 checksums", "IPv6 checksums"
TSO4, TSO6, RX_EVENTS, QUEUES = "TSO of IPv4", "TSO of IPv6", "events for RX slots", "several queues"
ROWS = (
    Row(SG, "the guest receives frames of more than a page", Key.SG, Key.SG, lambda config: config.sg),
    Row(
        CSUM4, "the guest receives IPv4 packets without a checksum", None, Key.NO_CSUM, _can(Can.CSUM4),
        refusal="the guest refuses it", inverted=True,
    ),
    Row(CSUM6, "the same for IPv6", Key.IPV6_CSUM, Key.IPV6_CSUM, _can(Can.CSUM6)),
    Row(
        TSO4, "the guest receives up to 64 KiB of TCP as one frame", Key.GSO_TCPV4, Key.GSO_TCPV4,
        _can(Can.TSO4), (SG, CSUM4),
    ),
    Row(TSO6, "the same for IPv6", Key.GSO_TCPV6, Key.GSO_TCPV6, _can(Can.TSO6), (SG, CSUM6)),
    Row(
        RX_EVENTS, "the guest tells when it posts slots; else netback polls every millisecond", None,
        Key.RX_NOTIFY, lambda config: not config.rx_unannounced,
    ),
    Row(
        QUEUES, "frames are spread over processors", Key.MAX_QUEUES, Key.QUEUES,
        lambda config: len(config.queues) > 1, refusal="the guest asks for one",
    ),
    Row(
        "split event channels", "an event channel for each ring", Key.SPLIT_CHANNELS, Key.EVENT_CHANNEL_TX,
        lambda config: any(queue.tx_channel != queue.rx_channel for queue in config.queues),
    ),
    Row(
        "control ring", "the guest sets its hash and stages its buffers", Key.CTRL_RING, Key.CTRL_RING_REF,
        lambda config: config.control is not None,
    ),
    Row(
        "multicast control", "the guest receives the multicast frames of its list alone", Key.MULTICAST,
        Key.REQUEST_MULTICAST, lambda config: config.live.multicast_control,
    ),
    Row(
        "XDP headroom", "room before each RX frame for the guest's XDP program", Key.XDP, Key.XDP_HEADROOM,
        lambda config: config.live.xdp_headroom > 0,
    ),
)  # fmt: skip


def explain(offered: Keys, keys: Keys, kind: DeviceType, *, connected: bool) -> tuple[list[Term], str | None]:
    """Each feature, and how the frontend's keys are wrong as a whole, None if they are not.

    `offered` are the nodes of the backend's directory, `keys` features.KEYS and `queue_keys` of the frontend's; None
    marks a missing one. `connected`: the frontend has written all of its own.
    """
    if not connected:
        return [_term(row, offered, keys, None) for row in ROWS], None
    try:
        config = agree(keys, kind, Limits.offered(offered))
    except GuestError as error:
        return [_term(row, offered, keys, None) for row in ROWS], str(error)
    return [_term(row, offered, keys, config) for row in ROWS], None


def _term(row: Row, offered: Keys, keys: Keys, config: VifConfig | None) -> Term:
    value = offered.get(row.offered) if row.offered is not None else None
    asked = _asked(row, keys)
    agreed = None if config is None else row.agreed(config)
    reason = _reason(row, value, asked, config) if config is not None and not agreed else None
    return Term(row.feature, row.means, value, asked, agreed, reason)


def _asked(row: Row, keys: Keys) -> str | None:
    """The frontend's value; that of the first queue where each has its own."""
    return keys.get(row.asked) or keys.get(f"queue-0/{row.asked}")


def _reason(row: Row, offered: str | None, asked: str | None, config: VifConfig) -> str:
    if row.offered is not None and offered in _OFF:
        return "it was not offered"
    if (asked in _OFF) is not row.inverted:
        return row.refusal
    missing = [other.feature for other in ROWS if other.feature in row.needs and not other.agreed(config)]
    return f"it needs {' and '.join(missing)}" if missing else row.refusal
