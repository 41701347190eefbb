# SPDX-License-Identifier: Apache-2.0
"""Spec strings: `tap`, `tap:vif1.0`, `packet:eth1`, `vhost-user:/run/passt.sock`, `null`. Parses each and opens its
network.

A new kind of network is one file in this package, with a class that implements `base.Network`, and one row of KINDS
here; if its frames need another format or system call, it also needs a file in dataplane/peers. docs/networks.md
describes the kinds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from netback.errors import ConfigError
from netback.net.base import Network
from netback.net.link_names import link_name_fault
from netback.net.null import NullNetwork
from netback.net.packet import PacketNetwork
from netback.net.tap import TapNetwork
from netback.net.vhost_user import VhostUserNetwork, path_fault


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of network: whether its spec names a link or a socket, and how to open it by that name."""

    link: Literal["never", "may", "must"]
    example: str
    open: Callable[[str, bool], Network]
    """Opens the link of this name; True: for vifs of several queues."""
    names: str = "link"
    fault: Callable[[str], str | None] = link_name_fault
    """Why the name cannot be one; None if it can."""


def _socket_fault(text: str) -> str | None:
    path, comma, option = text.partition(",")
    if comma and option != "server":
        return f"{option!a} is no option of a socket: write for example 'vhost-user:/run/vif1.0.sock,server'"
    return path_fault(path)


def _open_socket(text: str, _: bool) -> Network:
    path, comma, _option = text.partition(",")
    return VhostUserNetwork(path, server=bool(comma))


KINDS = {
    "tap": Kind("may", "tap:vif1.0", lambda link, several: TapNetwork(link, several=several)),
    "packet": Kind("must", "packet:eth1", lambda link, _: PacketNetwork(link)),
    "vhost-user": Kind("must", "vhost-user:/run/passt.sock", _open_socket, "socket", _socket_fault),
    "null": Kind("never", "null", lambda _, __: NullNetwork()),
}


@dataclass(frozen=True, slots=True)
class PeerSpec:
    """A well-formed spec; `link` is empty if it names none."""

    kind: str
    link: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.link}" if self.link else self.kind


def spec_fault(kind: str, colon: str, link: str) -> str | None:
    """The mistake in a spec, as text."""
    if kind not in KINDS:
        return f"unknown kind {kind!r}" if kind else "it names no kind"
    known = KINDS[kind]
    if known.link == "never" and colon:
        return f"{kind} takes no link: write {known.example!r}"
    if (colon or known.link == "must") and not link:
        return f"it names no {known.names}: write for example {known.example!r}"
    return known.fault(link) if link else None


def parse_spec(text: str) -> PeerSpec:
    """Parse a spec. ConfigError names the mistake."""
    kind, colon, link = text.partition(":")
    if fault := spec_fault(kind, colon, link):
        raise ConfigError(f"network {text!r}: {fault} (kinds: {', '.join(KINDS)})")
    return PeerSpec(kind, link)


def open_network(spec: PeerSpec, *, name: str, held: Sequence[int] = (), several: bool = False) -> Network:
    """Open the network of a spec. `several`: its vif may have several queues.

    `name` (as in "vif1.0") is the link's name where the spec names none. `held` are the descriptors of a tap that a
    descriptor store kept for this device, one for each queue; the network owns them from here on. ConfigError: the spec
    cannot be opened. PeerError: it cannot be opened now.
    """
    link = spec.link or name
    if held:
        return TapNetwork(link, held, several=several)
    return KINDS[spec.kind].open(link, several)
