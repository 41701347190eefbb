# SPDX-License-Identifier: Apache-2.0
"""A switch, or a hub, between the vifs of this process: those whose specs have the same name share it.

It is made for its first vif and ends with its last one. What it knows, which addresses are behind which port, is
learned again after a restart. An uplink makes a link of the host one more port.
"""

import errno
import os
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Literal
from weakref import WeakValueDictionary

from netback.dataplane.peers.peer import Peer
from netback.dataplane.peers.switch import Carrier, Port, Switch
from netback.errors import ConfigError, GoneError, NetbackError, PeerError
from netback.net.base import Linkless
from netback.net.link_names import link_name_fault
from netback.net.options import Option, Options, integer
from netback.net.packet import PacketNetwork
from netback.net.tap import TapNetwork

Kind = Literal["switch", "hub"]

AGEING = 300
"""Seconds: BR_DEFAULT_AGEING_TIME of Linux's bridge, and of IEEE 802.1D."""
MAX_AGEING = 1_000_000
UPLINK_ADDRESSES = 4096
"""Most that are learned at an uplink, behind which are many hosts; a vif's port has the 1024 of `Port`."""
SHOWN_ADDRESSES = 8
UPLINKS: Mapping[str, Callable[[str], TapNetwork | PacketNetwork]] = {
    "tap": TapNetwork,
    "packet": PacketNetwork,
}

_NAME = re.compile(r"[A-Za-z0-9._-]{1,32}", re.ASCII)


def name_fault(name: str) -> str | None:
    """Why a switch cannot have this name; None if it can."""
    return None if _NAME.fullmatch(name) else f"{name!r} is not 1 to 32 letters, digits, '.', '_' or '-'"


def read_uplink(text: str) -> str:
    """KIND:LINK, which are returned. ValueError: no link that can be an uplink."""
    kind, _, link = text.partition(":")
    if kind not in UPLINKS:
        raise ValueError(f"it is of no kind that can be one ({', '.join(UPLINKS)})")
    if fault := link_name_fault(link):
        raise ValueError(fault)
    return text


UPLINK = Option("a link of the host, as in tap:lan0 or packet:eth1", read_uplink)
HUB_OPTIONS: Options = {"uplink": UPLINK}
OPTIONS: Options = {"ageing": integer(1, MAX_AGEING), **HUB_OPTIONS}
"""Options of their specs."""


class Uplink:
    """A link as a port: a thread carries its frames. PeerError, ConfigError: the link cannot be opened."""

    def __init__(self, switch: Switch, spec: str) -> None:
        kind, _, link = spec.partition(":")
        self.spec = spec
        with ExitStack() as undo:
            self.network = UPLINKS[kind](link)
            undo.callback(self.network.close)
            self.network.offloads(self.network.peers[0].caps)
            self._port = Port(switch, limit=UPLINK_ADDRESSES)
            undo.callback(self._port.close)
            self._kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undo.callback(os.close, self._kick)
            self._ending = False
            self._carrier = Carrier(self.network.peers[0], self._port.peers[0])
            self._thread = threading.Thread(target=self._run, name=f"uplink {spec}", daemon=True)
            self._thread.start()
            undo.pop_all()
        self._port.open(True)
        self.network.carrier(True)

    def _run(self) -> None:
        while not self._ending:
            self._carrier.run(self._kick)
            os.eventfd_read(self._kick)

    def check(self) -> None:
        """Join the link again if it was removed and is back. The errors are those of its own check."""
        if self.network.check():
            os.eventfd_write(self._kick, 1)

    @property
    def number(self) -> int:
        """Of its port."""
        return self._port.number

    @property
    def lost(self) -> int:
        """Frames for the link that it did not take, or that found its port full."""
        return self._carrier.lost + self._port.lost

    def end(self, *, remove: bool) -> None:
        """Leave the link; `remove`: and remove it, if netback made it."""
        self._ending = True
        os.eventfd_write(self._kick, 1)
        self._thread.join()
        os.close(self._kick)
        self._port.close()
        if remove:
            self.network.remove()
        self.network.close()


class Segment:
    """A switch or hub with its ports. An option holds for all of its vifs, whichever gave it: after a restart they come
    in any order.
    """

    def __init__(self, name: str, kind: Kind) -> None:
        self.users = 0
        self.native = Switch(learns=kind == "switch", ageing=AGEING)
        self.uplink: Uplink | None = None
        self._name = name
        self._options: dict[str, object] = {}

    def join(self, options: Mapping[str, Any]) -> None:
        """One vif more, with these options. ConfigError: others are in force. PeerError, ConfigError: its uplink cannot
        be opened; no link that returns is waited for then.
        """
        for option, value in options.items():
            if (has := self._options.get(option, value)) != value:
                raise ConfigError(
                    f"{self._name}: {option}={has} is in force for another vif, and not {option}={value}"
                )
        if "uplink" in options and self.uplink is None:
            try:
                self.uplink = Uplink(self.native, options["uplink"])
            except GoneError as error:
                raise PeerError(f"{self._name}: uplink: {error}") from error
            except NetbackError as error:
                raise type(error)(f"{self._name}: uplink: {error}") from error
        self._options |= options
        if "ageing" in options:
            self.native.set_ageing(options["ageing"])
        self.users += 1

    def leave(self, *, remove: bool) -> None:
        """One vif fewer: with the last one the uplink ends."""
        self.users -= 1
        if not self.users and self.uplink is not None:
            self.uplink.end(remove=remove)


_lock = threading.Lock()
"""Networks are opened in threads."""
_by_name: WeakValueDictionary[str, Segment] = WeakValueDictionary()
"""The segments of this process, each for as long as it has ports."""


def _join(name: str, kind: Kind, options: Mapping[str, Any]) -> Segment:
    """The segment of this name, made now if need be, with one vif more; `_lock` is held."""
    segment = _by_name.get(name)
    if segment is None or not segment.users:
        segment = _by_name[name] = Segment(name, kind)
    segment.join(options)
    return segment


class SwitchNetwork(Linkless):
    """One vif's port. It passes frames while its carrier is on.

    `options`: `ageing` in seconds (a switch only), `uplink` as KIND:LINK. ConfigError: other ones are in force.
    PeerError: it has no more ports, or its uplink cannot be opened.
    """

    def __init__(self, name: str, *, kind: Kind = "switch", **options: Any) -> None:
        self._segment_name = f"{kind}:{name}"
        with _lock:
            try:
                self._segment = _join(self._segment_name, kind, options)
            except OSError as error:
                raise PeerError(f"{self._segment_name}: {error.strerror}") from error
            self._left = False
            try:
                self._port = Port(self._segment.native)
            except (OSError, ValueError) as error:
                self._segment.leave(remove=False)
                raise PeerError(f"{self._segment_name}: {getattr(error, 'strerror', error)}") from error

    # ---- what it is

    @property
    def name(self) -> str:
        """The segment and the number of the port."""
        return f"{self._segment_name}/{self._port.number}"

    @property
    def path(self) -> str | None:
        """How many ports there are, and which addresses were learned at this one."""
        if self._left:
            return None
        ports, uplink = self._segment.native.ports, self._segment.uplink
        words = f"one of {ports} ports"
        if uplink is not None:
            words += f", the uplink {uplink.spec} is port {uplink.number}"
            words += f" ({uplink.lost} frames lost)" if uplink.lost else ""
        own = sorted(self._segment.native.addresses(self._port.number))
        shown = " ".join(address.hex(":") for address in own[:SHOWN_ADDRESSES])
        more = f" and {len(own) - SHOWN_ADDRESSES} more" if len(own) > SHOWN_ADDRESSES else ""
        return f"{words}; {shown}{more}" if own else words

    @property
    def peers(self) -> tuple[Peer, ...]:
        return self._port.peers

    @property
    def mtu(self) -> int | None:
        """The uplink's."""
        uplink = self._segment.uplink
        return uplink.network.mtu if uplink is not None and not self._left else None

    @property
    def follows(self) -> frozenset[int | str]:
        """The uplink's."""
        uplink = self._segment.uplink
        return uplink.network.follows if uplink is not None and not self._left else frozenset()

    # ---- for control code

    def set_queues(self, count: int) -> None:
        """Frames for the guest are spread over so many lanes by flow."""
        try:
            self._port.set_lanes(count)
        except OSError as error:
            raise PeerError(
                f"{self.name}: {count} queues: {os.strerror(error.errno or errno.EIO)}"
            ) from error

    def check(self) -> bool:
        """The uplink's errors; its thread reads its descriptor again by itself."""
        with _lock:
            if self._left or self._segment.uplink is None:
                return False
            try:
                self._segment.uplink.check()
            except NetbackError as error:
                raise type(error)(f"{self._segment_name}: uplink: {error}") from error
        return False

    def offloads(self, caps: int) -> None:
        """Does nothing: the data plane completes and segments what this guest cannot accept."""

    def carrier(self, on: bool) -> None:
        """Let frames to this port, or let none: its addresses are then forgotten."""
        self._port.open(on)

    def drain(self) -> int:
        return self._port.drain()

    def drops(self) -> dict[str, int]:
        """Frames that came while the port was full."""
        return {"rx_overflow": self._port.lost}

    def queued(self) -> dict[str, int]:
        used, bound = self._port.queued
        return {"bytes": used, "bytes_max": bound}

    def close(self) -> None:
        self._leave(remove=False)

    def remove(self) -> None:
        """Close; with the last vif's port the uplink is removed, if netback made it."""
        self._leave(remove=True)

    def _leave(self, *, remove: bool) -> None:
        with _lock:
            if not self._left:
                self._left = True
                self._port.close()
                self._segment.leave(remove=remove)
