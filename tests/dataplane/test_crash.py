# SPDX-License-Identifier: Apache-2.0
"""Killed at every step of a burst, in both directions: the state that a second process finds, and its result.

docs/decisions.md, Restart guarantee, has the requirements.

The first process is a fork that shares the guest's memory, the journal's file and the network's socket, and nothing
else; it is killed by SIGKILL at the n-th kill point, for every n that a burst has. The second resumes the rings from
those alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

import pytest

from netback.abi.netif import RX_REQUEST, RX_RESPONSE, TX_REQUEST, TX_RESPONSE, TxFlag
from netback.abi.ring import PAGE_SIZE, SRING, slot_offset
from netback.dataplane.journal import arm_kill

from .harness import RING_PAGES, Bench

TX_PAGE, RX_PAGE = RING_PAGES
START = 0xFFFFFFF0
"""Rings about to wrap, so that each batch does too."""
FRAMES = 40
VNET_HDR = 10


def killed_in_burst(bench: Bench, after: int) -> bool:
    """Run the queue in its own process, killed at its `after`-th kill point; returns whether it came that far."""
    child = os.fork()
    if child == 0:
        arm_kill(after)
        bench.run()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def store_prod(bench: Bench, page: int, value: int) -> None:
    """The guest publishes requests."""
    ctypes.c_uint32.from_buffer(bench.memory, page * PAGE_SIZE).value = value & 0xFFFFFFFF


def payload(number: int) -> bytes:
    """A frame whose every byte identifies it."""
    return bytes(12) + b"\x88\xb5" + bytes([number]) * (46 + 7 * number)


def post_tx(bench: Bench) -> None:
    """Two slots per frame: a frame halved by a crash must be noticed."""
    for number in range(FRAMES):
        frame = payload(number)
        for part in range(2):
            index = START + 2 * number + part
            bench.grant(10 + 2 * number + part, 100 + 2 * number + part)
            data = (frame[:20], frame[20:])[part]
            bench.write(100 + 2 * number + part, 0, data)
            request = (10 + 2 * number + part, 0, 0 if part else TxFlag.MORE_DATA, 2 * number + part, 0)
            size = len(data) if part else len(frame)
            TX_REQUEST.pack_into(
                bench.memory, TX_PAGE * PAGE_SIZE + slot_offset(index, 12), *request[:4], size
            )
    store_prod(bench, TX_PAGE, START + 2 * FRAMES)


def post_rx(bench: Bench, slots: int) -> None:
    """Buffers for frames."""
    for number in range(slots):
        bench.grant(10 + number, 100 + number)
        at = RX_PAGE * PAGE_SIZE + slot_offset(START + number, 8)
        RX_REQUEST.pack_into(bench.memory, at, number, 0, 10 + number)
    store_prod(bench, RX_PAGE, START + slots)


def kill_points(prepare: str, tmp_path: Path) -> int:
    """How many kill points one burst passes: found by trying, so that a new one is tested without being listed."""
    for after in range(1, 100):
        bench = crash(prepare, tmp_path / f"journal-{after}", after)
        if bench is None:
            return after - 1
        bench.close()
    raise AssertionError("a burst without an end")


def crash(direction: str, journal: Path, after: int) -> Bench | None:
    """A queue whose first process was killed at its `after`-th kill point and whose second is done, or None."""
    bench = Bench(start=START, journal=str(journal))
    if direction == "tx":
        post_tx(bench)
    else:
        post_rx(bench, 2 * FRAMES)
        assert bench.peer_end is not None
        for number in range(FRAMES):
            bench.peer_end.send(bytes(VNET_HDR) + payload(number))
    if not killed_in_burst(bench, after):
        bench.close()
        return None
    bench.attach(str(journal))
    bench.run()
    return bench


def in_order_with_repeats(numbers: list[int]) -> bool:
    """Each frame at least once; only one burst may come again, in order."""
    again = next((i for i in range(1, len(numbers)) if numbers[i] <= numbers[i - 1]), len(numbers))
    first, second = numbers[:again], numbers[again:]
    whole = sorted(set(first) | set(second)) == list(range(FRAMES))
    return whole and first == sorted(first) and second == sorted(second)


@pytest.mark.parametrize("direction", ["tx", "rx"])
def test_a_burst_has_kill_points(direction: str, tmp_path: Path) -> None:
    """The journal's seven kill points and those around copies and the peer; without them the tests below would prove
    nothing.
    """
    assert kill_points(direction, tmp_path) >= 8


def test_tx_after_any_kill_every_frame_is_sent_and_every_request_answered_once(tmp_path: Path) -> None:
    """TX may repeat the last burst; it loses nothing, and no response is wrong."""
    for after in range(1, kill_points("tx", tmp_path) + 1):
        bench = crash("tx", tmp_path / f"tx-{after}", after)
        assert bench is not None
        sent = [frame[VNET_HDR:] for frame in bench.sent()]
        assert all(frame == payload(frame[20]) for frame in sent), f"a wrong byte, killed at point {after}"
        assert in_order_with_repeats([frame[20] for frame in sent]), f"killed at point {after}"
        _, _, rsp_prod, _ = SRING.unpack_from(bench.memory, TX_PAGE * PAGE_SIZE)
        assert rsp_prod == (START + 2 * FRAMES) & 0xFFFFFFFF
        for number in range(2 * FRAMES):
            at = TX_PAGE * PAGE_SIZE + slot_offset(START + number, 12)
            assert TX_RESPONSE.unpack_from(bench.memory, at) == (number, 0), f"killed at point {after}"
        assert bench.notified()
        bench.close()


def test_rx_after_any_kill_what_is_delivered_is_right_and_the_ring_goes_on(tmp_path: Path) -> None:
    """RX may lose the last burst; a delivered frame is whole, and the frames after the kill arrive."""
    for after in range(1, kill_points("rx", tmp_path) + 1):
        bench = crash("rx", tmp_path / f"rx-{after}", after)
        assert bench is not None
        assert bench.peer_end is not None
        bench.peer_end.send(bytes(VNET_HDR) + payload(FRAMES))
        bench.run()
        _, _, rsp_prod, _ = SRING.unpack_from(bench.memory, RX_PAGE * PAGE_SIZE)
        delivered = []
        for number in range((rsp_prod - START) & 0xFFFFFFFF):
            at = RX_PAGE * PAGE_SIZE + slot_offset(START + number, 8)
            ident, offset, flags, status = RX_RESPONSE.unpack_from(bench.memory, at)
            assert (ident, offset, flags) == (number, 0, 0), f"killed at point {after}"
            frame = bench.read(100 + number, 0, status)
            assert frame == payload(frame[20]), f"killed at point {after}"
            delivered.append(frame[20])
        assert delivered == sorted(set(delivered)), f"killed at point {after}"
        assert delivered[-1] == FRAMES, f"the ring stood still after a kill at point {after}"
        bench.close()


def test_a_journal_of_other_rings_is_void(tmp_path: Path) -> None:
    """A mark that another ring's process left must not reach this one's slots."""
    bench = crash("tx", tmp_path / "journal", 7)
    assert bench is not None
    bench.close()
    data = bytearray((tmp_path / "journal").read_bytes())
    data[0:4] = (1).to_bytes(4, "little")
    data[8:16] = (99).to_bytes(8, "little")
    (tmp_path / "journal").write_bytes(data)
    fresh = Bench(journal=str(tmp_path / "journal"))
    assert fresh.queue.rings["tx"]["rsp_prod"] == 0
    fresh.close()
