# SPDX-License-Identifier: Apache-2.0
"""A port of Open vSwitch: the real one in the test's own namespace, and databases that are slow, vanish or lie."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from netback.dataplane.caps import EVERYTHING
from netback.errors import ConfigError, PeerError
from netback.net import connected, ovs, ovs_switch, ovsdb
from netback.net.base import Owner
from netback.net.endpoints import HostPort, UnixPath
from netback.net.ovs import OvsNetwork
from netback.net.rtnetlink import get_link
from netback.net.spec import open_network, parse_spec, remove_earlier
from netback.net.tap import TapNetwork

from .contract import FrameNetwork, Site
from .far import FarLink
from .namespace import await_up, ip, new_network, veth
from .openvswitch import OpenVSwitch
from .ovsdb_peer import BRIDGE, OvsdbPeer, Row, answer

MAC = "00:16:3e:00:00:01"
FACTS = {"uuid": "d0", "name": "web", "devid": "0", "domid": "3", "mac": MAC}
SECONDS = 20


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with new_network():
        yield
        assert not ovs_switch._switches
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("OVSDB")]


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ovs_switch, "AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(connected, "PAUSES", (0.05,))


class Bell:
    """The device of a network: it is woken when something has changed."""

    def __init__(self, facts: dict[str, str]) -> None:
        self._rang = threading.Event()
        self.owner = Owner(facts, self._rang.set)

    def until(self, true: Callable[[], bool], words: str) -> None:
        """Wait until it is true, looking at once and at each wake-up."""
        while not true():
            assert self._rang.wait(SECONDS), words
            self._rang.clear()


@pytest.fixture
def bell() -> Bell:
    return Bell(FACTS)


@pytest.fixture
def switch(tmp_path: Path) -> Iterator[OpenVSwitch]:
    with OpenVSwitch(tmp_path / "ovs") as switch:
        switch.add_bridge("br0")
        yield switch


def make(
    place: OpenVSwitch | OvsdbPeer, options: str = "", bell: Bell | None = None, bridge: str = "br0"
) -> OvsNetwork:
    """The network of the vif vif1.0."""
    path = place.socket if isinstance(place, OpenVSwitch) else place.path
    owner = bell.owner if bell else Owner(FACTS)
    network = open_network(parse_spec(f"ovs:{bridge},db=unix:{path}{options}"), name="vif1.0", owner=owner)
    assert isinstance(network, OvsNetwork)
    return network


def fault(network: OvsNetwork) -> str:
    """What `check` says; empty for nothing."""
    try:
        network.check()
    except PeerError as error:
        return str(error)
    return ""


def await_fault(network: OvsNetwork, bell: Bell, words: str) -> str:
    """Wait until `check` says this, or nothing if `words` are empty."""
    bell.until(lambda: words in (said := fault(network)) and bool(said) is bool(words), words or "no fault")
    return fault(network)


# ---- the real one


@pytest.fixture
def site(switch: OpenVSwitch) -> Iterator[Site]:
    """Its far side is a cable, which is another port."""
    veth("eth0", "eth1")
    switch.vsctl("add-port br0 eth0")
    network = make(switch)
    network.carrier(True)
    await_up("vif1.0")
    far = FarLink("eth1")
    yield Site(network, far)
    network.remove()
    far.close()


class TestOvs(FrameNetwork):
    """Frames pass Open vSwitch's userspace datapath, which reads the tap without a header."""


def test_what_the_switch_is_told(switch: OpenVSwitch, bell: Bell) -> None:
    network = make(switch, ",tag=10,trunks=20+30,iface-id={name}-{devid}", bell)
    get = switch.vsctl
    assert get("get Port vif1.0 tag trunks vlan_mode").split("\n") == ["10", "[20, 30]", "native-untagged"]
    ids = "iface-id attached-mac xen-vm-uuid xen-vm-name vm-id iface-status"
    assert [get(f"get Interface vif1.0 external_ids:{key}") for key in ids.split()] == [
        "web-0",
        f'"{MAC}"',
        "d0",
        "web",
        "d0",
        "active",
    ]
    assert network.up
    assert network.bridge is not None
    assert (network.bridge.name, network.bridge.mtu) == ("br0", None)
    assert network.path == "completed and segmented by netback: br0 has the userspace datapath"
    assert [peer.caps for peer in network.peers] == [0]
    network.remove()
    assert "vif1.0" not in switch.ports()
    assert get_link("vif1.0") is None


@pytest.mark.parametrize(
    ("options", "vlan"),
    [
        ("", ["[]", "[]", "[]"]),
        (",tag=0", ["0", "[]", "[]"]),
        (",trunks=4095", ["[]", "[4095]", "[]"]),
    ],
)
def test_vlans(switch: OpenVSwitch, options: str, vlan: list[str]) -> None:
    network = make(switch, options)
    assert switch.vsctl("get Port vif1.0 tag trunks vlan_mode").split("\n") == vlan
    network.remove()


def test_the_next_process_has_the_same_port(switch: OpenVSwitch) -> None:
    """It gives the port what its spec says now, and leaves what others have added."""
    make(switch, ",tag=5").close()
    before = switch.vsctl("get Port vif1.0 _uuid")
    switch.vsctl("set Interface vif1.0 external_ids:ovn-installed=true external_ids:iface-id=old")
    network = make(switch, ",tag=6")
    assert switch.vsctl("get Port vif1.0 _uuid tag").split("\n") == [before, "6"]
    assert switch.vsctl("get Interface vif1.0 external_ids:ovn-installed") == '"true"'
    assert switch.vsctl("get Interface vif1.0 external_ids:iface-id") == "d0-0"
    network.remove()
    assert "vif1.0" not in switch.ports()


def test_descriptors_of_a_store(switch: OpenVSwitch) -> None:
    """The tap of an earlier process is used by its stored descriptor, with the same port."""
    network = make(switch)
    before = switch.vsctl("get Port vif1.0 _uuid")
    held = os.dup(network.peers[0].fd)
    network.close()
    spec = parse_spec(f"ovs:br0,db=unix:{switch.socket}")
    network = open_network(spec, name="vif1.0", held=(held,))  # type: ignore[assignment]
    assert network.peers[0].fd == held
    assert switch.vsctl("get Port vif1.0 _uuid") == before
    network.remove()
    assert switch.ports() == []
    assert get_link("vif1.0") is None


def test_what_others_change_stays(switch: OpenVSwitch, bell: Bell) -> None:
    network = make(switch, ",tag=5", bell)
    switch.vsctl("set Port vif1.0 tag=7")
    switch.vsctl("set Interface vif1.0 external_ids:iface-id=other")
    switch.vsctl("set bridge br0 other_config:x=y")
    assert fault(network) == ""
    assert switch.vsctl("get Port vif1.0 tag") == "7"
    network.remove()


def test_a_port_and_a_bridge_that_are_deleted(switch: OpenVSwitch, bell: Bell) -> None:
    network = make(switch, "", bell)
    for _ in range(2):
        switch.vsctl("del-port br0 vif1.0")
        bell.until(lambda: "vif1.0" in switch.ports(), "the port is back")
        await_fault(network, bell, "")
    switch.vsctl("del-br br0")
    words = "ovs:br0: there is no bridge br0; the port is added once it exists"
    assert await_fault(network, bell, words) == words
    assert not network.up
    assert network.bridge is None
    switch.add_bridge("br0")
    await_fault(network, bell, "")
    assert network.up
    network.remove()


def test_a_tap_that_is_removed(switch: OpenVSwitch, bell: Bell) -> None:
    network = make(switch, "", bell)
    ip("link del vif1.0")
    assert network.check()
    bell.until(lambda: fault(network) == "", "it is a port again")
    assert "UP" in ip("link show vif1.0")
    network.remove()


def test_a_database_that_is_lost(switch: OpenVSwitch, bell: Bell) -> None:
    """An empty one follows."""
    network = make(switch, ",tag=9", bell)
    switch.kill_database()
    said = await_fault(network, bell, "frames pass as before")
    assert said.startswith(f"ovs:br0: OVSDB unix:{switch.socket}: ")
    assert network.up
    switch.start_database()
    switch.vsctl("--no-wait init")
    switch.add_bridge("br0")
    await_fault(network, bell, "")
    assert switch.vsctl("get Port vif1.0 tag") == "9"
    network.remove()


def test_a_port_of_another_bridge(switch: OpenVSwitch) -> None:
    """Of another's making it is an error; where netback put it before, it is moved."""
    switch.add_bridge("br1")
    ip("tuntap add vif1.0 mode tap")
    switch.vsctl("add-port br1 vif1.0")
    ip("link del vif1.0")
    words = (
        r"ovs:br0: bridge br1 has a port of this name; "
        r"remove it there \(ovs-vsctl del-port br1 vif1.0\) or choose another name"
    )
    with pytest.raises(PeerError, match=words):
        make(switch)
    assert get_link("vif1.0") is None
    assert switch.ports("br1") == ["vif1.0"]
    switch.vsctl("del-port br1 vif1.0")
    make(switch, "", bridge="br1").close()
    assert switch.ports("br1") == ["vif1.0"]
    network = make(switch)
    assert (switch.ports("br0"), switch.ports("br1")) == (["vif1.0"], [])
    network.remove()


def test_a_port_that_was_there_stays(switch: OpenVSwitch) -> None:
    ip("tuntap add vif1.0 mode tap")
    switch.vsctl("add-port br0 vif1.0")
    network = make(switch, ",tag=3")
    assert switch.vsctl("get Port vif1.0 tag") == "3"
    network.remove()
    assert switch.ports() == ["vif1.0"]
    assert get_link("vif1.0") is not None


def test_a_port_of_another_kind(switch: OpenVSwitch) -> None:
    switch.vsctl("add-port br0 vif1.0 -- set Interface vif1.0 type=patch options:peer=x")
    with pytest.raises(PeerError, match="ovs:br0: the port is of another kind; remove it there"):
        make(switch)


def test_no_vswitchd(tmp_path: Path, bell: Bell, monkeypatch: pytest.MonkeyPatch) -> None:
    """The port is in the database; nothing serves it, until vswitchd runs."""
    monkeypatch.setattr(ovs, "OPEN_SECONDS", 0.3)
    with OpenVSwitch(tmp_path / "ovs", alone=True) as switch:
        switch.vsctl("--no-wait add-br br0 -- set bridge br0 datapath_type=netdev")
        with pytest.raises(
            PeerError, match=r"ovs:br0: Open vSwitch has not taken the port yet: does ovs-vswitchd run\?"
        ):
            make(switch)
        assert switch.vsctl("--no-wait list-ports br0") == ""
        TapNetwork("vif1.0").close()
        network = make(switch, "", bell)
        switch.start_vswitchd()
        await_fault(network, bell, "")
        network.remove()


def test_what_an_earlier_process_made_is_removed(switch: OpenVSwitch) -> None:
    make(switch).close()
    spec = parse_spec(f"ovs:br0,db=unix:{switch.socket}")
    for _ in range(2):
        remove_earlier(spec, "vif1.0")
        assert switch.ports() == []
        assert get_link("vif1.0") is None


def test_ports_share_a_connection(switch: OpenVSwitch) -> None:
    spec = parse_spec(f"ovs:br0,db=unix:{switch.socket}")
    networks = [open_network(spec, name=f"vif{n}.0") for n in range(20)]
    assert len([thread for thread in threading.enumerate() if thread.name.startswith("OVSDB")]) == 1
    assert sorted(switch.ports()) == sorted(f"vif{n}.0" for n in range(20))
    with pytest.raises(PeerError, match="EBUSY"):
        open_network(spec, name="vif3.0")
    for network in networks:
        network.remove()
    assert switch.ports() == []


# ---- specs


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("ovs", "it names no bridge: write for example 'ovs:br-int'"),
        ("ovs:", "it names no bridge"),
        ("ovs:a/b", "'a/b' cannot be the name of a bridge"),
        ("ovs:br0,tag=4096", "tag='4096' is not a number from 0 to 4095"),
        ("ovs:br0,tag=", "option tag needs a value"),
        ("ovs:br0,trunks=1+", r"trunks='1\+' is not VLANs joined by \+, as in 10\+20"),
        ("ovs:br0,trunks=1-3", "trunks='1-3' is not VLANs"),
        (
            "ovs:br0,iface-id={uid}",
            r"iface-id='\{uid\}' is not the port's name in OVN: it has \{uid\}, and not one of",
        ),
        ("ovs:br0,iface-id={uuid", "a brace is alone"),
        ("ovs:br0,iface-id=" + "x" * 256, "it has more than 255 characters"),
        ("ovs:br0,db=/run/db.sock", "it begins with neither unix: nor tcp:"),
        ("ovs:br0,db=unix:db.sock", "the socket's path 'db.sock' does not begin with /"),
        ("ovs:br0,db=tcp:localhost:6640", "'localhost' is not an IPv4 address in numbers"),
        ("ovs:br0,db=tcp:127.0.0.1", "is not ADDRESS:PORT"),
        ("ovs:br0,vhost=on", "ovs has no option 'vhost'"),
    ],
)
def test_specs_that_are_wrong(spec: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_spec(spec)


def test_databases() -> None:
    assert ovs.read_database("unix:/run/db.sock") == UnixPath("/run/db.sock")
    assert ovs.read_database("tcp:[::1]:6640") == HostPort("::1", 6640)


@pytest.mark.parametrize(
    ("template", "facts", "ids"),
    [
        (None, {}, {}),
        (None, {"name": "web", "devid": "0"}, {"xen-vm-name": "web"}),
        ("port7", {}, {"iface-id": "port7", "iface-status": "active"}),
        ("{domid}.{devid}/{mac}", FACTS, {"iface-id": f"3.0/{MAC}", "iface-status": "active"}),
        (None, {"name": "a\x1bb" + "x" * 300}, {"xen-vm-name": (r"a\x1bb" + "x" * 300)[:255]}),
    ],
)
def test_external_ids(template: str | None, facts: dict[str, str], ids: dict[str, str]) -> None:
    assert ids.items() <= ovs.external_ids(template, facts).items()
    if template is None:
        assert "iface-id" not in ovs.external_ids(template, facts)


def test_a_fact_that_is_not_known(tmp_path: Path) -> None:
    spec = parse_spec(f"ovs:br0,iface-id={{name}},db=unix:{tmp_path}/none")
    with pytest.raises(
        ConfigError, match=r"ovs:br0: iface-id=\{name\} needs the guest's name, which is not known"
    ):
        open_network(spec, name="vif1.0")
    assert get_link("vif1.0") is None


# ---- databases that are not there, slow or lie


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ovsdb, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(ovsdb, "PROBE_SECONDS", 0.3)


def lying(method: str, text: bytes | Callable[[Row], bytes]) -> Callable[[Row], bytes | None]:
    """A lie in answer to this method."""
    return lambda request: (
        (text if isinstance(text, bytes) else text(request)) if request.get("method") == method else None
    )


def change(row: object, table: str = "Port") -> Callable[[Row], bytes]:
    """The first contents have this row."""
    return lambda request: answer(request, {table: {"r": {"new": row}}})


NO_ROW = "it sends a change of rows that is none"
NO_RPC = "it sends what is no JSON-RPC"
LIES = {
    "silent": ("monitor", b"", "it does not answer 'monitor'"),
    "garbage": ("monitor", b"\xff\xfe garbage", NO_RPC),
    "deep": ("monitor", b"{" + b'"a":{' * 100, NO_RPC),
    "deep list": ("monitor", b'{"id":1,"result":' + b"[" * 50_000 + b"]" * 50_000 + b"}", NO_RPC),
    "half": ("monitor", b'{"id":1,"result"', "it does not answer 'monitor'"),
    "no such schema": (
        "monitor",
        lambda r: json.dumps({"id": r["id"], "result": None, "error": "unknown database"}).encode(),
        "it refuses to tell of Open_vSwitch: unknown database",
    ),
    "another id": ("monitor", lambda r: answer({"id": 77}, {}), "it does not answer 'monitor'"),
    "a list": ("monitor", lambda r: answer(r, []), NO_ROW),
    "a number": ("monitor", lambda r: answer(r, {"Port": 5}), NO_ROW),
    "no columns": ("monitor", change({}), NO_ROW),
    "wrong columns": (
        "monitor",
        change({"name": "x", "tag": "x", "trunks": {}, "vlan_mode": 1, "external_ids": 2}),
        NO_ROW,
    ),
    "wrong bridge": (
        "monitor",
        change({"name": "br0", "datapath_type": "", "ports": [[]]}, "Bridge"),
        NO_ROW,
    ),
    "an update first": (
        "monitor",
        b'{"id":null,"method":"update","params":[null,{}]}',
        "it sends a change of rows that nobody asked for",
    ),
    "refused": (
        "transact",
        lambda r: answer(r, [{}, {"error": "constraint violation", "details": "no\x1b"}]),
        r"its database refuses the port: constraint violation: no\x1b",
    ),
    "says yes and does nothing": (
        "transact",
        lambda r: answer(r, [{}, {}, {}]),
        "Open vSwitch has not taken the port yet",
    ),
    "transaction unanswered": ("transact", b" ", "it does not answer 'transact'"),
}


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_database_that_lies(
    lie: tuple[str, bytes | Callable[[Row], bytes], str],
    tmp_path: Path,
    bell: Bell,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One error, and nothing is left. A tap that was there goes on, and all is well once the database is honest."""
    monkeypatch.setattr(ovs, "OPEN_SECONDS", 1.0)
    method, text, words = lie
    with OvsdbPeer(tmp_path / "db", lying(method, text)) as peer:
        with pytest.raises(PeerError) as error:
            make(peer)
        assert words in str(error.value)
        assert "\n" not in str(error.value)
        assert get_link("vif1.0") is None
        TapNetwork("vif1.0").close()
        network = make(peer, "", bell)
        assert words in await_fault(network, bell, words)
        peer.lie = lambda request: None
        peer.drop()
        await_fault(network, bell, "")
        assert peer.port("vif1.0") is not None
        network.remove()
        assert peer.port("vif1.0") is None


def test_a_refused_port_is_tried_again(tmp_path: Path, bell: Bell) -> None:
    refused = threading.Event()

    def once(request: Row) -> bytes | None:
        if request["method"] != "transact" or refused.is_set():
            return None
        refused.set()
        return answer(request, [{"error": "resources exhausted"}])

    with OvsdbPeer(tmp_path / "db", once) as peer:
        TapNetwork("vif1.0").close()
        network = make(peer, "", bell)
        await_fault(network, bell, "")
        assert refused.is_set()
        assert peer.port("vif1.0") is not None
        network.remove()


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("words", ["No such file or directory", "Connection refused"])
def test_no_database(tmp_path: Path, bell: Bell, words: str) -> None:
    """A guest's tap goes on without, completing its frames itself, and is joined when there is one."""
    path = tmp_path / "db"
    if words == "Connection refused":
        OvsdbPeer(path).close()
    spec = parse_spec(f"ovs:br0,db=unix:{path}")
    with pytest.raises(PeerError) as error:
        open_network(spec, name="vif1.0", owner=bell.owner)
    assert (
        str(error.value) == f"ovs:br0: OVSDB unix:{path}: cannot connect: {words}; the port is not there yet"
    )
    assert get_link("vif1.0") is None
    TapNetwork("vif1.0").close()
    network = open_network(spec, name="vif1.0", owner=bell.owner)
    assert isinstance(network, OvsNetwork)
    assert words in fault(network)
    assert network.up
    assert network.path == "completed and segmented by netback: br0 has a datapath that is not known"
    assert network.peers[0].caps == 0
    path.unlink(missing_ok=True)
    with OvsdbPeer(path):
        await_fault(network, bell, "")
        assert network.peers[0].caps == EVERYTHING
        assert network.path is None
        network.remove()


def test_the_datapath_changes(tmp_path: Path, bell: Bell) -> None:
    """Queues that send by a duplicate are told, too."""
    with OvsdbPeer(tmp_path / "db") as peer:
        network = make(peer, "", bell)
        copy = network.peers[0].duplicate(network.peers[0].fd)
        for datapath, caps in (("netdev", 0), ("system", EVERYTHING), ("netdev", 0)):
            peer.change("Bridge", BRIDGE, datapath_type=datapath)
            bell.until(lambda: network.peers[0].caps == caps, datapath)  # noqa: B023 (called at once)
            assert copy.caps == caps
        network.remove()


def test_the_switch_names_an_error(tmp_path: Path, bell: Bell) -> None:
    with OvsdbPeer(tmp_path / "db") as peer:
        network = make(peer, "", bell)
        (key,) = peer.rows["Interface"]
        peer.change("Interface", key, error="could not open\x1b", ofport=-1)
        words = r"ovs:br0: Open vSwitch: could not open\x1b"
        assert await_fault(network, bell, words) == words
        assert not network.up
        peer.change("Interface", key, error=["set", []], ofport=3)
        await_fault(network, bell, "")
        network.remove()


def test_an_answer_byte_by_byte(tmp_path: Path) -> None:
    with OvsdbPeer(tmp_path / "db") as peer:
        inner = peer._honest

        def slowly(request: Row) -> bytes:
            for byte in inner(request):
                peer.send(bytes([byte]))
            return b" "

        peer.lie = slowly
        network = make(peer)
        assert fault(network) == ""
        network.remove()
        assert peer.port("vif1.0") is None


@pytest.mark.usefixtures("short")
def test_a_database_that_is_silent_later(tmp_path: Path, bell: Bell) -> None:
    """It is asked whether it is there; and a port cannot be removed, which is said after a while."""
    with OvsdbPeer(tmp_path / "db") as peer:
        network = make(peer, "", bell)
        peer.lie = lambda request: b" "
        assert "it does not answer 'echo'; frames pass as before" in await_fault(network, bell, "echo")
        with pytest.raises(
            PeerError, match=r"does not answer, so the port stays: ovs-vsctl del-port br0 vif1.0"
        ):
            network.remove()
        assert get_link("vif1.0") is None


def test_many_ports_of_a_silent_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They wait for it together: those that open later, or are removed, do not wait at all."""
    with OvsdbPeer(tmp_path / "db", lambda request: b" ") as peer:
        names = [f"vif{n}.0" for n in range(3)]
        for name in names:
            TapNetwork(name).close()
        spec = parse_spec(f"ovs:br0,db=unix:{peer.path}")
        monkeypatch.setattr(ovs, "OPEN_SECONDS", 0.2)
        networks = [open_network(spec, name=names[0])]
        waits: list[float | None] = []
        inner = threading.Event.wait

        def wait(event: threading.Event, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return inner(event, timeout)

        monkeypatch.setattr(threading.Event, "wait", wait)
        networks += [open_network(spec, name=name) for name in names[1:]]
        assert waits == [0.0, 0.0]
        for network in networks:
            with pytest.raises(PeerError, match="it has not answered yet"):
                network.check()
            network.remove()
        assert set(waits) <= {0.0, None}


@pytest.mark.usefixtures("short")
def test_probes_are_answered(tmp_path: Path) -> None:
    """The server's, too: else it drops a client."""
    with OvsdbPeer(tmp_path / "db") as peer:
        network = make(peer)
        got = threading.Event()
        peer.lie = lambda request: got.set() or b" " if request.get("result") == ["x"] else None
        peer.send(b'{"method":"echo","params":["x"],"id":"echo"}')
        assert got.wait(SECONDS)
        assert fault(network) == ""
        network.remove()


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("piece", "words"),
    [
        (b'{"id":null,"method":"update","params":[null,"' + b"x" * 65536, "it sends a message of more than"),
        (b'{"id":7,"method":"echo","params":["' + b"x" * 200_000 + b'"]}', "it reads nothing"),
    ],
    ids=["endless", "echoes"],
)
def test_a_flood(
    piece: bytes, words: str, tmp_path: Path, bell: Bell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it sends, and what it makes netback send, has a bound."""
    monkeypatch.setattr(ovsdb, "MAX_MESSAGE", 1 << 20)
    monkeypatch.setattr(connected, "PAUSES", (3600.0,))
    with OvsdbPeer(tmp_path / "db") as peer:
        network = make(peer, "", bell)
        with peer._lock, suppress(OSError):  # it reads no more
            for _ in range(1000):
                peer.send(piece)
                piece = piece if piece.startswith(b'{"id":7') else b"x" * 65536
        await_fault(network, bell, words)
        network.close()


def test_too_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ovs_switch, "MAX_ROWS", 10)
    with OvsdbPeer(tmp_path / "db") as peer:
        for n in range(11):
            row = {"name": f"br{n}", "datapath_type": "", "ports": ["set", []]}
            peer.rows["Bridge"][str(n)] = row
        with pytest.raises(PeerError, match="it has more than 10 ports"):
            make(peer)


def test_a_port_is_not_added_faster_than_due(
    tmp_path: Path, bell: Bell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that says yes and does nothing is asked again after a pause, not at once."""
    monkeypatch.setattr(ovs_switch, "AGAIN_SECONDS", 3600.0)
    monkeypatch.setattr(ovs, "OPEN_SECONDS", 0.3)
    with OvsdbPeer(tmp_path / "db", lying("transact", lambda r: answer(r, [{}]))) as peer:
        TapNetwork("vif1.0").close()
        network = make(peer, "", bell)
        for n in range(50):
            peer.change("Bridge", BRIDGE, datapath_type=("", "netdev")[n % 2])
        assert [request.get("method") for request in peer.requests].count("transact") == 1
        network.close()
