# SPDX-License-Identifier: Apache-2.0
"""The multicast list: how a guest changes it, which frames it lets pass, and that it outlives a killed process.

The rings' oracle checks answers and frames for every chain (test_oracle_native.py); here are the list's file, its users
in several queues, and what a change under way leaves.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from netback.abi.netif import RX_REQUEST, TX_REQUEST, TX_RESPONSE, TxFlag
from netback.abi.ring import PAGE_SIZE, slot_offset
from netback.dataplane import extras
from netback.dataplane.settings import Settings
from tests.dataplane.harness import RING_PAGES, Bench
from tests.dataplane.test_crash import killed_in_burst, store_prod

TX_PAGE, RX_PAGE = RING_PAGES
VNET_HDR = bytes(10)
MAX_ADDRESSES = 64


def group(number: int) -> bytes:
    """A multicast address."""
    return b"\x01\x00\x5e\x00\x00" + bytes([number])


def post_changes(bench: Bench, changes: list[dict[str, bytes]], start: int = 0) -> None:
    """Each change is a dummy request and its extra."""
    index = start
    for change in changes:
        slots = [TX_REQUEST.pack(999, 0, TxFlag.EXTRA_INFO, index & 0xFF, 0), *extras.write(**change)]
        for slot in slots:
            at = TX_PAGE * PAGE_SIZE + slot_offset(index, 12)
            bench.memory[at : at + 12] = slot.ljust(12, b"\xee")
            index += 1
    store_prod(bench, TX_PAGE, index)


def post_buffers(bench: Bench, count: int = 16) -> None:
    for number in range(count):
        bench.grant(10 + number, 100 + number)
        at = RX_PAGE * PAGE_SIZE + slot_offset(number, 8)
        RX_REQUEST.pack_into(bench.memory, at, number, 0, 10 + number)
    store_prod(bench, RX_PAGE, count)


def statuses(bench: Bench, count: int) -> list[int]:
    """Of the dummies' responses."""
    places = (TX_PAGE * PAGE_SIZE + slot_offset(2 * i, 12) for i in range(count))
    return [TX_RESPONSE.unpack_from(bench.memory, at)[1] for at in places]


def deliver(bench: Bench, *destinations: bytes) -> list[bytes]:
    """Frames to these addresses; returns the destinations of those that the guest got, in order."""
    assert bench.peer_end is not None
    before = bench.queue.rings["rx"]["rsp_prod"]
    for destination in destinations:
        bench.peer_end.send(VNET_HDR + destination + bytes(54))
    bench.run()
    got = range(before, bench.queue.rings["rx"]["rsp_prod"])
    return [bench.read(100 + index, 0, 6) for index in got]


def test_only_multicast_frames_of_listed_addresses_pass() -> None:
    bench = Bench()
    post_buffers(bench)
    post_changes(bench, [{"mcast_add": group(1)}, {"mcast_add": group(2)}, {"mcast_del": group(2)}])
    bench.run()
    unicast, broadcast = b"\x02" + bytes(5), b"\xff" * 6
    everything = [group(1), unicast, group(2), broadcast, group(3)]
    assert deliver(bench, *everything) == everything
    bench.queue.change(multicast_control=True)
    assert deliver(bench, *everything) == [group(1), unicast, broadcast]
    assert bench.queue.counters["rx_filtered"] == 2
    bench.queue.change(multicast_control=False)
    assert deliver(bench, group(3)) == [group(3)]
    bench.close()


def test_a_change_is_no_frame() -> None:
    bench = Bench()
    post_changes(bench, [{"mcast_add": group(i)} for i in range(MAX_ADDRESSES + 1)])
    bench.run()
    assert statuses(bench, MAX_ADDRESSES + 1) == [0] * MAX_ADDRESSES + [-1]
    counted = bench.queue.counters
    assert (counted["tx_multicast"], counted["tx_multicast_full"]) == (MAX_ADDRESSES + 1, 1)
    assert (counted["tx_frames"], counted["tx_bytes"], counted["tx_errors"]) == (0, 0, 0)
    assert bench.sent() == []
    bench.close()


def test_the_list_and_its_answers_after_a_kill_at_any_point(tmp_path: Path) -> None:
    """A change that was answered counts; one that was not is made by the next process, with the same result."""
    changes = [{"mcast_add": group(i)} for i in range(40)]
    changes += [{"mcast_del": group(i)} for i in range(0, 40, 2)] + [{"mcast_add": group(0)}]
    wanted = {group(i).hex(":") for i in (0, *range(1, 40, 2))}
    for after in range(1, 400):
        journal, settings = (str(tmp_path / f"{name}-{after}") for name in ("journal", "settings"))
        bench = Bench(journal=journal, settings=settings)
        post_changes(bench, changes)
        came_so_far = killed_in_burst(bench, after)
        bench.attach(journal, settings)
        bench.run()
        assert set(bench.queue.settings.multicast) == wanted, f"killed at point {after}"
        assert statuses(bench, len(changes)) == [0] * len(changes), f"killed at point {after}"
        bench.close()
        if not came_so_far:
            assert after > len(changes)
            return
    raise AssertionError("a burst without an end")


def test_an_answered_change_is_in_the_file(tmp_path: Path) -> None:
    """Without a close: the process is gone right after the response."""
    bench = Bench(settings=str(tmp_path / "settings"))
    post_changes(bench, [{"mcast_add": group(1)}])
    assert not killed_in_burst(bench, 1000)
    assert Settings(str(tmp_path / "settings")).multicast == [group(1).hex(":")]
    bench.close()


@pytest.mark.parametrize(
    ("rings", "keep", "left"), [(1, True, [group(1).hex(":")]), (1, False, []), (2, True, [])]
)
def test_whose_list_it_is(tmp_path: Path, rings: int, keep: bool, left: list[str]) -> None:
    """A new connection begins with an empty list, and so do rings other than those that the list is of."""
    path = str(tmp_path / "settings")
    Settings(path).claim(1, keep=True)
    bench = Bench(settings=path)
    post_changes(bench, [{"mcast_add": group(1)}])
    bench.run()
    bench.close()
    settings = Settings(path)
    settings.claim(rings, keep=keep)
    assert settings.multicast == left


def test_two_queues_share_one_list() -> None:
    """Each in its own thread: every address that was added is there, the list never has more than its places."""
    settings = Settings()
    benches = [Bench() for _ in range(2)]
    for number, bench in enumerate(benches):
        bench.attach(settings=settings)
        added = [{"mcast_add": group(40 * number + i)} for i in range(40)]
        post_changes(bench, added + [{"mcast_del": group(40 * number + i)} for i in range(20)])
    threads = [threading.Thread(target=bench.run) for bench in benches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers = [status for bench in benches for status in statuses(bench, 40)]
    refused = {group(i).hex(":") for i, status in enumerate(answers) if status}
    wanted = {group(40 * number + i).hex(":") for number in range(2) for i in range(20, 40)}
    assert set(settings.multicast) == wanted - refused
    for bench in benches:
        bench.close()
