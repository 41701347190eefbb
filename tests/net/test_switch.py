# SPDX-License-Identifier: Apache-2.0
"""Switch and hub: the contract between two ports, the rules beside their oracle, bounds, threads, uplinks."""

from __future__ import annotations

import gc
import os
import random
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netback.dataplane import clock
from netback.dataplane.peers.switch import Port, Switch
from netback.errors import ConfigError, GoneError, PeerError
from netback.net.base import Network
from netback.net.rtnetlink import get_link
from netback.net.spec import open_network, parse_spec
from netback.net.switch import AGEING, SwitchNetwork

from ..dataplane.offload_frames import build
from ..flow_oracle import flow_number
from ..offload_oracle import UDP
from ..switch_oracle import SwitchOracle
from .contract import FrameNetwork, OffloadNetwork, Site, frame, receive
from .far import PLAIN, FarLink, await_readable
from .namespace import await_up, ip, new_network, veth

SECOND = 1_000_000_000
ALL = b"\xff" * 6
LANE_FRAMES, LANE_BYTES = 1024, 4 << 20
PORT_LIMIT = 1024
TABLE = 8192
_numbers = count()


def mac(number: int) -> bytes:
    return b"\x02\0" + number.to_bytes(4, "big")


def message(to: bytes, sender: bytes, body: bytes = bytes(46)) -> bytes:
    return PLAIN + to + sender + b"\x88\xb5" + body


def opened(spec: str) -> Network:
    """A port that passes frames."""
    network = open_network(parse_spec(spec), name="vif1.0")
    network.carrier(True)
    return network


def names(network: Network, count: int = 64) -> list[bytes]:
    """The senders of the frames that wait there."""
    return [got[len(PLAIN) + 6 : len(PLAIN) + 12] for got in network.peers[0].recv(count)]


@pytest.fixture
def lan() -> str:
    """The name of a switch that no other test has."""
    return f"lan{next(_numbers)}"


@pytest.fixture
def fixed() -> Iterator[None]:
    clock.fix(1000 * SECOND)
    yield
    clock.fix(0)


class FarPort:
    """Another port of the same segment."""

    def __init__(self, spec: str) -> None:
        self.network = opened(spec)

    def send(self, message: bytes) -> None:
        assert self.network.peers[0].send([message]) == (1, 0)

    def recv(self) -> bytes:
        await_readable(self.network.peers[0].fd)
        return self.network.peers[0].recv(1)[0]


@pytest.mark.parametrize("kind", ["switch", "hub"])
class TestSegment(FrameNetwork, OffloadNetwork):
    """Two ports of one segment."""

    @pytest.fixture
    def site(self, kind: str, lan: str) -> Iterator[Site]:
        network, far = opened(f"{kind}:{lan}"), FarPort(f"{kind}:{lan}")
        yield Site(network, far)  # type: ignore[arg-type]
        network.remove()
        far.network.remove()


# ---- the rules, beside the oracle

PORTS, ADDRESSES, LIMIT, AGE = 4, 8, 3, 10
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("send"), st.integers(0, PORTS - 1), st.integers(0, ADDRESSES), st.integers(0, ADDRESSES)
        ),
        st.tuples(st.just("wait"), st.integers(1, AGE)),
        st.tuples(st.just("open"), st.integers(0, PORTS - 1), st.booleans()),
    ),
    max_size=120,
)


def address(number: int) -> bytes:
    """The last one is a group's, which no frame comes from in earnest."""
    return mac(number) if number < ADDRESSES else b"\x01\0\x5e\0\0\x01"


@given(OPERATIONS, st.booleans(), st.integers(1, 64))
def test_as_the_oracle(operations: list[tuple[object, ...]], learns: bool, burst: int) -> None:
    """Frames go where the oracle says, one by one or in bursts, and the same addresses are known."""
    switch = Switch(learns=learns, ageing=AGE, secret=12345)
    ports = [Port(switch, limit=LIMIT) for _ in range(PORTS)]
    oracle = SwitchOracle(range(PORTS), ageing=AGE, limit=LIMIT, learns=learns)
    wanted: list[list[bytes]] = [[] for _ in range(PORTS)]
    waiting: list[bytes] = []
    sender, now = 0, 1000

    def flush() -> None:
        while waiting:
            done, refused = ports[sender].peers[0].send(waiting[:burst])
            assert (done, refused) == (min(burst, len(waiting)), 0)
            del waiting[:burst]

    try:
        clock.fix(now * SECOND)
        for port in range(PORTS):
            ports[port].open(True)
            oracle.open(port, True)
        for number, (kind, *rest) in enumerate(operations):
            if kind == "send":
                port, to, origin = map(int, rest)  # type: ignore[call-overload]
                if port != sender:
                    flush()
                    sender = port
                one = message(address(to), address(origin), struct.pack(">I", number) * 12)
                waiting.append(one)
                for other in oracle.send(port, one[len(PLAIN) :], now):
                    wanted[other].append(one)
                continue
            flush()
            if kind == "wait":
                now += int(rest[0])  # type: ignore[call-overload]
                clock.fix(now * SECOND)
            else:
                port, on = int(rest[0]), bool(rest[1])  # type: ignore[call-overload]
                ports[port].open(on)
                oracle.open(port, on)
        flush()
        for port in range(PORTS):
            got: list[bytes] = []
            while more := ports[port].peers[0].recv():
                got += more
            assert got == wanted[port]
        assert switch.addresses() == oracle.addresses(now)
    finally:
        clock.fix(0)
        for each in ports:
            each.close()


def test_ageing_by_default(lan: str, fixed: None) -> None:
    """An address is known for 300 s after its last frame, and a moved one moves at once."""
    with ExitStack() as undo:
        a, b, c = (undo.enter_context(closing(opened(f"switch:{lan}"))) for _ in range(3))
        a.peers[0].send([message(ALL, mac(1))])
        for network in (b, c):
            network.drain()
        clock.fix((1000 + AGEING) * SECOND - 1)
        b.peers[0].send([message(mac(1), mac(2))])
        assert (names(a), names(c)) == ([mac(2)], [])
        clock.fix((1000 + AGEING) * SECOND)
        b.peers[0].send([message(mac(1), mac(2))])
        assert (names(a), names(c)) == ([mac(2)], [mac(2)])
        c.peers[0].send([message(ALL, mac(1))])
        for network in (a, b):
            network.drain()
        b.peers[0].send([message(mac(1), mac(2))])
        assert (names(a), names(c)) == ([], [mac(2)])


def test_a_worker_whose_time_is_behind(lan: str, fixed: None) -> None:
    """Another worker saw the address in a second that has not begun for this one: it is known."""
    with ExitStack() as undo:
        a, b, c = (undo.enter_context(closing(opened(f"switch:{lan}"))) for _ in range(3))
        clock.fix(1001 * SECOND)
        known(a, 1)
        c.drain()
        clock.fix(1000 * SECOND)
        b.peers[0].send([message(mac(1), mac(2))])
        assert names(c) == []


def test_a_port_that_goes_forgets_its_addresses(lan: str) -> None:
    with ExitStack() as undo:
        a, b, c = (undo.enter_context(closing(opened(f"switch:{lan}"))) for _ in range(3))
        a.peers[0].send([message(ALL, mac(1))])
        for network in (b, c):
            network.drain()
        a.close()
        d = undo.enter_context(closing(opened(f"switch:{lan}")))
        assert d.name == a.name  # the same number, for another vif
        b.peers[0].send([message(mac(1), mac(2))])
        assert (names(c), names(d)) == ([mac(2)], [mac(2)])


def test_without_carrier_it_gets_nothing(lan: str) -> None:
    """A guest that is stalled or gone: its frames are neither kept nor counted as lost, and it may still send."""
    with ExitStack() as undo:
        a, b, c = (undo.enter_context(closing(opened(f"switch:{lan}"))) for _ in range(3))
        a.carrier(False)
        b.peers[0].send([message(ALL, mac(2))])
        assert names(a) == []
        assert names(c) == [mac(2)]
        assert a.peers[0].send([message(mac(2), mac(1))]) == (1, 0)
        assert names(b) == [mac(1)]
        b.peers[0].send([message(mac(1), mac(2))])  # not learned: it could not get it
        assert names(c) == [mac(2)]
        a.carrier(True)
        assert names(a) == []
        assert a.drops() == {"rx_overflow": 0}


# ---- bounds


def known(network: Network, number: int) -> None:
    """Have the switch learn that this address is there."""
    network.peers[0].send([message(mac(1000), mac(number))])


def test_a_full_port_stops_no_sender(lan: str) -> None:
    with ExitStack() as undo:
        slow, sender, other = (undo.enter_context(closing(opened(f"switch:{lan}"))) for _ in range(3))
        known(slow, 1)
        known(other, 3)
        for network in (slow, sender, other):
            network.drain()
        for _ in range(40):
            assert sender.peers[0].send([message(mac(to), mac(2), bytes(1400)) for to in (1, 3) * 32]) == (
                64,
                0,
            )
            assert not sender.peers[0].blocked
            assert other.drain() == 32
        assert slow.drops() == {"rx_overflow": 40 * 32 - LANE_FRAMES}
        assert (sender.drops(), other.drops()) == ({"rx_overflow": 0}, {"rx_overflow": 0})
        assert slow.queued() == {"bytes": LANE_FRAMES * 1414, "bytes_max": LANE_BYTES}
        assert slow.drain() == LANE_FRAMES
        assert slow.queued()["bytes"] == 0


@pytest.mark.parametrize("size", [46, 40000])
def test_flooded_frames_leave_room_for_others(lan: str, size: int) -> None:
    with ExitStack() as undo:
        far, hostile, near = (undo.enter_context(closing(opened(f"switch:{lan}"))) for _ in range(3))
        known(far, 1)
        hostile.drain()
        near.drain()
        for to in (ALL, mac(1000)) * 10:
            hostile.peers[0].send([message(to, mac(2), bytes(size))] * 64)
        flooded = 20 * 64 - far.drops()["rx_overflow"]
        assert flooded * size <= LANE_BYTES // 2 + size
        assert flooded <= LANE_FRAMES // 2
        assert near.peers[0].send([message(mac(1), mac(3))] * 40) == (40, 0)
        assert far.drain() == flooded + 40


def test_frames_of_any_size_through_a_full_lane(lan: str) -> None:
    """Frames that find a place come whole and in order, wherever in the memory they lie."""
    rng = random.Random(1)
    with ExitStack() as undo:
        near, far = (undo.enter_context(closing(opened(f"switch:{lan}"))) for _ in range(2))
        known(far, 2)
        near.drain()
        sent: list[bytes] = []
        for number in range(4000):
            one = message(
                mac(2), mac(1), struct.pack(">I", number) + rng.randbytes(rng.choice((46, 1400, 9000, 65000)))
            )
            before = far.drops()["rx_overflow"]
            near.peers[0].send([one])
            if far.drops()["rx_overflow"] == before:
                sent.append(one)
            if rng.random() < 0.3:
                got = far.peers[0].recv(rng.randrange(1, 5))
                assert got == sent[: len(got)]
                del sent[: len(got)]
        while got := far.peers[0].recv():
            assert got == sent[: len(got)]
            del sent[: len(got)]
        assert sent == []
        assert far.drops()["rx_overflow"] > 100


def test_what_no_port_takes_is_refused(lan: str) -> None:
    with ExitStack() as undo:
        near, far = (undo.enter_context(closing(opened(f"switch:{lan}"))) for _ in range(2))
        assert near.peers[0].send([PLAIN + bytes(13), message(ALL, mac(1))]) == (2, 1)
        assert names(far) == [mac(1)]
        near.close()
        assert near.peers[0].send([message(ALL, mac(1))]) == (1, 1)
        assert names(far) == []


def test_a_guest_with_too_many_addresses(lan: str, fixed: None) -> None:
    """It has those that came first, until they age; frames to the others are flooded, and its neighbours' are not."""
    with ExitStack() as undo:
        hostile, a, b = (undo.enter_context(closing(opened(f"switch:{lan}"))) for _ in range(3))
        a.peers[0].send([message(ALL, mac(1))])
        b.peers[0].send([message(ALL, mac(2))])
        for start in range(100, 100 + 4 * PORT_LIMIT, 64):
            hostile.peers[0].send([message(mac(2), mac(start + n)) for n in range(64)])
            b.drain()
        hostile.drain()
        a.drain()
        for _ in range(10):
            a.peers[0].send([message(mac(2), mac(1))])
            b.peers[0].send([message(mac(1), mac(2))])
        assert (names(a), names(b), names(hostile)) == ([mac(2)] * 10, [mac(1)] * 10, [])
        assert "1016 more" in str(hostile.path)
        a.peers[0].send([message(mac(100), mac(1)), message(mac(100 + PORT_LIMIT), mac(1))])
        assert (names(hostile), names(b)) == ([mac(1)] * 2, [mac(1)])
        clock.fix((1000 + AGEING) * SECOND)
        hostile.peers[0].send([message(ALL, mac(100 + PORT_LIMIT))])
        b.drain()
        a.peers[0].send([message(mac(100 + PORT_LIMIT), mac(1))])
        assert (names(hostile), names(b)) == ([mac(1)], [])


def test_no_port_takes_another_one_s_part_of_the_table() -> None:
    """A table that one port has filled still learns the addresses of others, and keeps them."""
    switch = Switch()
    hostile, honest = Port(switch, limit=4 * TABLE), Port(switch)
    with closing(hostile), closing(honest):
        for port in (hostile, honest):
            port.open(True)
        for start in range(0, 4 * TABLE, 64):
            hostile.peers[0].send([message(ALL, mac(1000 + start + n)) for n in range(64)])
            honest.drain()
        assert len(switch.addresses()) > TABLE * 0.99
        honest.peers[0].send([message(ALL, mac(n)) for n in range(60)])
        for start in range(0, 4 * TABLE, 64):
            hostile.peers[0].send([message(ALL, mac(100_000 + start + n)) for n in range(64)])
            honest.drain()
        known = switch.addresses()
        assert all(known.get(mac(n)) == honest.number for n in range(60))


def test_ports_are_reused() -> None:
    """A port that was closed, or forgotten by all, is another vif's next."""
    switch = Switch()
    ports = [Port(switch) for _ in range(50)]
    for port in ports:
        port.close()
    assert switch.ports == 0
    again = [Port(switch) for _ in range(50)]
    assert {port.number for port in again} == {port.number for port in ports}
    del again, port
    gc.collect()
    assert switch.ports == 0


# ---- memory


def resident() -> int:
    """Bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_idle_ports_are_small(lan: str) -> None:
    before = resident()
    networks = [opened(f"switch:{lan}") for _ in range(100)]
    try:
        assert resident() - before < 100 * 64 * 1024
    finally:
        for network in networks:
            network.close()


def test_memory_that_bursts_took_is_given_back(lan: str, fixed: None) -> None:
    ports = 8
    with ExitStack() as undo:
        near, *far = (undo.enter_context(closing(opened(f"switch:{lan}"))) for _ in range(1 + ports))
        for number, network in enumerate(far):
            known(network, number)
        for network in far:
            network.drain()
        before = resident()
        for number in range(ports):
            for _ in range(60):
                near.peers[0].send([message(mac(number), mac(99), bytes(65000))])
        assert resident() - before > ports * LANE_BYTES * 0.8
        for network in far:
            assert sum(len(network.peers[0].recv(1)) for _ in range(60)) == 60
        for second in range(3):
            clock.fix((1001 + second) * SECOND)
            near.peers[0].send([message(ALL, mac(99))])
            assert [names(network) for network in far] == [[mac(99)]] * ports
        assert resident() - before < ports * LANE_BYTES * 0.2


# ---- threads


@pytest.mark.parametrize("lanes", [1, 3])
def test_many_senders_and_one_receiver(lan: str, lanes: int) -> None:
    """Each sender's frames come whole and in order; none is neither received nor counted as lost."""
    senders, total = 3, 6000
    with ExitStack() as undo:
        far = undo.enter_context(closing(opened(f"switch:{lan}")))
        far.set_queues(lanes)
        near = [undo.enter_context(closing(opened(f"switch:{lan}"))) for _ in range(senders)]
        far.peers[0].send([message(ALL, mac(99))])

        def flood(sender: int) -> None:
            peer = near[sender].peers[0]
            for start in range(0, total, 60):
                peer.send(
                    [
                        message(mac(99), mac(sender), struct.pack(">I", start + n) * (20 + (start + n) % 200))
                        for n in range(60)
                    ]
                )

        threads = [threading.Thread(target=flood, args=(sender,)) for sender in range(senders)]
        got: dict[bytes, list[int]] = {mac(sender): [] for sender in range(senders)}
        for thread in threads:
            thread.start()
        done = False
        while not done:
            done = not any(thread.is_alive() for thread in threads)
            for peer in far.peers:
                while frames := peer.recv():
                    done = False
                    for one in frames:
                        body = one[len(PLAIN) + 14 :]
                        assert body == body[:4] * (len(body) // 4)
                        got[one[len(PLAIN) + 6 : len(PLAIN) + 12]].append(struct.unpack(">I", body[:4])[0])
        for numbers in got.values():
            assert numbers == sorted(set(numbers))
        assert sum(map(len, got.values())) + far.drops()["rx_overflow"] == senders * total


def test_a_port_comes_and_goes_under_load(lan: str) -> None:
    """Frames come whole or not at all, and none of the port's earlier life."""
    stop = threading.Event()
    with closing(opened(f"switch:{lan}")) as near:

        def flood() -> None:
            while not stop.is_set():
                near.peers[0].send([message(ALL, mac(1), bytes([life % 256]) * 20000)] * 8)

        life = 0
        thread = threading.Thread(target=flood)
        thread.start()
        try:
            for life in range(300):  # noqa: B007 (the sender reads it)
                with closing(opened(f"switch:{lan}")) as far:
                    assert all(len(set(got[len(PLAIN) + 14 :])) == 1 for got in far.peers[0].recv())
                    assert all(len(set(got[len(PLAIN) + 14 :])) == 1 for got in far.peers[0].recv())
        finally:
            stop.set()
            thread.join()


# ---- queues


def test_flows_are_spread_over_the_lanes(lan: str) -> None:
    with ExitStack() as undo:
        near, far = (undo.enter_context(closing(opened(f"switch:{lan}"))) for _ in range(2))
        far.set_queues(4)
        assert len(far.peers) == 4
        sent = []
        for flow in range(64):
            one = bytearray(build(4, UDP, bytes(100)))
            one[34:36] = (1000 + flow).to_bytes(2, "big")
            sent.append(PLAIN + bytes(one))
        near.peers[0].send(sent)
        for lane, peer in enumerate(far.peers):
            wanted = [one for one in sent if flow_number(one[len(PLAIN) :]) % 4 == lane]
            assert peer.recv() == wanted
            assert wanted
        far.set_queues(1)
        near.peers[0].send(sent)
        assert far.peers[0].recv() == sent


# ---- specs and names


def test_who_shares_a_segment(lan: str) -> None:
    with ExitStack() as undo:
        a, b, hub, other = (
            undo.enter_context(closing(opened(spec)))
            for spec in (f"switch:{lan}", f"switch:{lan}", f"hub:{lan}", f"switch:{lan}-2")
        )
        a.peers[0].send([message(ALL, mac(1))])
        assert (names(b), names(hub), names(other)) == ([mac(1)], [], [])
        assert (a.name, b.name, hub.name) == (f"switch:{lan}/0", f"switch:{lan}/1", f"hub:{lan}/0")
        assert a.path == f"one of 2 ports; {mac(1).hex(':')}"
        assert b.path == "one of 2 ports"


def test_options_of_any_vif_hold_for_all(lan: str, fixed: None) -> None:
    """In any order; two that differ are an error of the second."""
    with ExitStack() as undo:
        a, b = (undo.enter_context(closing(opened(f"switch:{lan}"))) for _ in range(2))
        c = undo.enter_context(closing(opened(f"switch:{lan},ageing=20")))
        undo.enter_context(closing(SwitchNetwork(lan, ageing=20)))
        with pytest.raises(
            ConfigError, match=f"switch:{lan}: ageing=20 is in force for another vif, and not ageing=30"
        ):
            SwitchNetwork(lan, ageing=30)
        known(a, 1)
        c.drain()
        clock.fix(1020 * SECOND)
        b.peers[0].send([message(mac(1), mac(2))])
        assert names(c) == [mac(2)]
    with closing(SwitchNetwork(lan, ageing=30)):
        pass


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("switch", "it names no switch: write for example 'switch:lan'"),
        ("hub:", "it names no hub: write for example 'hub:lan'"),
        ("switch:a/b", "'a/b' is not 1 to 32 letters, digits"),
        ("switch:" + "x" * 33, "is not 1 to 32 letters"),
        ("switch:lan,ageing=0", "ageing='0' is not a number from 1 to 1000000"),
        ("hub:lan,ageing=5", "hub has no option 'ageing'"),
        ("switch:lan,uplink=eth0", "it is of no kind that can be one"),
        ("switch:lan,uplink=tap:", "a link name is empty"),
        ("switch:lan,uplink=stream:/x", "it is of no kind that can be one"),
    ],
)
def test_wrong_specs(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_spec(text)


# ---- uplinks


@pytest.fixture
def namespace() -> Iterator[None]:
    with new_network():
        yield


@pytest.mark.usefixtures("namespace")
def test_a_tap_as_uplink(lan: str) -> None:
    """The host's stack is behind one more port, which many vifs share; with the last one it goes."""
    spec = f"switch:{lan},uplink=tap:up0"
    with ExitStack() as undo:
        b, a = opened(f"switch:{lan}"), opened(spec)
        undo.callback(a.remove)
        undo.callback(b.remove)
        ip("link set up0 up")
        await_up("up0")
        far = undo.enter_context(closing(FarLink("up0")))
        assert (a.mtu, b.mtu) == (1500, 1500)
        assert a.path == b.path == "one of 3 ports, the uplink tap:up0 is port 1"
        a.peers[0].send([message(ALL, mac(1))])
        assert far.recv() == message(ALL, mac(1))
        assert names(b) == [mac(1)]
        far.send(message(mac(1), mac(3)))
        assert receive(a, 1) == [message(mac(1), mac(3))]
        assert names(b) == []
        b.peers[0].send([message(mac(3), mac(2))])
        assert far.recv() == message(mac(3), mac(2))
        assert names(a) == []
        ip("link set up0 down")
        a.peers[0].send([message(ALL, mac(1))])
        while "1 frames lost" not in str(b.path):
            a.check()
        a.remove()
        assert get_link("up0") is not None
    assert get_link("up0") is None


@pytest.mark.usefixtures("namespace")
def test_an_uplink_that_is_removed_and_made_again(lan: str) -> None:
    veth("near0", "far0")
    with closing(opened(f"switch:{lan},uplink=packet:near0")) as a, closing(opened(f"switch:{lan}")) as b:
        ip("link del near0")
        with pytest.raises(GoneError, match=f"switch:{lan}: uplink: packet:near0"):
            a.check()
        a.peers[0].send([message(ALL, mac(1))])
        assert names(b) == [mac(1)]
        assert b.mtu is None
        veth("near0", "far0")
        assert a.check() is False
        with closing(FarLink("far0")) as far:
            a.peers[0].send([frame(1)])
            assert far.recv() == frame(1)
            far.send(frame(2))
            assert receive(b, 2)[1] == frame(2)


@pytest.mark.usefixtures("namespace")
def test_an_uplink_that_cannot_be(lan: str) -> None:
    with pytest.raises(PeerError, match=f"switch:{lan}: uplink: packet:none0: no link of that name"):
        opened(f"switch:{lan},uplink=packet:none0")
    with closing(opened("tap:up0")), pytest.raises(PeerError, match="tap:up0: another process holds it"):
        opened(f"switch:{lan},uplink=tap:up0")
    with closing(opened(f"switch:{lan}")) as network:
        assert network.path == "one of 1 ports"
