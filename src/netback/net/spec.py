# SPDX-License-Identifier: Apache-2.0
"""Spec strings, `KIND[:NAME][,OPTION[=VALUE]]...`: `tap`, `tap:vif1.0,mtu=9000`, `packet:eth1`,
`vhost-user:/run/passt.sock,server`, `null`. Parses each and opens its network.

A new kind of network is one file in this package, with a class that implements `base.Network`, and one row of KINDS
here; if its frames need another format or system call, it also needs a file in dataplane/peers. docs/networks.md
describes the kinds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from netback.errors import ConfigError
from netback.net.base import Network, Owner
from netback.net.dgram import OPTIONS as DGRAM_OPTIONS
from netback.net.dgram import DgramNetwork, misfit
from netback.net.endpoints import fault_of, path_fault, read_endpoint
from netback.net.link_names import link_name_fault
from netback.net.null import NullNetwork
from netback.net.options import FLAG, Options, read_options, split_options
from netback.net.ovs import OPTIONS as OVS_OPTIONS
from netback.net.ovs import OvsNetwork, bridge_fault, remove_port
from netback.net.packet import PacketNetwork
from netback.net.stream import StreamNetwork
from netback.net.tap import OPTIONS as TAP_OPTIONS
from netback.net.tap import TapNetwork, remove_made
from netback.net.user import OPTIONS as USER_OPTIONS
from netback.net.user import UserNetwork
from netback.net.user import misfit as user_misfit
from netback.net.vhost_user import VhostUserNetwork


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of network: whether its spec names a link or a socket, its options, and how to open it."""

    link: Literal["never", "may", "must"]
    example: str
    open: Callable[..., Network]
    """Called with the name, `several` (True: for vifs of several queues) and the value of each given option. For a kind
    whose name is not its link's, with the link's name and `owner`, too."""
    names: str = "link"
    fault: Callable[[str], str | None] = link_name_fault
    """Why the name cannot be one; None if it can."""
    options: Options = field(default_factory=dict)
    misfit: Callable[[str, dict[str, Any]], str | None] = lambda _name, _options: None
    """Why the name and the options do not go together; None if they do."""
    owned: bool = False
    """Whether the spec's name is another's than the link's, which then has the device's, whose facts count."""
    remove_earlier: Callable[..., None] | None = None
    """Removes what an earlier process made; called as `open`, without `several` and `owner`. A kind that has it is a
    tap; of all others nothing outlives the process.
    """

    def names_for(self, link: str, device: str) -> tuple[str, ...]:
        """The names that `open` takes: the spec's, and the device's link's where they are two."""
        return (link, device) if self.owned else (link or device,)


KINDS = {
    "tap": Kind(
        "may",
        "tap:vif1.0",
        TapNetwork,
        options=TAP_OPTIONS,
        remove_earlier=lambda link, **_: remove_made(link),
    ),
    "packet": Kind("must", "packet:eth1", lambda link, several: PacketNetwork(link)),
    "vhost-user": Kind(
        "must",
        "vhost-user:/run/passt.sock",
        lambda path, several, **options: VhostUserNetwork(path, **options),
        "socket",
        path_fault,
        {"server": FLAG},
    ),
    "stream": Kind(
        "must",
        "stream:/run/qemu.sock",
        lambda endpoint, several, **options: StreamNetwork(endpoint, **options),
        "socket",
        fault_of(read_endpoint),
        {"server": FLAG},
    ),
    "dgram": Kind(
        "must",
        "dgram:/run/qemu.sock,local=/run/vif1.0.sock",
        lambda endpoint, several, **options: DgramNetwork(endpoint, **options),
        "socket",
        fault_of(read_endpoint),
        DGRAM_OPTIONS,
        misfit,
    ),
    "ovs": Kind(
        "must",
        "ovs:br-int",
        OvsNetwork,
        "bridge",
        bridge_fault,
        OVS_OPTIONS,
        owned=True,
        remove_earlier=remove_port,
    ),
    "user": Kind(
        "never",
        "user",
        lambda name, several, **options: UserNetwork(**options),
        options=USER_OPTIONS,
        misfit=user_misfit,
    ),
    "null": Kind("never", "null", lambda name, several: NullNetwork()),
}


@dataclass(frozen=True, slots=True)
class PeerSpec:
    """A well-formed spec; `link` is empty if it names none. `options` are as written: a flag has None."""

    kind: str
    link: str = ""
    options: tuple[tuple[str, str | None], ...] = ()

    def tap(self, device: str) -> str:
        """The name of its tap, for a device whose link has this name; empty if it has none."""
        kind = KINDS[self.kind]
        return "" if kind.remove_earlier is None else kind.names_for(self.link, device)[-1]

    @property
    def owned(self) -> bool:
        """Whether the facts of its device count."""
        return KINDS[self.kind].owned

    def __str__(self) -> str:
        words = [f"{self.kind}:{self.link}" if self.link else self.kind]
        words += [name if text is None else f"{name}={text}" for name, text in self.options]
        return ",".join(words)


def spec_fault(kind: str, colon: str, link: str) -> str | None:
    """The mistake in a spec's kind or name, as text."""
    if kind not in KINDS:
        mistake = f"unknown kind {kind!r}" if kind else "it names no kind"
        return f"{mistake} (kinds: {', '.join(KINDS)})"
    known = KINDS[kind]
    if known.link == "never" and colon:
        return f"{kind} takes no link: write {known.example!r}"
    if (colon or known.link == "must") and not link:
        return f"it names no {known.names}: write for example {known.example!r}"
    return known.fault(link) if link else None


def parse_spec(text: str) -> PeerSpec:
    """Parse a spec. ConfigError names the mistake."""
    head, comma, tail = text.partition(",")
    kind, colon, link = head.partition(":")
    if fault := spec_fault(kind, colon, link):
        raise ConfigError(f"network {text!r}: {fault}")
    spec = PeerSpec(kind, link, split_options(tail) if comma else ())
    try:
        options = read_options(kind, KINDS[kind].options, spec.options)
    except ConfigError as error:
        raise ConfigError(f"network {text!r}: {error}") from error
    if fault := KINDS[kind].misfit(link, options):
        raise ConfigError(f"network {text!r}: {fault}")
    return spec


def open_network(
    spec: PeerSpec,
    *,
    name: str,
    held: Sequence[int] = (),
    several: bool = False,
    owner: Owner = Owner(),  # noqa: B008 (frozen)
) -> Network:
    """Open the network of a spec. `several`: its vif may have several queues.

    `name` (as in "vif1.0") is the link's name where the spec names none. `held` are the descriptors of a tap that a
    descriptor store kept for this device, one for each queue; the network owns them from here on. `owner` is the
    device, for a kind with which its facts count. ConfigError: the spec cannot be opened. PeerError: it cannot be
    opened now.
    """
    kind = KINDS[spec.kind]
    options = read_options(spec.kind, kind.options, spec.options)
    if held:
        options["held"] = held
    if kind.owned:
        options["owner"] = owner
    return kind.open(*kind.names_for(spec.link, name), several=several, **options)


def remove_earlier(spec: PeerSpec, name: str) -> None:
    """Remove what an earlier process made for a device whose link has this name. NetbackError: it cannot be removed."""
    kind = KINDS[spec.kind]
    if kind.remove_earlier is not None:
        options = read_options(spec.kind, kind.options, spec.options)
        kind.remove_earlier(*kind.names_for(spec.link, name), **options)
