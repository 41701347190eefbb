# SPDX-License-Identifier: Apache-2.0
"""A device's filters: from its node, the configuration, attach and the control socket; changed while frames flow, kept
over a restart; a wrong one lets nothing pass.
"""

import logging
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState as State
from netback.control import ControlError, Refused
from netback.daemon import Backend
from netback.daemon.config import DeviceRule, parse_config
from netback.dataplane.counters import LOSSES
from netback.errors import ConfigError
from netback.net.filters import as_node, parse_filter, parse_filters, parse_node
from netback.net.python import PythonNetwork
from netback.xenbus.names import DeviceName
from netback.xenbus.nodes import FILTERS, LINK_DOWN
from tests.daemon.talk import client
from tests.dataplane import spoof_frames as frames
from tests.vif.guest import FRAME, Guest, exchange, join, readable, serving
from tests.xenbus.toolstack import MAC, add, gone, passing, take_away

OURS = bytes.fromhex(MAC.replace(":", ""))


def framed(ip: bytes = frames.OWN4, *, source: bytes = OURS) -> bytes:
    return frames.ethernet(0x0800, frames.ipv4(ip), source=source)


def texts(backend: Backend, name: DeviceName) -> list[str] | None:
    """The filters in force; None while the network is not open."""
    vif = backend.devices[name].vif
    return vif and [str(each) for each in vif.filters.specs]


def counted(backend: Backend, name: DeviceName, counter: str) -> int:
    vif = backend.devices[name].vif
    return vif.counters.get(counter, 0) if vif is not None else 0


async def passes(guest: Guest, network: PythonNetwork, frame: bytes) -> None:
    slot = guest.send(frame)
    assert await network.recv() == frame
    assert await guest.answer(slot) == 0


async def dropped(guest: Guest, network: PythonNetwork, frame: bytes, own: bytes) -> None:
    """The first frame does not reach the network, `own`, sent after it, does; both are answered alike."""
    slot = guest.send(frame)
    assert await guest.answer(slot) == 0
    await passes(guest, network, own)


async def test_the_node(backend: Backend, guest: Guest, network: PythonNetwork) -> None:
    """From the first frame on; changed, and taken away, on the same connection. What was counted stays."""
    name = await add(backend.store, guest.domid, filters="antispoof", ip="192.0.2.1")
    await guest.connect()
    await dropped(guest, network, framed(source=frames.OTHER), framed())
    await dropped(guest, network, framed(frames.OTHER4), framed())
    assert counted(backend, name, "tx_antispoof_mac") == 1
    assert counted(backend, name, "tx_antispoof_ipv4") == 1
    await backend.store.rm(f"{name.backend}/{FILTERS}")
    await passing(backend, lambda: texts(backend, name) == [])
    await passes(guest, network, framed(frames.OTHER4))
    await exchange(guest, network)
    assert counted(backend, name, "tx_antispoof_ipv4") == 1
    await backend.store.write(f"{name.backend}/{FILTERS}", "antispoof; antispoof")
    await passing(backend, lambda: texts(backend, name) == ["antispoof", "antispoof"])
    await dropped(guest, network, framed(frames.OTHER4), framed())
    assert counted(backend, name, "tx_antispoof_ipv4") == 2


async def test_a_changed_address_counts_at_once(
    backend: Backend, guest: Guest, network: PythonNetwork
) -> None:
    name = await add(backend.store, guest.domid, filters="antispoof", ip="192.0.2.1")
    await guest.connect()
    await dropped(guest, network, framed(frames.OTHER4), framed())
    await backend.store.write(f"{name.backend}/ip", "198.51.100.0/24 2001:db8::1")
    vif = backend.devices[name].vif
    assert vif is not None
    await passing(backend, lambda: len(vif.filters.addresses.networks or ()) == 2)
    await dropped(guest, network, framed(), framed(frames.OTHER4))
    await backend.store.rm(f"{name.backend}/ip")
    await passing(backend, lambda: vif.filters.addresses.networks is None)
    await passes(guest, network, framed())
    await dropped(guest, network, framed(source=frames.OTHER), framed())


async def test_one_guest_is_cut_off_and_the_other_goes_on(xen: Path, network: PythonNetwork) -> None:
    """The one that took another address; each has a network of its own."""
    second = PythonNetwork("other")
    try:
        async with (
            serving(xen, network, {"python:other": second}) as backend,
            join(xen, domid=1) as liar,
            join(xen, domid=2) as honest,
        ):
            lying = await add(backend.store, 1, filters="antispoof", ip="192.0.2.1")
            await add(backend.store, 2, filters="antispoof", ip="198.51.100.7", net="python:other")
            for guest in (liar, honest):
                await guest.connect()
            for _ in range(5):
                slot = liar.send(framed(frames.OTHER4))
                assert await liar.answer(slot) == 0
                await passes(honest, second, framed(frames.OTHER4))
            assert counted(backend, lying, "tx_antispoof_ipv4") == 5
            await passes(liar, network, framed())
    finally:
        second.remove()


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ({"filters": "antispof"}, "filter 'antispof': unknown kind (kinds: antispoof"),
        ({"filters": "antispoof,mac=1"}, "antispoof has no option 'mac' (it takes none)"),
        ({"filters": "antispoof;"}, "filter '': it names no kind"),
        ({"filters": "; ".join(["antispoof"] * 17)}, "a vif has 16 filters at most, not 17"),
        ({"filters": "antispoof", "ip": "192.0.2.999"}, "the ip node has no IP address: '192.0.2.999'"),
        ({"filters": "antispoof", "ip": " ".join(["192.0.2.1"] * 33)}, "more than 32 addresses"),
        ({"filters": "antispoof", "mac": None}, "antispoof: the device has no mac node"),
        ({"filters": "\udcff" * 100}, "unknown kind"),
    ],
)
async def test_a_wrong_node_lets_nothing_pass(
    backend: Backend,
    guest: Guest,
    network: PythonNetwork,
    caplog: pytest.LogCaptureFixture,
    nodes: dict[str, str | None],
    reason: str,
) -> None:
    """It is the device's error, reported once in each state; the frames wait, and pass when it is right."""
    name = await add(backend.store, guest.domid, **nodes)
    await guest.connect()
    sent, posted = guest.send(FRAME), guest.post()
    await network.send(FRAME)
    await passing(backend, lambda: counted(backend, name, "tx_throttled") > 0)
    await passing(backend, lambda: counted(backend, name, "rx_throttled") > 0)
    await passing(backend, lambda: reason in backend.devices[name].error)
    assert backend.devices[name].error.startswith("no frame passes: ")
    assert (guest.tx.index(2), guest.rx.index(2)) == (sent, posted)
    await backend.store.write(f"{name.backend}/{FILTERS}", "none")
    assert await network.recv() == FRAME
    assert await guest.answer(sent) == 0
    assert await guest.receive(posted) == (0, FRAME)
    await passing(backend, lambda: backend.devices[name].error == "")
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len([record for record in said if "no frame passes" in record.getMessage()]) in (1, 2, 3)


async def test_a_node_that_becomes_wrong(backend: Backend, guest: Guest, network: PythonNetwork) -> None:
    """Not even what passed before; and the device can still be removed."""
    name = await add(backend.store, guest.domid, filters="antispoof", ip="192.0.2.1")
    await guest.connect()
    await passes(guest, network, framed())
    await backend.store.write(f"{name.backend}/ip", "nowhere")
    await passing(backend, lambda: "the ip node" in backend.devices[name].error)
    slot = guest.send(framed())
    await passing(backend, lambda: counted(backend, name, "tx_throttled") > 0)
    assert guest.tx.index(2) == slot
    await backend.store.write(f"{name.backend}/ip", "192.0.2.1")
    assert await network.recv() == framed()
    await backend.store.write(f"{name.backend}/ip", "nowhere")
    await passing(backend, lambda: "the ip node" in backend.devices[name].error)
    await take_away(backend.store, name)
    await guest.set_state(State.CLOSED)
    await gone(backend, name)


async def test_a_restart_loses_no_filter(xen: Path, network: PythonNetwork) -> None:
    """The next backend filters from its first frame on: none that waited passes unfiltered."""
    async with join(xen, domid=1) as guest:
        async with serving(xen, network) as backend:
            name = await add(backend.store, guest.domid, ip="192.0.2.1")
            await guest.connect()
            answer = await client(xen, lambda made: made.set("vif1.0", filters=("antispoof",)))
            assert answer.filters == ["antispoof"]
            assert await backend.store.read(f"{name.backend}/{FILTERS}") == "antispoof"
            await dropped(guest, network, framed(frames.OTHER4), framed())
        lie = guest.send(framed(frames.OTHER4))
        own = guest.send(framed(), page=1)
        async with serving(xen, network) as backend:
            assert await network.recv() == framed()
            assert await guest.answer(lie) == 0
            assert await guest.answer(own) == 0
            assert counted(backend, name, "tx_antispoof_ipv4") == 1


async def test_the_control_socket(xen: Path, backend: Backend, guest: Guest, network: PythonNetwork) -> None:
    """The answer comes when the filters are in force; they are read back, and a wrong one changes nothing."""
    name = await add(backend.store, guest.domid, ip="192.0.2.1")
    await guest.connect()
    await passes(guest, network, framed(frames.OTHER4))
    answer = await client(xen, lambda made: made.set(str(name), filters=["antispoof"], tx_rate="1Gb/s"))
    assert (answer.filters, answer.tx_rate) == (["antispoof"], "1Gb/s")
    await dropped(guest, network, framed(frames.OTHER4), framed())
    (device,) = await client(xen, lambda made: made.devices(str(name)))
    assert device.filters == ["antispoof"]
    assert device.counters is not None
    assert device.counters["tx_antispoof_ipv4"] == 1
    for bad, reason in (
        (["antispoof", "x"], "filter 'x': unknown kind"),
        (["antispoof"] * 17, "16 filters at most"),
    ):
        with pytest.raises(Refused, match=reason):
            await client(xen, lambda made, bad=bad: made.set(str(name), filters=bad))  # type: ignore[misc]
    assert texts(backend, name) == ["antispoof"]
    await dropped(guest, network, framed(frames.OTHER4), framed())
    answer = await client(xen, lambda made: made.set(str(name), filters=()))
    assert answer.filters == []
    assert await backend.store.read(f"{name.backend}/{FILTERS}") == "none"
    await passes(guest, network, framed(frames.OTHER4))


async def test_filters_that_cannot_be_applied_leave_those_of_before(
    xen: Path, backend: Backend, guest: Guest, network: PythonNetwork
) -> None:
    name = await add(backend.store, guest.domid, mac=None)
    await guest.connect()
    await exchange(guest, network)
    with pytest.raises(Refused, match="antispoof: the device has no mac node"):
        await client(xen, lambda made: made.set(str(name), filters=("antispoof",)))
    assert await backend.store.read_or(f"{name.backend}/{FILTERS}") is None
    await exchange(guest, network)
    await passing(backend, lambda: backend.devices[name].error == "")


async def test_the_configuration_and_its_change(
    xen: Path, network: PythonNetwork, backend: Backend, guest: Guest
) -> None:
    """A node goes before a rule, and a rule before what holds for all; a reload changes them at once."""
    rule = DeviceRule(net="null", domid=guest.domid, filters=("antispoof", "antispoof"))
    config = replace(backend.config, filters=("antispoof",))
    await backend.reconfigure(config)
    name = await add(backend.store, guest.domid)
    await guest.connect()
    assert texts(backend, name) == ["antispoof"]
    await dropped(guest, network, framed(source=frames.OTHER), framed())
    await backend.reconfigure(replace(config, rules=(rule,)))
    await passing(backend, lambda: texts(backend, name) == ["antispoof", "antispoof"])
    await backend.reconfigure(replace(config, rules=(replace_rule(rule, ()),)))
    await passing(backend, lambda: texts(backend, name) == [])
    await backend.reconfigure(replace(config, rules=(replace_rule(rule, None),)))
    await passing(backend, lambda: texts(backend, name) == ["antispoof"])
    await backend.store.write(f"{name.backend}/{FILTERS}", "none")
    await passing(backend, lambda: texts(backend, name) == [])


def replace_rule(rule: DeviceRule, filters: tuple[str, ...] | None) -> DeviceRule:
    return DeviceRule(net=rule.net, domid=rule.domid, filters=filters)


def test_filters_in_the_configuration() -> None:
    config = parse_config("filters = ['antispoof']\n[[device]]\nnet = 'tap'\nfilters = []\n")
    assert (config.filters, config.device[0].filters) == (("antispoof",), ())
    for text in ("filters = ['spoof']", "[[device]]\nnet = 'tap'\nfilters = ['spoof']"):
        with pytest.raises(ValueError, match=r"filters: filter 'spoof': unknown kind"):
            parse_config(text)


async def test_attach_with_filters(xen: Path, backend: Backend, guest: Guest, network: PythonNetwork) -> None:
    name = await backend.attach(
        guest.domid, "python:lan", mac=MAC, filters=parse_filters(["antispoof", "antispoof"])
    )
    await guest.connect()
    assert await backend.store.read(f"{name.backend}/{FILTERS}") == "antispoof; antispoof"
    await dropped(guest, network, framed(source=frames.OTHER), framed())


async def test_a_link_that_is_down_stays_so(backend: Backend, guest: Guest, network: PythonNetwork) -> None:
    """Whatever becomes of its filters."""
    name = await add(backend.store, guest.domid, filters="x", **{"link-down": "1"})
    await guest.connect()
    sent = guest.send(FRAME)
    await passing(backend, lambda: counted(backend, name, "tx_throttled") > 0)
    await backend.store.write(f"{name.backend}/{FILTERS}", "none")
    await passing(backend, lambda: backend.devices[name].error == "")
    assert guest.tx.index(2) == sent
    await backend.store.write(f"{name.backend}/{LINK_DOWN}", "0")
    assert await network.recv() == FRAME


class Far:
    """A program at a UNIX socket of datagrams, to which a filter leads."""

    def __init__(self, directory: Path) -> None:
        self.near, self.path = str(directory / "near"), str(directory / "far")
        self.spec = f"dgram:{self.path},local={self.near}"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.setblocking(False)

    @property
    def opened(self) -> bool:
        """Whether the network has its own address."""
        return Path(self.near).exists()

    def vacate(self) -> None:
        """Remove what another program left at the network's address."""
        Path(self.near).unlink()

    async def recv(self) -> bytes:
        await readable(self.socket.fileno())
        return self.socket.recv(1 << 16)

    def send(self, frame: bytes) -> None:
        self.socket.sendto(frame, self.near)


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Far]:
    made = Far(tmp_path)
    yield made
    made.socket.close()


async def test_a_mirror(xen: Path, backend: Backend, guest: Guest, network: PythonNetwork, far: Far) -> None:
    """Its network's spec has a comma. It is opened when it is set, stays where it is still named, and is closed."""
    name = await add(backend.store, guest.domid)
    await guest.connect()
    text = f"mirror,direction=tx,to={far.spec}"
    answer = await client(xen, lambda made: made.set(str(name), filters=(text,)))
    assert answer.filters == [text]
    await passes(guest, network, FRAME)
    assert await far.recv() == FRAME
    await client(xen, lambda made: made.set(str(name), filters=("vlan,access=5", f"mirror,to={far.spec}")))
    slot = guest.send(FRAME)
    tagged = FRAME[:12] + b"\x81\0\0\5" + FRAME[12:]
    assert [await far.recv(), await network.recv()] == [tagged, tagged]
    assert await guest.answer(slot) == 0
    assert far.opened
    await client(xen, lambda made: made.set(str(name), filters=()))
    assert not far.opened
    await exchange(guest, network)
    assert counted(backend, name, "tx_mirror_copied") == 2


async def test_a_redirection(
    xen: Path, backend: Backend, guest: Guest, network: PythonNetwork, far: Far
) -> None:
    name = await add(backend.store, guest.domid, filters=f"redirect,direction=rx,to={far.spec}")
    await guest.connect()
    await passes(guest, network, FRAME)
    slot = guest.post()
    await network.send(FRAME)
    far.send(FRAME[::-1])
    assert await guest.receive(slot) == (0, FRAME[::-1])
    await client(xen, lambda made: made.set(str(name), filters=(f"redirect,direction=tx,to={far.spec}",)))
    slot = guest.post()
    assert await guest.receive(slot) == (0, FRAME)  # what waited in the vif's own network
    slot = guest.send(FRAME)
    assert await far.recv() == FRAME
    assert await guest.answer(slot) == 0


async def test_a_network_that_cannot_be_opened(
    xen: Path, backend: Backend, guest: Guest, network: PythonNetwork, far: Far
) -> None:
    """Another program has its address: the set fails and leaves what was, a node lets nothing pass until it is free."""
    other = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    other.bind(far.near)
    text = f"mirror,to={far.spec}"
    name = await add(backend.store, guest.domid)
    await guest.connect()
    with pytest.raises(ControlError, match=r"^dgram:"):
        await client(xen, lambda made: made.set(str(name), filters=(text,)))
    await exchange(guest, network)
    await backend.store.write(f"{name.backend}/{FILTERS}", text)
    await passing(backend, lambda: backend.devices[name].error.startswith("no frame passes: "))
    slot = guest.send(FRAME)
    other.close()
    far.vacate()
    assert await network.recv() == FRAME
    assert await far.recv() == FRAME
    assert await guest.answer(slot) == 0
    await passing(backend, lambda: backend.devices[name].error == "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mirror", "it names no network: as in to=tap:mirror0, its last option"),
        ("mirror,to=tap", "name the tap, as in tap:mirror0"),
        ("mirror,to=tapp:x", "unknown kind 'tapp'"),
        ("redirect,to=tap:x,direction=tx", "tap has no option 'direction'"),
        ("vlan", "a port is either access=VLAN or trunk=VLANS"),
        ("vlan,access=4095", "access='4095' is not a number from 1 to 4094"),
        ("vlan,trunk=20-10", "trunk='20-10' is not VLANs from 1 to 4094"),
        ("vlan,access=1,native=2", "native is an option of a trunk"),
        ("vlan,access=1,access=2", "option access is given twice"),
        ("faults", "it names no fault"),
        ("faults,loss=101%", "loss='101%' is not a share of the frames"),
        ("faults,loss=1", "loss='1' is not a share of the frames"),
        ("faults,delay=11s", "delay='11s' is not a time of 10s at most"),
        ("faults,loss=1%,pause=1s", "pause is of stall"),
        ("mirror,to=null;x", "it has a semicolon"),
        ("antispoof,", "antispoof has no option ''"),
        ("", "it names no kind"),
    ],
)
def test_wrong_texts(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_filter(text)
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "antispoof",
        "vlan,trunk=10-20+30,native=5",
        "faults,loss=1.5%,delay=10ms,seed=7,direction=tx",
        "faults,stall=0.1%,pause=1s",
        "mirror,direction=rx,to=dgram:/run/far,local=/run/near",
        "redirect,to=tap:web0,mtu=9000",
    ],
)
def test_right_texts_are_written_the_same(text: str) -> None:
    assert str(parse_filter(text)) == text
    assert parse_node(as_node([parse_filter(text)] * 2)) == (parse_filter(text),) * 2


def test_what_filters_lose_is_among_the_losses() -> None:
    """So `lost`, `top` and the metrics have it; what a mirror misses is no loss of the vif."""
    assert {"tx_antispoof_mac", "tx_vlan_dropped", "tx_faults_lost", "tx_faults_full"} <= set(LOSSES["tx"])
    assert {"rx_vlan_dropped", "rx_faults_lost", "rx_faults_full"} <= set(LOSSES["rx"])
    assert not any("mirror" in name or "duplicated" in name for name in (*LOSSES["tx"], *LOSSES["rx"]))
