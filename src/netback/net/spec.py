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
from netback.net.af_xdp import OPTIONS as AF_XDP_OPTIONS
from netback.net.af_xdp import AfXdpNetwork
from netback.net.base import Network, Owner
from netback.net.dgram import OPTIONS as DGRAM_OPTIONS
from netback.net.dgram import DgramNetwork, misfit
from netback.net.endpoints import fault_of, path_fault, read_endpoint
from netback.net.l2tpv3 import OPTIONS as L2TPV3_OPTIONS
from netback.net.l2tpv3 import L2tpv3Network, read_end
from netback.net.l2tpv3 import misfit as l2tpv3_misfit
from netback.net.link_names import link_name_fault
from netback.net.macvtap import OPTIONS as MACVTAP_OPTIONS
from netback.net.macvtap import MacvtapNetwork
from netback.net.null import NullNetwork
from netback.net.options import FLAG, Options, read_options, split_options
from netback.net.ovs import OPTIONS as OVS_OPTIONS
from netback.net.ovs import OvsNetwork, bridge_fault, remove_port
from netback.net.packet import OPTIONS as PACKET_OPTIONS
from netback.net.packet import PacketNetwork
from netback.net.sandbox.network import OPTIONS as SANDBOX_OPTIONS
from netback.net.sandbox.network import SandboxNetwork
from netback.net.stream import StreamNetwork
from netback.net.switch import HUB_OPTIONS, SwitchNetwork
from netback.net.switch import OPTIONS as SWITCH_OPTIONS
from netback.net.switch import name_fault as switch_name_fault
from netback.net.tap import OPTIONS as TAP_OPTIONS
from netback.net.tap import TapNetwork, remove_made
from netback.net.user import OPTIONS as USER_OPTIONS
from netback.net.user import UserNetwork
from netback.net.user import misfit as user_misfit
from netback.net.vde import OPTIONS as VDE_OPTIONS
from netback.net.vde import VdeNetwork, vde_fault
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
    tap: Callable[[str, str], str] | None = None
    """The name of its tap, by the spec's name and the device's; None: it has no tap. `open` gets it as `tap`, and the
    device as `owner`.
    """
    owned: bool = False
    """Whether the names of the device's guest count (`Owner.facts`)."""
    remove_earlier: Callable[..., None] | None = None
    """Removes what an earlier process made, if that is more than its tap: called with the spec's name, the tap's, and
    the options.
    """


KINDS = {
    "tap": Kind(
        "may",
        "tap:vif1.0",
        lambda link, tap, owner, **options: TapNetwork(tap, grants=owner.grants, **options),
        options=TAP_OPTIONS,
        tap=lambda link, device: link or device,
    ),
    "bridge": Kind(
        "must",
        "bridge:xenbr0",
        lambda bridge, tap, owner, **options: TapNetwork(tap, bridge=bridge, grants=owner.grants, **options),
        "bridge",
        options={name: option for name, option in TAP_OPTIONS.items() if name != "bridge"},
        tap=lambda bridge, device: device,
    ),
    "ovs": Kind(
        "must",
        "ovs:br-int",
        lambda bridge, tap, **options: OvsNetwork(bridge, tap, **options),
        "bridge",
        bridge_fault,
        OVS_OPTIONS,
        tap=lambda bridge, device: device,
        owned=True,
        remove_earlier=remove_port,
    ),
    "macvtap": Kind(
        "must",
        "macvtap:eth0",
        lambda lower, owner, **options: MacvtapNetwork(lower, address=owner.facts.get("mac"), **options),
        options=MACVTAP_OPTIONS,
        tap=lambda lower, device: device,
    ),
    "packet": Kind(
        "must",
        "packet:eth1",
        lambda link, several, **options: PacketNetwork(link, **options),
        options=PACKET_OPTIONS,
    ),
    "af_xdp": Kind(
        "must",
        "af_xdp:eth1",
        lambda link, several, **options: AfXdpNetwork(link, **options),
        options=AF_XDP_OPTIONS,
    ),
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
    "l2tpv3": Kind(
        "must",
        "l2tpv3:192.0.2.1:1701,local=192.0.2.2:1701,session=1",
        lambda where, several, **options: L2tpv3Network(where, **options),
        "host",
        fault_of(read_end),
        L2TPV3_OPTIONS,
        l2tpv3_misfit,
    ),
    "vde": Kind(
        "must",
        "vde:/run/vde.ctl",
        lambda path, several, **options: VdeNetwork(path, **options),
        "switch",
        vde_fault,
        VDE_OPTIONS,
    ),
    "user": Kind(
        "never",
        "user",
        lambda name, several, **options: UserNetwork(**options),
        options=USER_OPTIONS,
        misfit=user_misfit,
    ),
    "switch": Kind(
        "must",
        "switch:lan",
        lambda name, several, **options: SwitchNetwork(name, **options),
        "switch",
        switch_name_fault,
        SWITCH_OPTIONS,
    ),
    "hub": Kind(
        "must",
        "hub:lan",
        lambda name, several, **options: SwitchNetwork(name, kind="hub", **options),
        "hub",
        switch_name_fault,
        HUB_OPTIONS,
    ),
    "sandbox": Kind(
        "never",
        "sandbox",
        lambda name, several, **options: SandboxNetwork(**options),
        options=SANDBOX_OPTIONS,
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


def tap_name(spec: PeerSpec, device: str) -> str:
    """The name of the spec's tap, which is the device's, as in "vif1.0", unless the spec has another; empty: no tap."""
    tap = KINDS[spec.kind].tap
    return tap(spec.link, device) if tap else ""


def remove_earlier(spec: PeerSpec, device: str) -> None:
    """Remove what an earlier process made for this spec and device. NetbackError: it cannot be removed."""
    kind, tap = KINDS[spec.kind], tap_name(spec, device)
    if kind.remove_earlier is not None:
        kind.remove_earlier(spec.link, tap, **read_options(spec.kind, kind.options, spec.options))
    elif tap:
        remove_made(tap)


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
    if tap := tap_name(spec, name):
        options |= {"tap": tap, "owner": owner}
    return kind.open(spec.link, several=several, **options)
