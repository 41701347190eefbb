# SPDX-License-Identifier: Apache-2.0
"""`faults`: the fate of each frame beside a plain description of it, the times on a clock that the test sets, and a
worker that passes on what was held.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from netback.abi import virtio_net
from netback.abi.netif import RX_REQUEST, TX_REQUEST
from netback.abi.ring import slot_offset
from netback.abi.virtio_net import HEADER
from netback.dataplane import clock
from netback.dataplane.peers.faults import PROBABLE
from netback.dataplane.peers.filter import FilterPeer
from netback.dataplane.peers.peer import Peer
from netback.dataplane.peers.socket import SocketPeer
from netback.dataplane.states import Event, State
from netback.net.filters import Addresses, Filters, parse_filters
from tests.dataplane import offload_frames as parts
from tests.dataplane.harness import RING_PAGES, Bench
from tests.offload_oracle import TCP

PLAIN = bytes(HEADER.size)
BEGIN, MS = 1_000_000_000_000, 1_000_000
MASK = (1 << 64) - 1
PURPOSES = ("loss", "duplicate", "corrupt", "reorder", "stall", "place")


def draw(seed: int, direction: str, number: int, purpose: str) -> int:
    """splitmix64."""
    step = number * len(PURPOSES) + PURPOSES.index(purpose) + 1
    z = 2 * seed + (direction == "rx") + step * 0x9E3779B97F4A7C15 & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def fate(frames: Sequence[bytes], seed: int, direction: str, **shares: float) -> list[bytes]:
    """What is left of frames without offloads, in the order in which they leave; the last may still be held back."""
    left: list[bytes] = []
    parked: bytes | None = None
    for number, frame in enumerate(frames):

        def happens(what: str, number: int = number) -> bool:
            share = int(shares.get(what, 0) * PROBABLE)
            return bool(share) and draw(seed, direction, number, what) % PROBABLE < share

        if happens("loss"):
            continue
        if happens("corrupt"):
            bit = draw(seed, direction, number, "place") % (8 * len(frame))
            damaged = bytearray(frame)
            damaged[bit // 8] ^= 1 << bit % 8
            frame = bytes(damaged)
        if happens("reorder") and parked is None:
            parked = frame
            continue
        left += [frame, frame] if happens("duplicate") else [frame]
        if parked is not None:
            left.append(parked)
            parked = None
    return left


def numbered(count: int) -> list[bytes]:
    return [
        bytes.fromhex("ffffffffffff02000000000188b5") + number.to_bytes(4, "big") + bytes(number % 90)
        for number in range(count)
    ]


class Wire:
    """A filter whose network is a socket, with a fixed clock."""

    def __init__(self, text: str) -> None:
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.near, self.far):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        self.inner = SocketPeer(self.near.fileno(), vnet_hdr=True, owner=self.near)
        self.peer = wrap(self.inner, text)

    def sent(self) -> list[bytes]:
        frames = []
        while True:
            try:
                frames.append(self.far.recv(1 << 17)[HEADER.size :])
            except BlockingIOError:
                return frames

    def pass_tx(self, frames: Sequence[bytes]) -> list[bytes]:
        """What the network gets of the guest's frames."""
        got = []
        for at in range(0, len(frames), 32):
            burst = [PLAIN + frame for frame in frames[at : at + 32]]
            assert self.peer.send(burst) == (len(burst), 0)
            got += self.sent()
        return got

    def pass_rx(self, frames: Sequence[bytes]) -> list[bytes]:
        """What the guest gets of the network's."""
        got = []
        for at in range(0, len(frames), 32):
            for frame in frames[at : at + 32]:
                self.far.send(PLAIN + frame)
            got += self.read()
        return got or self.read()

    def read(self) -> list[bytes]:
        """All that may leave: a read of none is not the end, since frames may be held."""
        return [frame[HEADER.size :] for _ in range(16) for frame in self.peer.recv(16)]


def wrap(peer: Peer, text: str) -> FilterPeer:
    made = Filters(parse_filters([text]), Addresses()).wrap(peer)
    assert isinstance(made, FilterPeer)
    return made


@contextmanager
def wire(text: str) -> Iterator[Wire]:
    clock.fix(BEGIN)
    made = Wire(text)
    try:
        yield made
    finally:
        clock.fix(0)
        made.near.close()
        made.far.close()


MIXES = (
    {"loss": 0.1},
    {"duplicate": 0.2},
    {"corrupt": 0.3},
    {"reorder": 0.25},
    {"loss": 0.05, "duplicate": 0.1, "corrupt": 0.05, "reorder": 0.3},
    {"loss": 1.0},
    {"reorder": 1.0},
)


def spelled(shares: dict[str, float], seed: int) -> str:
    return ",".join(
        ["faults", *(f"{name}={share * 100:g}%" for name, share in shares.items()), f"seed={seed}"]
    )


@pytest.mark.parametrize("direction", ["tx", "rx"])
@pytest.mark.parametrize("shares", MIXES, ids=lambda shares: "+".join(shares))
def test_the_fate_of_each_frame(direction: str, shares: dict[str, float]) -> None:
    frames = numbered(600)
    for seed in (0, 7, 10**18 - 1):
        with wire(spelled(shares, seed)) as made:
            got = made.pass_tx(frames) if direction == "tx" else made.pass_rx(frames)
            counters = made.peer.counters
        assert got == fate(frames, seed, direction, **shares)
        assert counters[f"{direction}_faults_full"] == 0
        if shares.keys() == {"loss"}:
            assert counters[f"{direction}_faults_lost"] == 600 - len(got)


def test_the_same_seed_and_another() -> None:
    outcomes = []
    for seed in (3, 3, 4):
        with wire(f"faults,loss=30%,seed={seed}") as made:
            outcomes.append(tuple(made.pass_tx(numbered(300))))
    assert outcomes[0] == outcomes[1] != outcomes[2]


def test_one_direction_alone() -> None:
    frames = numbered(50)
    with wire("faults,loss=100%,direction=tx") as made:
        assert made.pass_tx(frames) == []
        assert made.pass_rx(frames) == frames
    with wire("faults,loss=100%,direction=rx") as made:
        assert made.pass_tx(frames) == frames
        assert made.pass_rx(frames) == []


def test_the_fate_does_not_depend_on_what_the_network_takes() -> None:
    """A frame that is offered again has the same."""
    frames = numbered(400)
    shares = {"loss": 0.2, "duplicate": 0.2, "reorder": 0.2}
    with wire(spelled(shares, 5)) as made:
        made.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        waiting, got, full = [PLAIN + frame for frame in frames], [], 0
        while waiting:
            done, refused = made.peer.send(waiting[:20])
            assert refused == 0
            full += made.peer.blocked
            del waiting[:done]
            got += made.sent()
        clock.fix(BEGIN + 100 * MS)
        made.peer.send([PLAIN + frames[0]])
        got += made.sent()
    assert full
    wanted = fate(frames, 5, "tx", **shares)
    assert got[: len(wanted)] == wanted


def test_a_damaged_frame_is_noticed() -> None:
    """Its checksum is completed before; what has no checksum of its own, a GSO frame, is lost."""
    whole = parts.build(4, TCP, bytes(400))
    header = HEADER.pack(virtio_net.F_NEEDS_CSUM, 0, 0, 0, 34, 16)
    gso = HEADER.pack(virtio_net.F_NEEDS_CSUM, virtio_net.GSO_TCPV4, 54, 100, 34, 16)
    with wire("faults,corrupt=100%") as made:
        assert made.peer.send([header + whole, gso + whole]) == (2, 0)
        (got,) = [made.far.recv(1 << 16)]
        assert made.sent() == []
        assert made.peer.counters["tx_faults_corrupted"] == 2
    assert got[: HEADER.size] == PLAIN
    completed = bytearray(whole)
    from netback.dataplane import offload

    offload.complete(completed, (virtio_net.F_NEEDS_CSUM, 0, 0, 0, 34, 16))
    differing = [a ^ b for a, b in zip(got[HEADER.size :], completed, strict=True) if a != b]
    assert len(differing) == 1
    assert differing[0].bit_count() == 1


@pytest.mark.parametrize("direction", ["tx", "rx"])
def test_a_delay(direction: str) -> None:
    frames = numbered(100)
    with wire("faults,delay=10ms") as made:
        passing = made.pass_tx if direction == "tx" else made.pass_rx
        assert passing(frames[:50]) == []
        clock.fix(BEGIN + 9 * MS)
        assert passing(frames[50:]) == []
        clock.fix(BEGIN + 10 * MS)
        if direction == "tx":
            made.peer.send([PLAIN + frames[0]])
            assert made.sent() == frames[:50]
        else:
            assert passing([]) == frames[:50]
        clock.fix(BEGIN + 19 * MS)
        if direction == "tx":
            made.peer.send([PLAIN + frames[0]])
            assert made.sent() == frames[50:]
        else:
            assert passing([]) == frames[50:]


def test_memory_is_bounded() -> None:
    """By the number of frames and by their bytes; what is more is lost, and counted."""
    with wire("faults,delay=10s") as made:
        assert made.pass_tx(numbered(3000)) == []
        assert made.peer.counters["tx_faults_full"] == 3000 - 1022
    with wire("faults,delay=10s") as made:
        for _ in range(400):
            assert made.peer.send([PLAIN + bytes(65000)]) == (1, 0)
        held = 400 - made.peer.counters["tx_faults_full"]
        assert held * 65000 < 16 << 20
        assert held > 200


def test_a_stall_takes_nothing() -> None:
    """And loses nothing: the frames stay where they are."""
    frames = numbered(20)
    with wire("faults,stall=100%,pause=50ms,direction=tx") as made:
        done, refused = made.peer.send([PLAIN + frame for frame in frames])
        assert (done, refused, made.peer.blocked) == (1, 0, True)
        assert made.sent() == []
        clock.fix(BEGIN + 50 * MS)
        assert made.peer.send([PLAIN + frame for frame in frames[1:]])[0] == 1
        assert made.sent() == frames[:1]
    with wire("faults,stall=100%,pause=50ms,direction=rx") as made:
        for frame in frames:
            made.far.send(PLAIN + frame)
        assert made.peer.recv(1) == []
        assert made.peer.recv(1) == []
        clock.fix(BEGIN + 50 * MS)
        assert made.peer.recv(1) == [PLAIN + frames[0]]
        assert made.peer.recv(1) == []  # the next one stalls, too
        clock.fix(BEGIN + 100 * MS)
        assert made.peer.recv(16) == [PLAIN + frames[1]]


class Guest(Bench):
    """A guest behind the filter, whose worker's clock the test sets."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.peer = wrap(self.peer, text)
        self.worker.set_peer(self.queue, self.peer)
        self.posted = [0, 0]
        for gref in range(10, 300):
            self.grant(gref, gref)

    def transmit(self, frame: bytes) -> None:
        at = self.posted[0]
        self.write(10 + at % 100, 0, frame)
        request = TX_REQUEST.pack(10 + at % 100, 0, 0, at % 256, len(frame))
        self.write(RING_PAGES[0], slot_offset(at, 12), request)
        self.posted[0] += 1
        self.write(RING_PAGES[0], 0, self.posted[0].to_bytes(4, "little"))

    def post(self) -> None:
        at = self.posted[1]
        self.write(RING_PAGES[1], slot_offset(at, 8), RX_REQUEST.pack(at % 256, 0, 110 + at % 100))
        self.posted[1] += 1
        self.write(RING_PAGES[1], 0, self.posted[1].to_bytes(4, "little"))

    def serve(self, event: Event = Event.RING) -> None:
        while self.worker.apply(self.queue, event):
            event = Event.POLL

    def at(self, ms: int) -> None:
        """Move the clock, and end the timers that are due."""
        clock.fix(BEGIN + ms * MS)
        self.worker.end_timers()
        self.serve(Event.POLL)

    def network(self) -> list[bytes]:
        return [frame[HEADER.size :] for frame in self.sent()]


@contextmanager
def served(text: str) -> Iterator[Guest]:
    clock.fix(BEGIN)
    made = Guest(text)
    try:
        made.serve()
        yield made
    finally:
        made.close()
        clock.fix(0)


def test_the_worker_passes_on_what_is_due() -> None:
    """Without another frame, and also to a ring without slots once it has some."""
    frames = numbered(8)
    with served("faults,delay=10ms") as guest:
        for frame in frames[:3]:
            guest.transmit(frame)
        guest.serve()
        assert guest.queue.rings["tx"]["rsp_prod"] == 3
        assert guest.network() == []
        guest.at(9)
        assert guest.network() == []
        guest.at(10)
        assert guest.network() == frames[:3]
        assert guest.peer_end is not None
        for frame in frames[3:6]:
            guest.peer_end.send(PLAIN + frame)
        guest.post()
        guest.serve()
        assert guest.queue.rings["rx"]["rsp_prod"] == 0
        guest.at(20)
        assert guest.queue.rings["rx"]["rsp_prod"] == 1
        assert guest.queue.states[1] is State.NO_SLOTS
        guest.post()
        guest.post()
        guest.serve()
        assert guest.queue.rings["rx"]["rsp_prod"] == 3


def test_a_stalled_network_is_not_watched() -> None:
    """Its descriptor stays readable: the worker would spin."""
    with served("faults,stall=100%,pause=50ms,direction=rx") as guest:
        assert guest.peer_end is not None
        for _ in range(4):
            guest.post()
        for frame in numbered(3):
            guest.peer_end.send(PLAIN + frame)
        guest.serve(Event.FRAMES)
        assert "frames" not in guest.worker.waits(guest.queue)[0]
        guest.transmit(numbered(1)[0])
        guest.serve()
        assert "frames" not in guest.worker.waits(guest.queue)[0]
        for turn in range(1, 5):
            guest.at(50 * turn)
        assert guest.queue.rings["rx"]["rsp_prod"] == 3
        assert "frames" in guest.worker.waits(guest.queue)[0]


def test_a_filter_that_is_taken_away_lets_go_what_it_holds() -> None:
    """Both ways, in order and before any later frame."""
    frames = numbered(40)
    with served("faults,delay=10s,reorder=50%,seed=1") as guest:
        assert guest.peer_end is not None
        for frame in frames[:10]:
            guest.transmit(frame)
            guest.peer_end.send(PLAIN + frame)
        for _ in range(20):
            guest.post()
        guest.serve(Event.RING)
        guest.serve(Event.FRAMES)
        assert guest.network() == []
        assert guest.queue.rings["rx"]["rsp_prod"] == 0
        inner = guest.peer.inner  # type: ignore[attr-defined]
        guest.worker.set_peer(guest.queue, inner)
        for frame in frames[10:12]:
            guest.transmit(frame)
        guest.serve()
        got = guest.network()
        assert sorted(got) == sorted(frames[:12])
        assert got[-2:] == frames[10:12]
        assert guest.queue.rings["rx"]["rsp_prod"] == 10
