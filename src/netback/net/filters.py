# SPDX-License-Identifier: Apache-2.0
"""Filters of a vif, `KIND[,OPTION[=VALUE]]...`: `antispoof`, `vlan,access=10`. Parses them and puts them around peers.

A new kind of filter is one file in dataplane/peers, its counters in dataplane/counters.py, and one row of KINDS here.
docs/filters.md describes the kinds.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from ipaddress import ip_network
from typing import Any, Self

from netback.dataplane.peers.antispoof import AntispoofPeer
from netback.dataplane.peers.faults import PROBABLE, FaultsPeer
from netback.dataplane.peers.filter import FilterPeer
from netback.dataplane.peers.mirror import MirrorPeer
from netback.dataplane.peers.null import NullPeer
from netback.dataplane.peers.peer import Peer
from netback.dataplane.peers.redirect import RedirectPeer
from netback.dataplane.peers.vlan import VlanPeer
from netback.errors import ConfigError
from netback.net.base import Network
from netback.net.null import NullNetwork
from netback.net.options import Option, Options, choice, integer, read_options, split_options
from netback.net.spec import parse_spec

MAX_FILTERS = 16
"""The most filters of a vif."""
MAX_ADDRESSES = 32
"""The most own networks of a vif, of each version."""
NONE = "none"
"""The text for no filter."""
SEPARATOR = ";"
"""Between the filters of a vif in one text; no filter's text has it."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """A guest's own addresses, as its toolstack wrote them."""

    mac: bytes | None = None
    networks: tuple[tuple[bytes, int], ...] | None = None
    """Its IP addresses, each with the length of its prefix; None: unknown."""

    @classmethod
    def read(cls, mac: str | None, ip: str | None) -> Self:
        """From the nodes `mac`, which is well-formed, and `ip`: addresses and networks, with spaces or commas between
        (vif-common.sh). ConfigError names what is no address.
        """
        networks = None if ip is None else tuple(map(_network, ip.replace(",", " ").split()))
        for size in (4, 16):
            if sum(len(address) == size for address, _ in networks or ()) > MAX_ADDRESSES:
                raise ConfigError(f"the ip node has more than {MAX_ADDRESSES} addresses")
        return cls(bytes.fromhex(mac.replace(":", "")) if mac else None, networks or None)


def _network(text: str) -> tuple[bytes, int]:
    try:
        network = ip_network(text, strict=False)
    except ValueError as error:
        raise ConfigError(f"the ip node has no IP address: {text[:60]!a}") from error
    return network.network_address.packed, network.prefixlen


class Descriptor:
    """A file descriptor that is closed when nothing refers to this object any more."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Around:
    """What a filter may need beside its options and the peer that it is around."""

    addresses: Addresses
    networks: Mapping[str, Network]
    """Those that options name, by their specs."""
    first: bool
    """Whether this one, alone of a vif's, may have a network's own peer: that reads, and takes new connections."""

    def lend(self, spec: str) -> tuple[Peer, object]:
        """A peer that sends to a network, and what must live as long."""
        peer = self.networks[spec].peers[0]
        if self.first:
            return peer, None
        held = Descriptor(os.dup(peer.fd) if peer.fd >= 0 else -1)
        return peer.duplicate(held.fd), held


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of filter."""

    wrap: Callable[..., FilterPeer]
    """Called with the inner peer, an Around, and the value of each given option."""
    options: Options = field(default_factory=dict)
    misfit: Callable[[Mapping[str, Any]], str | None] = lambda _options: None
    """Why the options do not go together; None if they do."""


def _antispoof(inner: Peer, around: Around) -> FilterPeer:
    if around.addresses.mac is None:
        raise ConfigError("antispoof: the device has no mac node: no address is known to be its own")
    return AntispoofPeer(inner, mac=around.addresses.mac, networks=around.addresses.networks)


_PERCENT = re.compile(r"(100|[1-9]?[0-9])(?:\.([0-9]{1,6}))?%", re.ASCII)
_DURATION = re.compile(r"(0|[1-9][0-9]{0,9})(us|ms|s)", re.ASCII)
_UNITS = {"us": 10**3, "ms": 10**6, "s": 10**9}
_MAX_TIME = 10 * 10**9
_PAUSE = 100 * 10**6
"""Nanoseconds that a stall lasts without `pause`."""


def _probability(text: str) -> int:
    match = _PERCENT.fullmatch(text)
    if match is None:
        raise ValueError
    value = int(Decimal(text[:-1]) * (PROBABLE // 100))
    if value > PROBABLE:
        raise ValueError
    return value


def _time(text: str) -> int:
    match = _DURATION.fullmatch(text)
    if match is None or int(match[1]) * _UNITS[match[2]] > _MAX_TIME:
        raise ValueError
    return int(match[1]) * _UNITS[match[2]]


_PROBABILITY = Option("a share of the frames from 0% to 100%, as in 0.5%", _probability)
_TIME = Option("a time of 10s at most, as in 20ms or 500us", _time)

_VLANS = re.compile(r"[1-9][0-9]{0,3}(?:-[1-9][0-9]{0,3})?", re.ASCII)
_LAST_VLAN = 4094


def _vlans(text: str) -> frozenset[int]:
    vlans: set[int] = set()
    for part in text.split("+"):
        begin, _, end = part.partition("-")
        if not _VLANS.fullmatch(part) or not int(begin) <= int(end or begin) <= _LAST_VLAN:
            raise ValueError
        vlans.update(range(int(begin), int(end or begin) + 1))
    return frozenset(vlans)


def _vlan(
    inner: Peer,
    around: Around,
    *,
    access: int = 0,
    trunk: frozenset[int] = frozenset(),
    native: int = 0,
) -> FilterPeer:
    return VlanPeer(inner, native=access or native, allowed=trunk)


def _vlan_misfit(options: Mapping[str, Any]) -> str | None:
    if ("access" in options) == ("trunk" in options):
        return "a port is either access=VLAN or trunk=VLANS"
    if "access" in options and "native" in options:
        return "native is an option of a trunk"
    return None


def _faults(inner: Peer, around: Around, *, direction: str = "both", **terms: int) -> FilterPeer:
    terms.setdefault("pause", _PAUSE)
    return FaultsPeer(inner, tx=direction != "rx", rx=direction != "tx", **terms)


def _faults_misfit(options: Mapping[str, Any]) -> str | None:
    if not options.keys() & {"loss", "delay", "reorder", "duplicate", "corrupt", "stall"}:
        return "it names no fault: as in faults,loss=1%"
    return "pause is of stall" if "pause" in options and "stall" not in options else None


def _mirror(inner: Peer, around: Around, *, to: str, direction: str = "both") -> FilterPeer:
    other, held = around.lend(to)
    return MirrorPeer(inner, other=other, tx=direction != "rx", rx=direction != "tx", keep=held)


def _redirect(inner: Peer, around: Around, *, to: str, direction: str = "both") -> FilterPeer:
    other, held = around.lend(to)
    reader = None if direction == "tx" else other if around.first else NullPeer()
    return RedirectPeer(inner, reader=reader, writer=None if direction == "rx" else other, keep=held)


def _needs_to(options: Mapping[str, Any]) -> str | None:
    return None if "to" in options else "it names no network: as in to=tap:mirror0, its last option"


def _spec(text: str) -> str:
    try:
        spec = parse_spec(text)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    if spec.kind == "tap" and not spec.link:
        raise ValueError("name the tap, as in tap:mirror0")
    return str(spec)


_OTHER: Options = {
    "direction": choice("tx", "rx", "both"),
    "to": Option("the spec of a network", _spec, rest=True),
}

KINDS: Mapping[str, Kind] = {
    "antispoof": Kind(_antispoof),
    "vlan": Kind(
        _vlan,
        {
            "access": integer(1, _LAST_VLAN),
            "trunk": Option("VLANs from 1 to 4094 and ranges of them, as in 10-20+30", _vlans),
            "native": integer(1, _LAST_VLAN),
        },
        _vlan_misfit,
    ),
    "faults": Kind(
        _faults,
        {
            **dict.fromkeys(("loss", "duplicate", "corrupt", "reorder", "stall"), _PROBABILITY),
            "delay": _TIME,
            "pause": _TIME,
            "seed": integer(0, 10**18 - 1),
            "direction": choice("tx", "rx", "both"),
        },
        _faults_misfit,
    ),
    "mirror": Kind(_mirror, _OTHER, _needs_to),
    "redirect": Kind(_redirect, _OTHER, _needs_to),
}


@dataclass(frozen=True, slots=True)
class FilterSpec:
    """A well-formed text; `options` are as written: a flag has None."""

    kind: str
    options: tuple[tuple[str, str | None], ...] = ()

    @property
    def network(self) -> str | None:
        """The spec of the network that it names; None if it names none."""
        return dict(self.options).get("to")

    def __str__(self) -> str:
        return ",".join(
            (self.kind, *(name if text is None else f"{name}={text}" for name, text in self.options))
        )


def parse_filter(text: str) -> FilterSpec:
    """Parse the text of one filter. ConfigError names the mistake."""
    kind, comma, tail = text.partition(",")
    shown = ascii(text) if len(ascii(text)) <= 60 else f"{ascii(text)[:57]}..."
    if kind not in KINDS:
        mistake = "unknown kind" if kind else "it names no kind"
        raise ConfigError(f"filter {shown}: {mistake} (kinds: {', '.join(KINDS)})")
    if SEPARATOR in text or not text.isascii() or not text.isprintable():
        raise ConfigError(f"filter {shown}: it has a semicolon, or what is no printable ASCII")
    spec = FilterSpec(kind, split_options(tail, KINDS[kind].options) if comma else ())
    try:
        options = read_options(kind, KINDS[kind].options, spec.options)
    except ConfigError as error:
        raise ConfigError(f"filter {shown}: {error}") from error
    if fault := KINDS[kind].misfit(options):
        raise ConfigError(f"filter {shown}: {fault}")
    return spec


def parse_filters(texts: Iterable[str]) -> tuple[FilterSpec, ...]:
    """Parse the texts of a vif's filters, each alone. ConfigError names the mistake."""
    specs = tuple(map(parse_filter, texts))
    if len(specs) > MAX_FILTERS:
        raise ConfigError(f"a vif has {MAX_FILTERS} filters at most, not {len(specs)}")
    return specs


def parse_node(text: str) -> tuple[FilterSpec, ...]:
    """Parse the value of the node with a device's filters (`as_node`). ConfigError names the mistake."""
    text = text.strip()
    return () if text in ("", NONE) else parse_filters(part.strip() for part in text.split(SEPARATOR))


def as_node(specs: Sequence[FilterSpec]) -> str:
    """Filters as one text: "antispoof; vlan,access=10", or "none"."""
    return f"{SEPARATOR} ".join(map(str, specs)) or NONE


@dataclass(frozen=True, slots=True)
class Filters:
    """The filters of one vif, in order: what the guest sends passes the first one first, what it receives the last."""

    specs: tuple[FilterSpec, ...] = ()
    addresses: Addresses = field(default_factory=Addresses)
    networks: Mapping[str, Network] = field(default_factory=dict)
    """The open networks that filters name, by their specs."""

    @property
    def names(self) -> frozenset[str]:
        """The specs of the networks that filters name."""
        return frozenset(spec.network for spec in self.specs if spec.network is not None)

    def wrap(self, peer: Peer, *, first: bool = True) -> Peer:
        """A peer of the vif's network with these filters around it. ConfigError: an address that a filter needs is
        unknown.

        `first`: of all that are in use at a time, this one is around the peer that reads the vif's first frames.
        """
        around = Around(self.addresses, self.networks, first)
        for spec in reversed(self.specs):
            kind = KINDS[spec.kind]
            peer = kind.wrap(peer, around, **read_options(spec.kind, kind.options, spec.options))
        return peer

    def check(self) -> None:
        """ConfigError: `wrap` would fail."""
        replace(self, networks={name: NullNetwork() for name in self.names}).wrap(NullPeer())


def count(peer: Peer) -> Mapping[str, int]:
    """What the filters around a peer have counted, by name."""
    total: Counter[str] = Counter()
    while isinstance(peer, FilterPeer):
        total.update(peer.counters)
        peer = peer.inner
    return total
