# SPDX-License-Identifier: Apache-2.0
"""The ports of this process in one Open vSwitch: kept in its database over one connection for all vifs.

A thread has a replica of the bridges, ports and interfaces (the columns of MONITORED). What a port lacks there is one
transaction: the port is added, moved from another bridge where an earlier netback put it, or changed. A port that was
deleted, or that a new database does not have, is added again. What others change on a port that is in place stays.

vswitchd.conf.db(5) describes tables and columns. netback's own ports have its mark in the external_ids of the Port.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from netback.errors import PeerError, printable
from netback.net.connected import Connected, Interrupted
from netback.net.endpoints import HostPort, UnixPath
from netback.net.ovsdb import (
    Message,
    Session,
    as_map,
    as_set,
    numbers,
    pairs,
    references,
    refusal,
    texts,
)

SCHEMA = "Open_vSwitch"
MARK = "netback"
"""The key of the external_ids of a Port that netback made; its value is the port's name."""
USERSPACE = "netdev"
"""The datapath_type of a bridge whose ports are read and written by packet sockets; all others are the kernel's."""
MONITORED = {
    "Port": ("name", "tag", "trunks", "vlan_mode", "external_ids"),
    "Interface": ("name", "type", "external_ids", "ofport", "error"),
    "Bridge": ("name", "datapath_type", "ports"),
}
"""Tables and columns, in the order in which changes of one message are taken: a bridge's ports are known by then."""
MAX_ROWS = 100_000
AGAIN_SECONDS = 1.0
"""Between two attempts at a port that the database refused."""
NOT_TAKEN = "Open vSwitch has not taken the port yet: does ovs-vswitchd run?"

Ids = Mapping[str, str]
Operation = dict[str, object]


# ---- rows


@dataclass(frozen=True, slots=True)
class Vlan:
    """How a port takes part in VLANs: vswitchd.conf.db(5), Port."""

    tag: tuple[int, ...] = ()
    trunks: frozenset[int] = frozenset()
    mode: tuple[str, ...] = ()

    @classmethod
    def of(cls, tag: int | None, trunks: tuple[int, ...]) -> Self:
        """With a tag the guest's frames belong to it, with trunks the guest tags its frames itself; with both, its
        untagged frames belong to `tag`. Open vSwitch ignores trunks beside a tag unless the mode says so.
        """
        both = tag is not None and bool(trunks)
        return cls(() if tag is None else (tag,), frozenset(trunks), ("native-untagged",) if both else ())

    @property
    def columns(self) -> Operation:
        """As a row has it."""
        return {
            "tag": as_set(self.tag),
            "trunks": as_set(sorted(self.trunks)),
            "vlan_mode": as_set(self.mode),
        }


@dataclass(frozen=True, slots=True)
class BridgeRow:
    """A bridge of the switch."""

    name: str
    userspace: bool
    ports: frozenset[str]

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> Self:
        """ValueError, KeyError: a column is none."""
        return cls(str(row["name"]), texts(row["datapath_type"]) == [USERSPACE], references(row["ports"]))


@dataclass(frozen=True, slots=True)
class PortRow:
    """A port of a bridge."""

    name: str
    vlan: Vlan
    made: bool
    """By netback."""

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> Self:
        """ValueError, KeyError: a column is none."""
        vlan = Vlan(
            tuple(numbers(row["tag"])), frozenset(numbers(row["trunks"])), tuple(texts(row["vlan_mode"]))
        )
        return cls(str(row["name"]), vlan, MARK in pairs(row["external_ids"]))


@dataclass(frozen=True, slots=True)
class InterfaceRow:
    """The link of a port."""

    name: str
    type: str
    ids: Ids
    taken: bool
    """Whether ovs-vswitchd has it in the datapath."""
    error: str
    """Why not."""

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> Self:
        """ValueError, KeyError: a column is none."""
        return cls(
            str(row["name"]),
            str(row["type"]),
            pairs(row["external_ids"]),
            any(number > 0 for number in numbers(row["ofport"])),
            ": ".join(texts(row["error"])),
        )


_ROWS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "Port": PortRow.parse,
    "Interface": InterfaceRow.parse,
    "Bridge": BridgeRow.parse,
}


class Replica:
    """The rows that the server has told, by table and reference."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Any]] = {table: {} for table in MONITORED}
        self._names: dict[str, dict[str, str]] = {table: {} for table in MONITORED}

    def update(self, tables: Any) -> set[str] | None:
        """Take a change (RFC 7047, 4.1.6); returns the names of the ports that it may concern, None for all.

        PeerError: it is none.
        """
        concerned: set[str] = set()
        everything = False
        try:
            for table in MONITORED:
                for key, change in tables.get(table, {}).items():
                    old = self._rows[table].get(key)
                    new = _ROWS[table](change["new"]) if "new" in change else None
                    self._put(table, key, old, new)
                    if table != "Bridge":
                        concerned |= {row.name for row in (old, new) if row is not None}
                    elif old and new and (old.name, old.userspace) == (new.name, new.userspace):
                        ports = [self._rows["Port"].get(port) for port in old.ports ^ new.ports]
                        concerned |= {row.name for row in ports if row is not None}
                    else:
                        everything = True
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise PeerError("it sends a change of rows that is none") from error
        if sum(map(len, self._rows.values())) > MAX_ROWS:
            raise PeerError(f"it has more than {MAX_ROWS} ports")
        return None if everything else concerned

    def _put(self, table: str, key: str, old: Any, new: Any) -> None:
        names = self._names[table]
        if old is not None and names.get(old.name) == key:
            del names[old.name]
        if new is None:
            self._rows[table].pop(key, None)
        else:
            self._rows[table][key] = new
            names[new.name] = key

    def key(self, table: str, name: str) -> str | None:
        """The reference of the row with this name."""
        return self._names[table].get(name)

    def row(self, table: str, name: str) -> Any:
        """The row with this name, None if there is none."""
        key = self.key(table, name)
        return None if key is None else self._rows[table][key]

    def home(self, port: str) -> BridgeRow | None:
        """The bridge of a port, by the port's reference."""
        return next((bridge for bridge in self._rows["Bridge"].values() if port in bridge.ports), None)


# ---- ports


@dataclass(frozen=True, slots=True)
class Port:
    """A port as netback wants it."""

    name: str
    """Of its link, too."""
    bridge: str
    vlan: Vlan
    ids: Ids
    """external_ids of its Interface; other keys are left alone."""


def _row(key: str) -> list[object]:
    return [["_uuid", "==", ["uuid", key]]]


def _mutate(table: str, key: str, *mutations: list[object]) -> Operation:
    return {"op": "mutate", "table": table, "where": _row(key), "mutations": list(mutations)}


def adding(port: Port, bridge: str) -> list[Operation]:
    """Add a port to the bridge of this reference."""
    interface = {"name": port.name, "external_ids": as_map(dict(port.ids))}
    row = {
        "name": port.name,
        "interfaces": ["named-uuid", "interface"],
        "external_ids": as_map({MARK: port.name}),
        **port.vlan.columns,
    }
    return [
        {"op": "insert", "table": "Interface", "row": interface, "uuid-name": "interface"},
        {"op": "insert", "table": "Port", "row": row, "uuid-name": "port"},
        _mutate("Bridge", bridge, ["ports", "insert", as_set([["named-uuid", "port"]])]),
    ]


def deleting(port: str, bridge: str) -> list[Operation]:
    """Take a port from a bridge, both by reference; the database drops rows that no other refers to."""
    return [_mutate("Bridge", bridge, ["ports", "delete", as_set([["uuid", port]])])]


def changing(port: Port, key: str, interface: str) -> list[Operation]:
    """Give a port, and its interface, what netback wants of them."""
    ids = dict(port.ids)
    return [
        {"op": "update", "table": "Port", "where": _row(key), "row": port.vlan.columns},
        _mutate(
            "Interface",
            interface,
            ["external_ids", "delete", as_set(list(ids))],
            ["external_ids", "insert", as_map(ids)],
        ),
    ]


@dataclass(eq=False, slots=True)
class Place:
    """A port and how it stands. The switch's thread changes it; others read it."""

    port: Port
    changed: Callable[[], object]
    """Called in the switch's thread when a field below has another value."""
    fault: str
    """Why frames do not pass, or why that is not known; empty while they do."""
    taken: bool | None = None
    """Whether the switch had the port when its database answered last; None: it never did."""
    userspace: bool | None = None
    """Whether its bridge has the userspace datapath; None: not known."""
    settled: threading.Event = field(default_factory=threading.Event)
    """Set once `fault` is a verdict."""
    applied: bool = False
    """Whether it was as wanted once: from then on what others change stays."""
    busy: bool = False
    """Whether a transaction of it is not answered yet."""
    due: float = 0.0
    """The time before which no transaction is tried for it again."""
    leaving: bool = False
    """Whether it is to be deleted."""
    gone: bool = False
    """Whether it is; `settled` is set then, too."""

    def note(self, fault: str, taken: bool | None, userspace: bool | None) -> None:
        """Keep how it stands, and report a change."""
        before = (self.fault, self.taken, self.userspace)
        self.fault, self.taken, self.userspace = fault, taken, userspace
        if before != (fault, taken, userspace):
            self.changed()
        if fault != NOT_TAKEN:
            self.settled.set()


class Switch(Connected):
    """One database, by the address of its server, made by `share`."""

    def __init__(self, where: UnixPath | HostPort) -> None:
        text = f"unix:{where.path}" if isinstance(where, UnixPath) else f"tcp:{where.host}:{where.port}"
        super().__init__(f"OVSDB {printable(text)}")
        self.where = where
        self.users = 0
        self._silent_since = time.monotonic()
        """While the database does not answer: since when."""
        self._places: dict[str, Place] = {}
        self._news: set[str] = set()
        """The ports to look at."""
        self._later: set[str] = set()
        """The ports to look at when they are due."""
        self._asked: dict[int, Place] = {}
        """The port of each transaction that is not answered."""
        self._replica = Replica()
        self._start(where, seconds=None)

    # ---- for networks

    def join(self, port: Port, changed: Callable[[], object], *, leaving: bool = False) -> Place:
        """Keep this port in the database from now on; `leaving`: only find it there, to be deleted by `leave`.
        PeerError: another vif of this process has its name.
        """
        with self._lock:
            earlier = self._places.get(port.name)
            if earlier is not None and not earlier.leaving:
                raise PeerError(f"another vif has the port {port.name}; choose another name")
            fault = NOT_TAKEN if self._connected else f"{self.name}: it has not answered yet"
            place = self._places[port.name] = Place(port, changed, fault, leaving=leaving)
            self._look_at(port.name)
        return place

    def await_verdict(self, place: Place, seconds: float) -> None:
        """Wait so long for a verdict on the port. While the database does not answer, the time counts from when it did
        last: otherwise many vifs, which open in few threads, would wait one after the other.
        """
        now = time.monotonic()
        since = now if self._connected else self._silent_since
        place.settled.wait(max(0.0, since + seconds - now))

    def leave(self, place: Place, *, remove: bool, seconds: float = 0.0) -> bool:
        """Keep this port no longer; with `remove`, delete it if netback made it, and wait for that so long. Returns
        whether that is done.
        """
        name = place.port.name
        with self._lock:
            if self._places.get(name) is not place:
                return True
            if remove:
                place.leaving, place.due = True, 0.0
                place.settled.clear()
                self._look_at(name)
        if remove:
            self.await_verdict(place, seconds)
        with self._lock:
            if self._places.get(name) is place:
                del self._places[name]
        return not remove or place.gone

    def _look_at(self, name: str) -> None:
        self._news.add(name)
        os.eventfd_write(self._alarm, 1)

    # ---- in its own thread

    def _serve(self, connection: socket.socket) -> None:
        """Follow the database, and keep the ports in it, until the connection ends."""
        session = Session(connection, self._alarm)
        tables = {table: {"columns": columns} for table, columns in MONITORED.items()}
        monitor = session.ask("monitor", [SCHEMA, None, tables])
        self._replica = Replica()
        while True:
            try:
                messages = session.exchange(self._pause())
            except Interrupted:  # a port was joined or given up, if it is not the end
                if self._closing:
                    raise
                messages = []
            with self._lock:
                for message in messages:
                    if message.method is not None:
                        self._update(message)
                    elif message.id == monitor:
                        self._monitored(message)
                    else:
                        self._answered(self._asked.pop(message.id), refusal(message))
                if self._connected:
                    self._look_around(session)

    def _pause(self) -> float | None:
        """Seconds until a port is due; None if none waits for that."""
        with self._lock:
            due = min((self._places[name].due for name in self._later & self._places.keys()), default=None)
        return None if due is None or not self._connected else max(0.0, due - time.monotonic())

    def _monitored(self, message: Message) -> None:
        if fault := refusal(message):
            raise PeerError(f"it refuses to tell of {SCHEMA}: {fault}")
        self._replica.update(message.result)
        self._news |= self._places.keys()
        self._joined()

    def _update(self, message: Message) -> None:
        if message.method != "update":
            return
        if not self._connected or len(message.params) != 2:
            raise PeerError("it sends a change of rows that nobody asked for")
        names = self._replica.update(message.params[1])
        self._news |= self._places.keys() if names is None else names

    def _answered(self, place: Place, fault: str | None) -> None:
        """A transaction of this port is done; what it still lacks is tried again when it is due."""
        place.busy = False
        if fault:
            place.note(f"its database refuses the port: {fault}", place.taken, place.userspace)
            self._later.add(place.port.name)
        else:
            self._news.add(place.port.name)

    def _look_around(self, session: Session) -> None:
        """Look at every port that has news or is due. `_lock` is held."""
        now = time.monotonic()
        late = {name for name in self._later if name in self._places and self._places[name].due <= now}
        names = (self._news | late) & self._places.keys()
        self._later &= self._places.keys() - late
        self._news = set()
        for place in map(self._places.__getitem__, names):
            if place.busy:
                continue
            operations = self._removal(place) if place.leaving else self._lacks(place)
            if operations and now < place.due:
                self._later.add(place.port.name)
            elif operations:
                place.busy, place.due = True, now + AGAIN_SECONDS
                comment = {"op": "comment", "comment": f"netback: port {place.port.name}"}
                self._asked[session.ask("transact", [SCHEMA, comment, *operations])] = place

    def _removal(self, place: Place) -> list[Operation]:
        """How the port is deleted; nothing if it is not there, or not netback's."""
        name, replica = place.port.name, self._replica
        key, row = replica.key("Port", name), replica.row("Port", name)
        home = replica.home(key) if key else None
        bridge = replica.key("Bridge", home.name) if home else None
        if key and bridge and row.made:
            return deleting(key, bridge)
        place.gone = True
        place.settled.set()
        return []

    def _lacks(self, place: Place) -> list[Operation]:
        """What makes the port as it is wanted; nothing if it is, or cannot be."""
        port, replica = place.port, self._replica
        bridge = replica.row("Bridge", port.bridge)
        if bridge is None:
            place.note(f"there is no bridge {port.bridge}; the port is added once it exists", False, None)
            return []
        there = replica.key("Bridge", port.bridge) or ""
        key, row, interface = (
            replica.key("Port", port.name),
            replica.row("Port", port.name),
            replica.row("Interface", port.name),
        )
        home = replica.home(key) if key else None
        if key is None or home is None:
            place.applied = False
            place.note(NOT_TAKEN, False, bridge.userspace)
            return adding(port, there)
        if home.name != port.bridge and row.made:
            return deleting(key, replica.key("Bridge", home.name) or "") + adding(port, there)
        hand = (
            f"remove it there (ovs-vsctl del-port {printable(home.name)} {port.name}) or choose another name"
        )
        if home.name != port.bridge:
            place.note(
                f"bridge {printable(home.name)} has a port of this name; {hand}", False, home.userspace
            )
        elif interface is None or interface.type not in ("", "system"):
            place.note(f"the port is of another kind; {hand}", False, home.userspace)
        elif not place.applied and not (row.vlan == port.vlan and port.ids.items() <= interface.ids.items()):
            return changing(port, key, replica.key("Interface", port.name) or "")
        else:
            place.applied = True
            fault = f"Open vSwitch: {printable(interface.error)[:120]}" if interface.error else ""
            place.note(
                fault or ("" if interface.taken else NOT_TAKEN), not fault and interface.taken, home.userspace
            )
        return []

    def _leave(self) -> None:
        self._asked.clear()
        self._later.clear()  # the next connection looks at all
        for place in self._places.values():
            place.busy = False

    def _lose(self, error: Exception | None) -> None:
        if self._connected:
            self._silent_since = time.monotonic()
        super()._lose(error)
        if error is None:  # the thread was woken, or ends
            return
        with self._lock:
            for place in (place for place in self._places.values() if not place.leaving):
                state = "frames pass as before" if place.taken else "the port is not there yet"
                place.note(f"{self.name}: {self._fault}; {state}", place.taken, place.userspace)


_switches: dict[UnixPath | HostPort, Switch] = {}
_sharing = threading.Lock()


def share(where: UnixPath | HostPort) -> Switch:
    """The switch of this address, of which a process has one. The caller gives it back."""
    with _sharing:
        switch = _switches.get(where) or _switches.setdefault(where, Switch(where))
        switch.users += 1
    return switch


def give_back(switch: Switch) -> None:
    """Close it after its last user."""
    with _sharing:
        switch.users -= 1
        if switch.users:
            return
        del _switches[switch.where]
    switch.close()
