# SPDX-License-Identifier: Apache-2.0
"""A tap that is a port of a bridge of Open vSwitch, so that OVN or another controller of the switch finds the guest.

The tap is a tap as any other; its port is kept in the switch's database (net/ovs_switch.py). The kernel's datapath
takes every offload, as a bridge does. The userspace datapath reads the tap by a packet socket, without the header that
tells of a missing checksum or a large segment: netback then completes and segments what its guest leaves to the
network. Until the bridge's datapath is known, it does the same.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress

from netback.dataplane.caps import EVERYTHING
from netback.dataplane.peers.tap import TapPeer
from netback.errors import ConfigError, PeerError, printable
from netback.net.base import Bridge, Owner
from netback.net.endpoints import HostPort, UnixPath, path_fault, read_host_port
from netback.net.options import Option, Options, integer
from netback.net.ovs_switch import Place, Port, Switch, Vlan, give_back, share
from netback.net.rtnetlink import IFF_UP, get_link, turn_on
from netback.net.tap import MTU, TapNetwork, find_joined, find_made, remove_made

MAX_BRIDGE = 64
"""Characters. Bridges of the userspace datapath need not be links, whose names are shorter."""
OPEN_SECONDS = 3.0
"""For the port to be in the switch. A toolstack waits 10 s for the device."""
REMOVE_SECONDS = 2.0
MAX_VALUE = 255
"""Characters of a value of external_ids."""
FIELDS = ("uuid", "name", "devid", "domid", "mac")
"""What a template of an `iface-id` may name."""
TEMPLATE = "{uuid}-{devid}"
"""The default: it stays when the guest is rebooted or moved to another host."""
_FIELD = re.compile(r"\{([^{}]*)\}")
_NUMBERS = integer(0, 4095)


def read_trunks(text: str) -> tuple[int, ...]:
    """VLANs, as in 10+20. ValueError: one is none."""
    return tuple(_NUMBERS.read(number) for number in text.split("+"))


def read_template(text: str) -> str:
    """A text with fields such as {uuid}. ValueError: it has another field."""
    if strange := [name for name in _FIELD.findall(text) if name not in FIELDS]:
        raise ValueError(
            f"it has {{{strange[0]}}}, and not one of {', '.join(f'{{{name}}}' for name in FIELDS)}"
        )
    if set("{}") & set(_FIELD.sub("", text)):
        raise ValueError("a brace is alone")
    if not text.isprintable() or len(text) > MAX_VALUE:
        raise ValueError(f"it has more than {MAX_VALUE} characters, or one that is not printable")
    return text


def read_database(text: str) -> UnixPath | HostPort:
    """Where ovsdb-server listens, as ovs-vsctl(8) writes it. ValueError says what is wrong."""
    kind, _, where = text.partition(":")
    if kind == "unix":
        if fault := path_fault(where):
            raise ValueError(fault)
        return UnixPath(where)
    if kind != "tcp":
        raise ValueError("it begins with neither unix: nor tcp:")
    return read_host_port(where)


DATABASE = UnixPath("/run/openvswitch/db.sock")
OPTIONS: Options = {
    "tag": integer(0, 4095),
    "trunks": Option("VLANs joined by +, as in 10+20", read_trunks),
    "iface-id": Option("the port's name in OVN", read_template),
    "db": Option("unix:PATH or tcp:ADDRESS:PORT of ovsdb-server", read_database),
    "mtu": MTU,
}
"""Options of its spec."""


def bridge_fault(name: str) -> str | None:
    """Why a bridge cannot have this name; None if it can."""
    if not name.isprintable() or len(name) > MAX_BRIDGE or "/" in name:
        return f"{name!a} cannot be the name of a bridge"
    return None


def fill(template: str, facts: Mapping[str, str]) -> str:
    """The template with the facts in place of its fields. KeyError: the first that is not known."""
    return _FIELD.sub(lambda match: facts[match[1]], template)


def external_ids(template: str | None, facts: Mapping[str, str]) -> dict[str, str]:
    """What Xen's script vif-openvswitch, and Open vSwitch's guide for integration, say of a guest's interface.

    Keys without a known value are left out, and so is the default `iface-id`. KeyError: a fact that `template` names is
    not known.
    """
    ids = {
        "attached-mac": facts.get("mac"),
        "xen-vm-name": facts.get("name"),
        "xen-vm-uuid": facts.get("uuid"),
        "vm-id": facts.get("uuid"),
    }
    if template is not None:
        ids["iface-id"] = fill(template, facts)
    else:
        with suppress(KeyError):
            ids["iface-id"] = fill(TEMPLATE, facts)
    if "iface-id" in ids:
        ids["iface-status"] = "active"
    return {key: printable(value)[:MAX_VALUE] for key, value in ids.items() if value}


class OvsNetwork(TapNetwork):
    """The tap `link` as a port of `bridge`. `tag`, `trunks`: its VLANs. `iface_id`: a template.

    The switch must have the port within OPEN_SECONDS, except that of a tap that was there before: that network opens,
    and `check` says what is wrong. ConfigError: what `iface_id` names is not known; and as for a tap. PeerError: the
    switch does not have the port; and as for a tap.
    """

    _takes = 0
    _usual_vhost = "off"

    def __init__(
        self,
        bridge: str,
        link: str,
        held: Sequence[int] = (),
        *,
        owner: Owner = Owner(),  # noqa: B008 (frozen)
        several: bool = False,
        tag: int | None = None,
        trunks: tuple[int, ...] = (),
        iface_id: str | None = None,
        db: UnixPath | HostPort = DATABASE,
        mtu: int | None = None,
    ) -> None:
        self._title = f"ovs:{printable(bridge)}"
        self._owner, self._ovs_bridge = owner, bridge
        self._switch: Switch | None = None
        self._place: Place | None = None
        try:
            ids = external_ids(iface_id, owner.facts)
        except KeyError as error:
            reason = f"iface-id={iface_id} needs the guest's {error.args[0]}, which is not known here"
            raise ConfigError(f"{self._title}: {reason}") from error
        known = bool(held) or get_link(link) is not None or find_made(link) is not None
        super().__init__(link, held, several=several, mtu=mtu)
        try:
            self._switch = share(db)
            self._place = self._switch.join(Port(link, bridge, Vlan.of(tag, trunks), ids), self._changed)
            self._switch.await_verdict(self._place, OPEN_SECONDS)
            self._adapt()
            if not known:
                self._check_port()
        except BaseException:
            self._end(remove=not known)  # the first error counts
            raise

    # ---- the port

    def _changed(self) -> None:
        """In the switch's thread: its port, or what is known of it, has changed."""
        self._adapt()
        self._owner.wake()

    def _adapt(self) -> None:
        """Complete and segment frames, or leave that to the switch."""
        if self._place is None:
            return
        self._takes = EVERYTHING if self._place.userspace is False else 0
        for peer in tuple(self._peers):
            if isinstance(peer, TapPeer):
                peer.accept(self._takes)

    def _check_port(self) -> None:
        """PeerError: the switch does not have the port, or netback cannot know."""
        if self._place is not None and self._switch is not None and (fault := self._place.fault):
            raise PeerError(f"{self._title}: {fault}")

    def _join(self, waits: tuple[float, ...]) -> None:
        """Open vSwitch does not set its ports up."""
        super()._join(waits)
        link = find_joined(self._fd)
        try:
            if link is not None:
                turn_on(link.index, IFF_UP)
        except OSError as error:
            raise ConfigError(f"{self._title}: cannot set {self._link} up: {error.strerror}") from error

    # ---- for control code

    @property
    def bridge(self) -> Bridge | None:
        if self._place is None or not self._place.taken:
            return None
        link = get_link(self._ovs_bridge)
        return Bridge(link.index if link else 0, self._ovs_bridge, None)

    @property
    def path(self) -> str | None:
        if self._place is None or self._place.userspace is False:
            return None
        reason = "has the userspace datapath" if self._place.userspace else "has a datapath that is not known"
        return f"completed and segmented by netback: {printable(self._ovs_bridge)} {reason}"

    @property
    def up(self) -> bool:
        return super().up and (self._place is None or self._place.taken is not False)

    def set_queues(self, count: int) -> None:
        """As for a tap."""
        super().set_queues(count)
        self._adapt()

    def check(self) -> bool:
        """As for a tap; then PeerError if the switch does not have the port, or its database does not answer."""
        if super().check():
            self._owner.wake()  # the port is looked at next
            return True
        self._check_port()
        return False

    def close(self) -> None:
        """Close the descriptors; the tap stays, and its port with it."""
        self._end(remove=False)

    def remove(self) -> None:
        """Remove the port and the tap, if netback made them. PeerError: the tap is removed, the port stays."""
        if not self._end(remove=True):
            raise PeerError(_stays(self._title, self._ovs_bridge, self._link))

    def _end(self, *, remove: bool) -> bool:
        """Returns False if the port may stay although it should not."""
        switch, self._switch = self._switch, None
        done = True
        if switch is not None:
            if self._place is not None:
                known = self._place.taken is not None
                done = switch.leave(self._place, remove=remove and known, seconds=REMOVE_SECONDS)
                self._place.changed = bool
            give_back(switch)
        if remove:
            super().remove()
        super().close()
        return done


def _stays(title: str, bridge: str, link: str) -> str:
    return f"{title}: its database does not answer, so the port stays: ovs-vsctl del-port {printable(bridge)} {link}"


def remove_port(bridge: str, link: str, *, db: UnixPath | HostPort = DATABASE, **_: object) -> None:
    """Remove the tap and the port that an earlier netback made. PeerError: the port stays."""
    remove_made(link)
    switch = share(db)
    place = switch.join(Port(link, bridge, Vlan(), {}), bool, leaving=True)
    done = switch.leave(place, remove=True, seconds=REMOVE_SECONDS)
    give_back(switch)
    if not done:
        raise PeerError(_stays(f"ovs:{printable(bridge)}", bridge, link))
