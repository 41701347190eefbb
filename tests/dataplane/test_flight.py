# SPDX-License-Identifier: Apache-2.0
"""The flight recorder: what it keeps of a poll is enough for the same code to do the same again, and no more than that.

The cases are those by which the native code is compared with the oracle: every kind of slot, extra, grant, credit and
multicast list, honest and hostile.
"""

import random
import struct
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netback.abi import netif
from netback.abi.netif import TxFlag
from netback.dataplane import clock
from netback.dataplane.flight import MIN_FLIGHT, Flight
from netback.observe.recording import Header, QueueHeader, Recording, decode, encode
from netback.observe.replay import Step, play
from tests.dataplane.harness import Bench, post, post_gso_frame
from tests.dataplane.offload_frames import build
from tests.dataplane.ring_cases import case
from tests.dataplane.side_by_side import Pair
from tests.offload_oracle import GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, TCP, UDP

SIZE, SNAPLEN = 1 << 21, 128
CASES = 100


def recording(*flights: Flight, reason: str | None = None, begin: int = 0) -> Recording:
    """What recorders have, without the polls before `begin`, through a file."""
    polls = [flight.polls()[begin:] for flight in flights]
    header = Header(
        device="vif7.0",
        saved=time.time(),
        clock=clock.now(),
        reason=reason,
        snaplen=SNAPLEN,
        queues=tuple(
            QueueHeader(len(own), flight.recorded, flight.lost)
            for own, flight in zip(polls, flights, strict=True)
        ),
    )
    return decode(encode(header, polls))


def steps(recorded: Recording) -> list[Step]:
    return [each for each in play(recorded) if isinstance(each, Step)]


def same(flight: Flight, begin: int = 0) -> list[Step]:
    """The steps of a replay from poll `begin` on, which must do the same."""
    found = steps(recording(flight, begin=begin))
    wrong = [(step.number, step.differs) for step in found if step.differs]
    assert wrong == []
    return found


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def played(seed: int, snaplen: int) -> None:
    pair = Pair(case(random.Random(seed)))
    try:
        flight = Flight(SIZE, snaplen)
        pair.bench.queue.record(flight)
        pair.play()
        final = pair.bench.queue
        found = same(flight)
        assert flight.lost == 0
        assert len(found) == flight.recorded
        assert [step.broken for step in found if step.broken] == ([final.broken] if final.broken else [])
        # the rings that the replay made are those that the guest has, but for what it wrote since
        for ring in ("tx", "rx"):
            last = next((step for step in reversed(found) if step.poll.ring == ring), None)
            if last is not None:
                assert last.ring.indices["rsp_prod"] == final.rings[ring]["rsp_prod"]
        if found:
            same(flight, random.Random(seed).randrange(len(found)))  # the polls before it are not needed
    finally:
        pair.close()


@pytest.mark.parametrize("snaplen", [SNAPLEN, 1 << 20], ids=["headers", "payload"])
def test_random_rings_are_replayed(snaplen: int) -> None:
    for seed in range(CASES):
        try:
            played(seed, snaplen)
        except AssertionError as error:
            raise AssertionError(f"case of seed {seed}: {error}") from error


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(min_value=1 << 20, max_value=1 << 40))
def test_whatever_hypothesis_finds(seed: int) -> None:
    played(seed, SNAPLEN)


def test_a_gso_frame_in_two_slots_and_its_segments(bench: Bench) -> None:
    """A peer without offloads gets segments: what it took of them is in the recording."""
    plain = Bench(vnet_hdr=False, peer_caps=0)
    for each in (bench, plain):
        flight = Flight(SIZE, SNAPLEN)
        each.queue.record(flight)
        post_gso_frame(each, build(4, TCP, bytes(6000)))
        each.run()
        assert len(each.sent()) == (1 if each is bench else 5)
        found = same(flight)
        (copies,) = [item for step in found for item in step.poll.find("copies") if item.count]
        assert [copied[:2] for copied in copies.copies] == [(8, 96), (9, 0)]
    plain.close()


def test_frames_that_wait_for_slots(bench: Bench) -> None:
    """The backlog is a part of a poll's beginning, so a replay may begin while frames wait."""
    assert bench.peer_end is not None
    for number in range(5):
        bench.peer_end.send(bytes(10) + bytes(12) + b"\x88\xb5" + bytes([number]) * 300)
    bench.grant(20, 30)
    post(bench, 2, [netif.RX_REQUEST.pack(1, 0, 20)])
    bench.run()
    for number in range(2):
        bench.peer_end.send(bytes(10) + bytes(12) + b"\x88\xb5" + bytes([number]) * 3000)
    flight = Flight(SIZE, SNAPLEN)
    bench.queue.record(flight)
    post(bench, 2, [netif.RX_REQUEST.pack(number, 0, 20) for number in range(1, 7)], 1)
    bench.run()
    found = same(flight)
    assert sum(item.count for step in found for item in step.poll.find("responses")) == 6


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", ["tcp", "udp", "fragments"])
def test_a_replay_begins_anywhere_in_a_frame_that_is_being_segmented(version: int, kind: str) -> None:
    with closing(Bench(sg=False, caps=0)) as bench:
        assert bench.peer_end is not None
        gso, protocol, size, check = {
            "tcp": (GSO_TCPV4 if version == 4 else GSO_TCPV6, TCP, 20, 16),
            "udp": (GSO_UDP_L4, UDP, 8, 6),
            "fragments": (GSO_UDP, UDP, 8, 6),
        }[kind]
        l4 = 34 if version == 4 else 54
        header = struct.pack("=BBHHHH", 1, gso, l4 + size, 1440, l4, check)
        bench.peer_end.send(header + build(version, protocol, bytes(6000)))
        bench.grant(20, 30)
        flight = Flight(SIZE, SNAPLEN)
        bench.queue.record(flight)
        for number in range(6):
            post(bench, 2, [netif.RX_REQUEST.pack(number, 0, 20)], number)
            bench.run()
        found = same(flight)
        assert sum(item.count for step in found for item in step.poll.find("responses")) == 5
        for begin in range(len(found)):
            assert [step.poll for step in same(flight, begin)] == [step.poll for step in found[begin:]]


def test_no_bytes_beyond_the_headers_are_kept(bench: Bench) -> None:
    """A frame of several slots has its first bytes kept, not those of each slot."""
    secret = b"SECRET" * 1000
    flight = Flight(SIZE, SNAPLEN)
    bench.queue.record(flight)
    post_gso_frame(bench, build(4, TCP, bytes(SNAPLEN) + secret))
    assert bench.peer_end is not None
    bench.grant(20, 30)
    post(bench, 2, [netif.RX_REQUEST.pack(1, 0, 20)])
    bench.peer_end.send(bytes(10) + bytes(12) + b"\x88\xb5" + bytes(SNAPLEN) + secret[:1000])
    bench.run()
    assert len(bench.sent()) == 1
    assert sum(item.count for step in same(flight) for item in step.poll.find("responses")) == 4
    assert b"SECRET" not in b"".join(flight.polls())
    all_bytes = Flight(SIZE, 1 << 20)
    bench.queue.record(all_bytes)
    bench.write(10, 0, secret[:200])
    post(bench, 1, [netif.TX_REQUEST.pack(8, 0, 0, 9, 200)], 3)
    bench.run()
    assert secret[:200] in b"".join(all_bytes.polls())


def test_the_oldest_polls_make_room(bench: Bench) -> None:
    """What is left begins with a poll, whatever the recorder's size is a multiple of."""
    flight = Flight(MIN_FLIGHT, SNAPLEN)
    bench.queue.record(flight)
    bench.grant(8, 10)
    bench.write(10, 0, bytes(12) + b"\x88\xb5" + bytes(200))
    posted = 0
    for count in [1, 3, 7, 60, 2] * 30:
        post(bench, 1, [netif.TX_REQUEST.pack(8, 0, 0, n, 200) for n in range(count)], posted)
        posted += count
        bench.run()
        bench.sent()
        polls = flight.polls()
        assert sum(map(len, polls)) <= MIN_FLIGHT
        assert all(int.from_bytes(poll[:4], "little") == len(poll) for poll in polls)
    assert flight.recorded > len(flight.polls()) > 50
    assert flight.lost == 0
    found = same(flight)
    assert max(step.ring.indices["rsp_prod"] for step in found) == posted


def test_a_poll_that_does_not_fit_is_lost_with_those_before_it(bench: Bench) -> None:
    flight = Flight(MIN_FLIGHT, 1 << 20)
    bench.queue.record(flight)
    bench.grant(8, 10)
    bench.write(10, 0, bytes(12) + b"\x88\xb5" + bytes(4000))
    post(bench, 1, [netif.TX_REQUEST.pack(8, 0, 0, n, 4000) for n in range(60)])
    bench.worker.step(bench.queue)
    assert flight.lost == 1
    assert [step.poll.ring for step in same(flight)] == ["rx"]
    bench.run()
    post(bench, 1, [netif.TX_REQUEST.pack(8, 0, TxFlag.MORE_DATA, 0, 400)], 60)
    bench.run()
    assert same(flight)[-1].broken == "TX chain runs past req_prod"


def test_several_queues_are_replayed_in_the_order_of_time() -> None:
    benches = [Bench() for _ in range(3)]
    flights = [Flight(SIZE, SNAPLEN) for _ in benches]
    for bench, flight in zip(benches, flights, strict=True):
        bench.queue.record(flight)
        bench.grant(8, 10)
        bench.write(10, 0, bytes(12) + b"\x88\xb5" + bytes(200))
    for turn in range(6):
        bench = benches[turn % 3]
        post(bench, 1, [netif.TX_REQUEST.pack(8, 0, 0, turn, 200)], turn // 3)
        bench.run()
    found = steps(recording(*flights))
    assert not any(step.differs for step in found)
    served = [step.queue for step in found if any(step.poll.find("responses"))]
    assert served == [0, 1, 2, 0, 1, 2]
    assert {step.ring.ring for step in found} == {"tx", "rx", "tx-q1", "rx-q1", "tx-q2", "rx-q2"}
    for bench in benches:
        bench.close()


def test_without_a_recorder_there_is_none(bench: Bench) -> None:
    """Off again means the queue's own polls, and no more memory."""
    flight = Flight(SIZE, SNAPLEN)
    bench.queue.record(flight)
    bench.run()
    before = flight.recorded
    assert before > 0
    bench.queue.record(None)
    bench.grant(8, 10)
    post(bench, 1, [netif.TX_REQUEST.pack(8, 0, 0, 1, 200)])
    bench.run()
    assert flight.recorded == before
    assert len(bench.sent()) == 1


def test_a_changed_response_is_found(bench: Bench) -> None:
    """A backend that does otherwise differs: here the recording is of one that answered ERROR."""
    flight = Flight(SIZE, SNAPLEN)
    bench.queue.record(flight)
    bench.grant(8, 10)
    post(bench, 1, [netif.TX_REQUEST.pack(8, 0, 0, 0x5A5A, 200)])
    bench.run()
    polls = flight.polls()
    okay, error = (netif.TX_RESPONSE.pack(0x5A5A, status) for status in (0, -1))
    assert any(okay in poll for poll in polls)
    polls = [poll.replace(okay, error) for poll in polls]
    header = Header(
        device="vif7.0", saved=0.0, clock=0, snaplen=SNAPLEN, queues=(QueueHeader(len(polls), len(polls), 0),)
    )
    differs = [step.differs for step in steps(decode(encode(header, [polls]))) if step.differs]
    assert differs[0] == "its responses are others"
