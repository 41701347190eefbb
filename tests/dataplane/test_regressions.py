# SPDX-License-Identifier: Apache-2.0
"""Faults that the data plane once had, each in the smallest setting that reproduces it."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from netback.abi.netif import EXTRA_GSO, RX_REQUEST, TX_REQUEST, ExtraType, TxFlag
from netback.abi.ring import PAGE_SIZE, slot_offset
from netback.abi.virtio_net import HEADER
from netback.dataplane.front.queue import FrontQueue
from netback.dataplane.link import Link
from netback.dataplane.notices import Notice
from netback.dataplane.peers.null import NullPeer
from netback.dataplane.peers.socket import SocketPeer
from netback.dataplane.platform.emulated_events import EmulatedEvents
from netback.dataplane.thread import Listener, WorkerThread
from netback.dataplane.worker import Worker
from netback.net.tap import TapNetwork
from tests.dataplane.harness import RING_PAGES, Bench, address_of
from tests.dataplane.offload_frames import build
from tests.net.namespace import ip, new_network, tc, veth
from tests.offload_oracle import TCP

TX_PAGE, RX_PAGE = RING_PAGES
SECONDS = 60.0
LARGEST = 65536 + 512
"""FRAME_BYTES of dataplane/peers/peer.pxd."""


@contextmanager
def bench(**options: Any) -> Iterator[Bench]:
    made = Bench(**options)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def served(worker: Worker) -> Iterator[WorkerThread]:
    thread = WorkerThread(worker)
    try:
        yield thread
    finally:
        thread.stop()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came so"


def publish(bench: Bench, page: int, req_prod: int) -> None:
    ctypes.c_uint32.from_buffer(bench.memory, page * PAGE_SIZE).value = req_prod


def put(bench: Bench, at: int, frame: bytes, flags: int = 0) -> None:
    """A TX request of one slot, in its own page."""
    bench.grant(10 + at, 10 + at)
    bench.write(10 + at, 0, frame)
    slot = TX_REQUEST.pack(10 + at, 0, flags, at, len(frame))
    bench.write(TX_PAGE, slot_offset(at, 12), slot)


def put_gso(bench: Bench, at: int, frame: bytes, size: int) -> None:
    """A TX request and its GSO extra."""
    put(bench, at, frame, TxFlag.CSUM_BLANK | TxFlag.EXTRA_INFO)
    extra = EXTRA_GSO.pack(ExtraType.GSO, 0, size, 1, 0, 0).ljust(12, b"\0")
    bench.write(TX_PAGE, slot_offset(at + 1, 12), extra)


def post_buffers(bench: Bench, count: int) -> None:
    for at in range(count):
        bench.grant(300 + at, 300 + at)
        bench.write(RX_PAGE, slot_offset(at, 8), RX_REQUEST.pack(at, 0, 300 + at))
    publish(bench, RX_PAGE, count)


def answered(bench: Bench) -> int:
    return bench.queue.rings["tx"]["rsp_prod"]


def narrow(bench: Bench) -> None:
    """A network that soon accepts no more."""
    assert bench.our_end is not None
    bench.our_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


def let_through(bench: Bench, frames: int) -> list[bytes]:
    """Let the worker serve, and read the network until it has received so many frames."""
    sent: list[bytes] = []
    with served(bench.worker):
        until(lambda: bool(sent.extend(bench.sent())) or len(sent) >= frames)
    return sent


def test_unannounced_slots_are_looked_for_once_a_millisecond() -> None:
    """The fault: one look at the link made it runnable for ever, and the worker did nothing else."""
    with bench() as b:
        b.worker.remove(b.queue)
        b.options["rx_unannounced"] = True
        b.attach()
        with served(b.worker):
            until(lambda: b.worker.wakes > 5)
            wakes, began = b.worker.wakes, time.monotonic()
            until(lambda: b.worker.wakes >= wakes + 50)
            assert time.monotonic() - began > 0.04, (
                "each wait for slots lasts a millisecond, however late it ends"
            )
            post_buffers(b, 1)
            assert b.peer_end is not None
            b.peer_end.send(bytes(10 + 60))
            until(lambda: b.queue.rings["rx"]["rsp_prod"] == 1)


def test_a_network_that_goes_while_it_is_full_holds_up_no_guest() -> None:
    """The fault: the worker waited for room at a peer that had hung up."""
    with bench() as b:
        narrow(b)
        post_buffers(b, 8)
        for at in range(60):
            put(b, at, bytes(1000))
        publish(b, TX_PAGE, 60)
        b.run()
        assert b.queue.blocked == (True, False)
        assert b.peer_end is not None
        b.peer_end.close()
        b.peer_end = None
        until(lambda: bool(b.run()) or b.peer.closed)
        assert answered(b) == 60


def test_what_is_tried_again_is_counted_once() -> None:
    with bench(peer_caps=0) as b:
        narrow(b)
        good, bad = build(4, TCP, bytes(200)), bytes(60)
        for at in range(64):
            put(b, at, good if at < 60 else bad, TxFlag.CSUM_BLANK)
        publish(b, TX_PAGE, 64)
        b.run()
        assert answered(b) < 60
        assert len(let_through(b, 60)) == 60
        assert b.queue.counters["tx_full"] > 0
        assert (b.queue.counters["tx_completed"], b.queue.counters["tx_dropped"]) == (60, 4)


def test_a_stall_is_counted_once() -> None:
    with bench() as b:
        for _ in range(5):
            b.run()
        assert b.queue.counters["rx_stalls"] == 1
        assert b.peer_end is not None
        b.peer_end.send(bytes(10 + 60))
        post_buffers(b, 1)
        b.run()
        b.peer_end.send(bytes(10 + 60))
        for _ in range(5):
            b.run()
        assert b.queue.rings["rx"]["rsp_prod"] == 1
        assert b.queue.counters["rx_stalls"] == 2


def test_a_frame_that_changes_between_two_tries_costs_no_other_frame() -> None:
    """The fault: the position in a frame whose segments the peer interrupted was used for the next segmented frame."""
    with bench(peer_caps=0) as b:
        narrow(b)
        frame = build(4, TCP, bytes(3000))
        put_gso(b, 0, frame, 100)
        publish(b, TX_PAGE, 2)
        b.run()
        assert answered(b) == 0
        assert 0 < len(b.sent()) < 30
        b.write(10, 0, bytes(100))
        put_gso(b, 2, frame, 100)
        publish(b, TX_PAGE, 4)
        assert len(let_through(b, 30)) == 30
        assert b.queue.counters["tx_dropped"] == 1


def test_a_burst_of_cuts_is_bounded_by_its_segments() -> None:
    """The fault: 64 small frames in segments of 8 bytes were 16,000 frames in one poll."""
    with bench(peer=NullPeer()) as b:
        frame = build(4, TCP, bytes(2000))
        for at in range(0, 128, 2):
            put_gso(b, at, frame, 8)
        publish(b, TX_PAGE, 128)
        b.worker.step(b.queue)
        assert b.queue.counters["tx_segmented"] * 250 <= 256
        b.run()
        assert answered(b) == 128
        assert b.queue.counters["tx_segmented"] == 64


def test_busy_queues_do_not_keep_the_worker_from_looking_up() -> None:
    """The fault: 64 rounds of polls took 7 seconds, in which no other guest's event was seen."""
    with ExitStack() as stack:
        benches = [stack.enter_context(bench(peer=NullPeer())) for _ in range(8)]
        worker = Worker(benches[0].events)
        frame = build(4, TCP, bytes(2000))
        for b in benches:
            for at in range(0, 128, 2):
                put_gso(b, at, frame, 8)
            publish(b, TX_PAGE, 128)
            b.worker.remove(b.queue)
            worker.add(b.queue)
            stack.callback(worker.remove, b.queue)
        with served(worker):
            until(lambda: all(answered(b) == 128 for b in benches))
        assert worker.wakes >= 4


def tap_frontend(network: TapNetwork) -> tuple[FrontQueue, Worker]:
    """A frontend's queue on its own memory, without a backend."""
    memory, pages = mmap.mmap(-1, 514 * PAGE_SIZE), mmap.mmap(-1, PAGE_SIZE)
    at = address_of(memory)
    events = EmulatedEvents(
        os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), address_of(pages), lambda _port: None
    )
    granted = [(at + (2 + i) * PAGE_SIZE, i) for i in range(512)]
    queue = FrontQueue(
        events,
        network.peers[0],
        tx_ring=at,
        rx_ring=at + PAGE_SIZE,
        tx_pages=granted[:256],
        rx_pages=granted[256:],
        tx_port=3,
        rx_port=3,
        caps=0,
        sg=True,
        keep=(memory, pages),
    )
    return queue, Worker(events)


def test_a_removed_tap_is_left_alone_by_a_frontend() -> None:
    """The fault: the descriptor is ready for ever, and the worker read it for ever."""
    with new_network():
        network = TapNetwork("gone0")
        ip("link set gone0 up")
        queue, worker = tap_frontend(network)
        worker.add(queue)
        with served(worker) as thread:
            ip("link delete gone0")
            until(lambda: network.peers[0].closed)
            wakes = worker.wakes
            for _ in range(5):
                thread.submit(lambda _worker: None).result(SECONDS)
            assert worker.wakes <= wakes + 6, "it wakes for reported events only"
            assert queue.counters["tx_faults"] == 1
        worker.remove(queue)
        network.close()


@contextmanager
def packet_bench(link: str) -> Iterator[Bench]:
    """A queue whose peer is a packet socket on a link."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as end:
        end.bind((link, 3))
        end.setblocking(False)
        with bench(peer=SocketPeer(end.fileno(), owner=end)) as b:
            yield b


def ethernet(length: int) -> bytes:
    return bytes(12) + b"\x88\xb5" + bytes(length - 14)


def test_a_full_link_behind_a_writable_socket_is_waited_for_and_not_for_ever() -> None:
    """ENOBUFS from a packet socket: the link's queue is full, and POLLOUT comes at once, and again. The fault: the
    worker tried again for ever, at every pass while another link was busy.
    """
    with new_network():
        veth("full0", "full1")
        tc("qdisc add dev full0 root tbf rate 800kbit burst 2000 limit 4000")
        with packet_bench("full0") as b:
            for at in range(60):
                put(b, at, ethernet(1014))
            publish(b, TX_PAGE, 60)
            began = time.monotonic()
            with served(b.worker):
                until(lambda: answered(b) == 60)
            windows = 1 + int((time.monotonic() - began) / 0.2)
            assert 0 < b.queue.counters["tx_refused"] < 60
            assert 0 < b.queue.counters["tx_full"] <= 21 * windows, (
                "a try a millisecond, for 20 ms of any 200"
            )


def test_a_frame_that_is_refused_for_ever_is_lost_alone() -> None:
    """ENOBUFS also reports frames that the far end, a filter or a shaper always drops. The fault: the queue stopped."""
    with new_network():
        veth("near0", "far0")
        ip("link set far0 mtu 1000")
        with packet_bench("near0") as b:
            for at in range(20):
                put(b, at, ethernet(1200 if at == 1 else 60))
            publish(b, TX_PAGE, 20)
            with served(b.worker):
                until(lambda: answered(b) == 20)
            assert b.queue.counters["tx_refused"] == 1
            assert b.queue.counters["tx_full"] > 0


def test_one_frame_in_small_segments_takes_several_polls() -> None:
    """The fault: 2045 writes of one guest's frame were one poll, and every other guest waited for them."""
    with bench(peer=NullPeer()) as b:
        frame = build(4, TCP, bytes(2000 * 8))
        for at, part in enumerate(frame[i : i + PAGE_SIZE] for i in range(0, len(frame), PAGE_SIZE)):
            b.grant(10 + at, 10 + at)
            b.write(10 + at, 0, part)
        slots = -(-len(frame) // PAGE_SIZE)
        put_slots(b, len(frame), slots, 8)
        publish(b, TX_PAGE, slots + 1)
        polls = 1
        while b.worker.step(b.queue) and answered(b) == 0:
            polls += 1
        assert 2000 / 256 <= polls <= 2000 / 256 + 2
        assert answered(b) == slots + 1
        assert b.queue.counters["tx_segmented"] == 1


def put_slots(bench: Bench, length: int, slots: int, size: int) -> None:
    """One GSO frame in its own pages, from gref 10 on."""
    flags = TxFlag.CSUM_BLANK | TxFlag.EXTRA_INFO | TxFlag.MORE_DATA
    bench.write(TX_PAGE, slot_offset(0, 12), TX_REQUEST.pack(10, 0, flags, 0, length))
    extra = EXTRA_GSO.pack(ExtraType.GSO, 0, size, 1, 0, 0).ljust(12, b"\0")
    bench.write(TX_PAGE, slot_offset(1, 12), extra)
    for at in range(1, slots):
        last = at == slots - 1
        part = length - at * PAGE_SIZE if last else PAGE_SIZE
        more = 0 if last else TxFlag.MORE_DATA
        bench.write(TX_PAGE, slot_offset(at + 1, 12), TX_REQUEST.pack(10 + at, 0, more, at, part))


def test_a_tag_put_back_leaves_a_frame_within_its_buffer() -> None:
    """The fault: four bytes more than were read, so a frame that filled its buffer overran it in the backlog."""
    with new_network():
        ip("link set lo mtu 66100")
        ip("link set lo up")
        with (
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as end,
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as far,
        ):
            end.bind(("lo", 3))
            end.setblocking(False)
            end.setsockopt(263, 8, 1)
            end.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)
            far.bind(("lo", 0))
            far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
            peer = SocketPeer(end.fileno(), auxdata=True, owner=end)
            for length in (64, LARGEST - 4, LARGEST, LARGEST + 1, LARGEST + 4):
                frame = bytes(12) + b"\x81\x00\x00\x05\x88\xb5" + bytes(length - 18)
                far.send(frame)
                came = [message[10:] for message in peer.recv()]
                assert (frame in came) == (length <= LARGEST)
                assert all(len(message) <= LARGEST for message in came)


FULL = """
import sys
from netback.dataplane.journal import Journal
try:
    Journal(sys.argv[1]).clear()
except OSError as error:
    print(error.strerror)
"""


def test_a_journal_on_a_full_file_system_is_an_error_and_no_signal(tmp_path: Path) -> None:
    """A hole in the file would raise SIGBUS at the first response."""
    fill = 'mount -t tmpfs -o size=4k none "$0" && head -c 4096 /dev/zero > "$0/x" && exec "$1" -c "$2" "$0/journal"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", fill, str(tmp_path), sys.executable, FULL],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "No space left on device\n"), done.stderr


def test_a_queue_that_no_worker_serves_is_refreshed_in_vain() -> None:
    """A removed link must not become runnable: its index in the worker's table is empty, or another queue's."""
    with bench() as b:
        b.worker.remove(b.queue)
        put(b, 0, bytes(1000))
        publish(b, TX_PAGE, 1)
        with served(b.worker) as thread:
            for _ in range(
                2
            ):  # the first makes it runnable, where that is wrong; the second follows a pass over such
                thread.submit(lambda worker: worker.refresh(b.queue)).result(SECONDS)
        assert answered(b) == 0
        assert b.sent() == []


def test_a_removed_queue_that_was_refused_serves_again() -> None:
    """The fault: Worker.remove left RX refused."""
    with bench() as b:
        post_buffers(b, 1)
        b.worker.refuse_rx(b.queue)
        assert b.peer_end is not None
        b.peer_end.send(bytes(10 + 60))
        b.run()
        assert b.queue.rings["rx"]["rsp_prod"] == 0
        b.worker.remove(b.queue)
        b.worker.add(b.queue)
        b.run()
        assert b.queue.rings["rx"]["rsp_prod"] == 1


def test_a_guest_that_posts_fewer_buffers_than_once_gets_its_gso_frames_segmented() -> None:
    """The fault: the most slots ever posted counted for the queue's life, so a frame of 17 slots waited for ever."""
    with bench() as b:
        posted = 256
        post_buffers(b, posted)
        assert b.peer_end is not None
        for _ in range(posted):
            b.peer_end.send(bytes(10 + 60))
            b.run()
        assert b.queue.rings["rx"]["rsp_prod"] == posted
        frame = build(4, TCP, bytes(60_000))
        b.peer_end.send(HEADER.pack(1, 1, 54, 1448, 34, 16) + frame)
        with served(b.worker):
            until(lambda: lacks_slots(b))
            posted += 8
            publish(b, RX_PAGE, posted)
            until(lambda: b.queue.rings["rx"]["rsp_prod"] > 256)
            while b.queue.counters["rx_segmented"] == 0:
                done = b.queue.rings["rx"]["rsp_prod"]
                posted = done + 8
                publish(b, RX_PAGE, posted)
                b.ring_the_bell()
                until(lambda done=done: b.queue.rings["rx"]["rsp_prod"] > done)  # type: ignore[misc]


def lacks_slots(bench: Bench) -> bool:
    return bench.queue.blocked[1]


class Scripted:
    """A worker whose rounds are functions: their results, and what happens meanwhile."""

    def __init__(self, *turns: Callable[[], list[tuple[Link, Notice]]]) -> None:
        self._turns = list(turns)
        self._wake = threading.Event()

    def run(self) -> list[tuple[Link, Notice]]:
        if self._turns:
            return self._turns.pop(0)()
        assert self._wake.wait(SECONDS)
        self._wake.clear()
        return []

    def add(self, link: Link) -> None:
        """A link is served from its making on."""

    def records(self) -> tuple[bytes, int]:
        return b"", 0

    def wake(self) -> None:
        self._wake.set()


def test_a_broken_queue_is_reported_before_another_takes_its_place() -> None:
    """The listener is looked up by the queue's index, which a call may assign to the next queue."""
    happened: list[str] = []
    thread: WorkerThread
    ready = threading.Event()

    def serves() -> list[tuple[Link, Notice]]:
        assert ready.wait(SECONDS)
        return []

    def breaks() -> list[tuple[Link, Notice]]:
        thread.submit(lambda _: happened.append("call"))
        return [(b.queue, Notice.BROKEN)]

    with bench() as b:
        thread = WorkerThread(cast(Worker, Scripted(serves, breaks)))
        thread.add(b.queue, Listener(lambda notice: happened.append(notice.name)))
        ready.set()
        thread.submit(lambda _: None).result(SECONDS)
        thread.stop()
    assert happened == ["BROKEN", "call"]


def test_what_is_submitted_to_a_thread_that_ended_is_done() -> None:
    """A dead worker is a normal state for callers that take links down (XSA-374): no call waits for it."""
    with bench() as b:
        with served(b.worker) as thread:
            pass
        assert thread.submit(lambda worker: worker is b.worker).result(0)


def test_a_hung_up_peer_is_reported_and_another_takes_its_place() -> None:
    """The fault: `Peer.closed` was never read, so a dead network left a connected vif without one."""
    heard: list[Notice] = []
    with bench() as b, bench() as other:
        post_buffers(b, 1)
        b.worker.remove(b.queue)
        thread = WorkerThread(b.worker)
        thread.add(b.queue, Listener(heard.append))
        try:
            assert b.peer_end is not None
            b.peer_end.close()
            b.peer_end = None
            until(lambda: heard == [Notice.PEER_GONE])
            other.worker.remove(other.queue)
            thread.submit(lambda worker: worker.set_peer(b.queue, other.peer)).result(SECONDS)
            until(lambda: heard[1:] == [Notice.READY])
            assert other.peer_end is not None
            other.peer_end.send(bytes(10 + 60))
            until(lambda: b.queue.rings["rx"]["rsp_prod"] == 1)
        finally:
            thread.stop()


def test_messages_that_are_no_frame_are_counted() -> None:
    """The fault: two kinds of lost frames were not counted."""
    with bench() as b:
        post_buffers(b, 8)
        assert b.peer_end is not None
        b.peer_end.send(bytes(10))
        b.peer_end.send(bytes(10 + LARGEST))
        b.peer_end.send(bytes(10 + 60))
        b.run()
        counters = b.queue.counters
        assert (counters["rx_short"], counters["rx_truncated"], counters["rx_frames"]) == (1, 1, 1)


def test_frames_of_more_than_64_kib_arrive_once_one_was_seen() -> None:
    """BIG TCP from a packet socket: the first frame counts as truncated, and then reads have room for more for a
    while.
    """
    with bench() as b:
        post_buffers(b, 256)
        head = bytearray(build(4, TCP, b""))
        head[16:18] = bytes(2)  # longer than the header's field allows: Linux leaves it 0
        big = HEADER.pack(1, 1, 54, 1448, 34, 16) + bytes(head) + bytes(150_000)
        assert b.peer_end is not None
        for _ in range(3):
            b.peer_end.send(big)
            b.run()
        counters = b.queue.counters
        assert (counters["rx_truncated"], counters["rx_segmented"], counters["rx_dropped"]) == (1, 2, 0)
        assert counters["rx_bytes"] >= 2 * 150_000


def test_large_frames_that_are_dropped_stay_in_the_arena() -> None:
    """One poll read frames of a BIG TCP flow behind each other as long as it dropped them, up to 60 of 512 KiB, beyond
    the end of its memory for 64 of 64 KiB. Here the guest takes no frame larger than a page, and the segments are.
    """
    bench = Bench(sg=False)
    assert bench.peer_end is not None
    frame = build(4, TCP, bytes(60000)).ljust(8 * 65536 - 1000, b"\0")
    bench.grant(8, 10)
    bench.write(RX_PAGE, slot_offset(0, 8), RX_REQUEST.pack(1, 0, 8))
    bench.write(RX_PAGE, 0, (1).to_bytes(4, "little"))
    for _ in range(12):
        bench.peer_end.send(HEADER.pack(1, 1, 54, 8000, 34, 16) + frame)
    dropped = [0]
    for _ in range(40):
        bench.worker.step(bench.queue)
        dropped.append(bench.queue.counters["rx_too_big"])
    assert dropped[-1] > 8
    assert {after - before for before, after in pairwise(dropped)} <= {0, 1}
    bench.close()
