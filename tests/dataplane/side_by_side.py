# SPDX-License-Identifier: Apache-2.0
"""The native queue and the oracle, side by side on equal memory: any difference is a fault of one of them.

After every poll this compares each byte of the guest's memory, every frame that reached the network with its header,
whether the guest was notified, and whether it broke the protocol. Used by tests and fuzzers.
"""

import struct
from collections.abc import Iterator

from netback.dataplane import clock
from netback.dataplane.credit import Credit
from netback.dataplane.staged import Staged
from netback.dataplane.states import State
from netback.dataplane.toeplitz import Toeplitz
from tests.dataplane.harness import FAR_PORT, FAR_RX_PORT, RING_PAGES, Bench
from tests.dataplane.ring_cases import HEADS, PAGES, Case, Deliver, Guest, Op, Send, truthful
from tests.oracle import INDEX, PAGE, SLOTS, Burst, Frame, Oracle

HEADER = struct.Struct("=BBHHHH")
NEEDS_CSUM, DATA_VALID = 1, 2
VIRTIO_GSO = (0, 1, 4)
"""netif's GSO types as virtio_net_hdr counts them."""
TCP_CHECK = 16
BEGIN = 1_000_000_000
REQ_EVENT, RSP_PROD = 4, 8
"""Indices in a ring's page."""
EVERYTHING, CHECKSUMS = 15, 3
"""What a guest takes, with and without scatter-gather."""


def folded(data: bytes) -> int:
    """Internet sum of an even number of bytes."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def tcp_header(frame: Frame) -> tuple[bytes, int]:
    """The virtio_net_hdr of a truthful frame that asks for work, and where its TCP header begins."""
    payload = HEADS[frame.data[12] == 0x86]
    gso = VIRTIO_GSO[frame.gso_type]
    head = (payload, frame.gso_size) if gso else (0, 0)
    return HEADER.pack(NEEDS_CSUM, gso, *head, payload - 20, TCP_CHECK), payload - 20


def to_network(frame: Frame) -> bytes | None:
    """What a peer with every offload gets for a frame from the guest; None if its request cannot be met."""
    if not frame.csum_blank and not frame.gso_type:
        return HEADER.pack(DATA_VALID * frame.data_validated, 0, 0, 0, 0, 0) + frame.data
    if not truthful(frame.data):
        return None
    header, tcp = tcp_header(frame)
    addresses = frame.data[26:34] if tcp == HEADS[0] - 20 else frame.data[22:54]
    pseudo = folded(addresses + struct.pack(">HHH", 6, 0, len(frame.data) - tcp))
    check = tcp + TCP_CHECK
    return header + frame.data[:check] + struct.pack(">H", pseudo) + frame.data[check + 2 :]


def from_network(frame: Frame) -> bytes:
    """What the peer must send for this frame to reach the guest."""
    header = (
        tcp_header(frame)[0]
        if frame.csum_blank
        else HEADER.pack(DATA_VALID * frame.data_validated, 0, 0, 0, 0, 0)
    )
    return header + frame.data


class Pair:
    """One case on both. `operations` counts what was played."""

    def __init__(self, case: Case) -> None:
        config = case.config
        caps = EVERYTHING if config.sg else CHECKSUMS
        self.bench = Bench(
            pages=PAGES,
            caps=caps,
            sg=config.sg,
            rx_offset=0 if config.xdp else config.rx_offset,
            start=case.start,
            split=case.split,
            rx_unannounced=case.polled,
        )
        self.bench.queue.change(
            multicast_control=config.multicast_control, xdp_headroom=config.rx_offset if config.xdp else 0
        )
        if config.staged:
            guest = self.bench.guest
            pages = {
                gref: (guest.page_address(frame), not readonly) for gref, frame, readonly in config.staged
            }
            self.bench.queue.set_staged(Staged(pages))
        if config.hash_types:
            self.bench.queue.set_hash(Toeplitz(config.hash_key, config.hash_types))
        assert self.bench.notified(), "attaching tells the guest once, whatever the rings say"
        if case.limited:
            clock.fix(BEGIN)
            credits = (Credit(1000, 1000, now=BEGIN) for _ in range(2))
            self.bench.worker.limit(self.bench.queue, *credits)
        self.native = Guest(self.bench.memory, case)
        self.memory = bytearray(PAGES * PAGE)
        self.model = Guest(self.memory, case)
        self.oracle = Oracle(self.memory, config)
        self.case, self.most = case, 0
        self.queued = list[Frame]()
        self.operations = 0

    def close(self) -> None:
        self.bench.close()
        clock.fix(0)

    def play(self) -> None:
        """All operations, or those up to the one that ends the vif."""
        for op in self.case.ops:
            self.operations += 1
            if not self.apply(op):
                break

    def apply(self, op: Op) -> bool:
        if isinstance(op, Send | Deliver):
            return self.look([spec.frame() for spec in op.specs] if isinstance(op, Deliver) else [])
        self.native.apply(op)
        self.model.apply(op)
        return True

    def index(self, memory: "bytearray | Bench", at: int) -> int:
        source = memory.memory if isinstance(memory, Bench) else memory
        return int(INDEX.unpack_from(source, RING_PAGES[1] * PAGE + at)[0])

    def fits_this_guest(self, frame: Frame) -> bool:
        """GSO for which a guest never had slots is segmented in software; that is outside the rings' comparison."""
        return not frame.gso_type or (self.case.config.sg and self.oracle.needed(frame) <= self.most)

    def queue_frames(self, frames: list[Frame]) -> None:
        """Give the peer what fits into its socket; the rest does not count."""
        posted = (self.index(self.memory, 0) - self.index(self.memory, 8)) % 2**32
        self.most = max(self.most, posted if posted <= SLOTS else 0)
        assert self.bench.peer_end is not None
        for frame in filter(self.fits_this_guest, frames):
            try:
                self.bench.peer_end.send(from_network(frame))
            except BlockingIOError:
                return
            self.queued.append(frame)

    def native_bursts(self) -> Iterator[bytes]:
        """Poll until nothing is left; the network takes frames between polls."""
        for _ in range(10 * SLOTS):
            more = self.bench.worker.step(self.bench.queue) or self.credit_came()
            yield from self.bench.sent()
            if not more:
                return
        raise AssertionError("the queue never came to rest")

    def credit_came(self) -> bool:
        """Let some time pass if frames wait for credit; returns whether they did. It is too short for other timers."""
        if State.NO_CREDIT not in self.bench.queue.states:
            return False
        clock.fix(clock.now() + 100_000)
        self.bench.worker.end_timers()
        return True

    def look(self, frames: list[Frame]) -> bool:
        """Both handle both rings, and must agree; False once the guest broke the protocol."""
        self.queue_frames(frames)
        sent = list(self.native_bursts())
        tx = self.oracle.tx()
        rx = self.rx_until_fatal(tx) if tx.fatal else self.oracle.rx(self.queued)
        self.queued = self.queued[rx.taken :]
        wanted = [data for data in map(to_network, tx.sent) if data is not None]
        assert [len(data) for data in sent] == [len(data) for data in wanted]
        assert sent == wanted
        assert self.bench.notified_ports() == self.wanted_ports(tx, rx)
        assert bool(self.bench.queue.broken) == bool(tx.fatal or rx.fatal), (
            self.bench.queue.broken,
            tx.fatal,
            rx.fatal,
        )
        if tx.fatal:
            self.copy_index(RING_PAGES[1], REQ_EVENT)
        self.compare_memory(rx)
        return not tx.fatal and not rx.fatal

    def wanted_ports(self, tx: Burst, rx: Burst) -> set[int]:
        """The guest's ports that must be notified."""
        of_rx = FAR_RX_PORT if self.case.split else FAR_PORT
        return {port for port, burst in ((FAR_PORT, tx), (of_rx, rx)) if burst.notify}

    def rx_until_fatal(self, tx: Burst) -> Burst:
        """Apply to the model the frames that native delivered before it came to the fatal chain.

        Native serves both rings in turn, one burst each, and a TX burst may end before that chain: RX then has had its
        bursts. How many is not compared, the fate of each frame is. The model delivers as many frames as fill the slots
        that native used; the index for which RX was armed is not compared.
        """
        used = (self.index(self.bench, RSP_PROD) - self.index(self.memory, RSP_PROD)) % 2**32
        if not used:
            return Burst(fatal=tx.fatal)
        self.oracle.fatal = ""
        for count in range(1, len(self.queued) + 1):
            trial = Oracle(bytearray(self.memory), self.case.config)
            trial.multicast = self.oracle.multicast
            before = trial.rx_ring.next
            trial.rx(self.queued[:count])
            if (trial.rx_ring.next - before) % 2**32 == used:
                rx = self.oracle.rx(self.queued[:count])
                self.oracle.fatal = tx.fatal
                return rx
        raise AssertionError(f"no number of frames fills the {used} RX slots that native used")

    def copy_index(self, page: int, at: int) -> None:
        """Adopt an index of native's that the rules leave open."""
        INDEX.pack_into(
            self.memory, page * PAGE + at, INDEX.unpack_from(self.bench.memory, page * PAGE + at)[0]
        )

    def next_need(self) -> int:
        """The slots of the first waiting frame that can fit at all."""
        waiting = (frame for frame in self.queued if self.oracle.wanted(frame) and self.oracle.fits(frame))
        return next(map(self.oracle.needed, waiting), 1)

    def compare_memory(self, rx: Burst) -> None:
        """Every byte, but for RX req_event: where no frame waits it may lie anywhere in the past; where no slot is left
        it may ask for all that the next frame needs, if native has read it already, and not for one alone.
        """
        ours, theirs = self.index(self.memory, 4), self.index(self.bench, 4)
        exact = rx.wanted == 1 and theirs == (ours - 1 + self.next_need()) % 2**32
        if ours != theirs and (exact or not rx.wanted):
            waited = (self.index(self.memory, 0) - theirs) % 2**32 < 2**31
            assert exact or waited, "RX is armed, and no frame waits"
            INDEX.pack_into(self.memory, RING_PAGES[1] * PAGE + 4, theirs)
        if self.bench.memory[:] != self.memory:
            raise AssertionError(self.differences())

    def differences(self) -> str:
        native = self.bench.memory[:]
        places = [i for i, (a, b) in enumerate(zip(native, self.memory, strict=True)) if a != b]
        lines = [
            f"page {i // PAGE} byte {i % PAGE}: native {native[i]:#x}, oracle {self.memory[i]:#x}"
            for i in places[:20]
        ]
        return f"{len(places)} bytes differ\n" + "\n".join(lines)


def run(case: Case) -> int:
    """Play a case on both: how many operations it had."""
    pair = Pair(case)
    try:
        pair.play()
    finally:
        pair.close()
    return pair.operations
