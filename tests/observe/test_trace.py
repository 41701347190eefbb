# SPDX-License-Identifier: Apache-2.0
"""Trace points by name, logs with a bound, and the records of the native side, read back."""

import logging
import time
from collections.abc import Iterator, Mapping

import pytest

from netback.abi import netif
from netback.abi.virtio_net import F_NEEDS_CSUM, GSO_TCPV4, HEADER
from netback.dataplane.link import COUNTERS
from netback.dataplane.records import Record, RecordKind, parse_records
from netback.errors import ConfigError
from netback.observe.trace import TRACE_POINTS, LogBudget, Tracer
from tests.dataplane.harness import TWO_SLOTS, TWO_SLOTS_FLAGS, Bench, post, post_gso_frame
from tests.dataplane.offload_frames import build, with_pseudo
from tests.offload_oracle import TCP

QEMU = ["realize", "unrealize", "create", "destroy", "connect", "disconnect", "frontend_changed", "tx", "rx"]
"""Its trace points, each as xen_netdev_*."""


def test_the_trace_points_are_those_that_qemu_users_know() -> None:
    assert set(TRACE_POINTS) == {"xen_device_backend_state", *(f"xen_netdev_{name}" for name in QEMU)}


@pytest.mark.parametrize(
    ("patterns", "on"),
    [
        ([], set()),
        (["xen_netdev_tx"], {"tx"}),
        (["*connect"], {"connect", "disconnect"}),
        (["xen_netdev_?x"], {"tx", "rx"}),
        (["xen_netdev_*"], set(QEMU)),
        (["xen_device_*"], {"xen_device_backend_state"}),
        (["*", "-xen_*_[rt]x", "-*_state"], set(QEMU) - {"tx", "rx"}),
        (["xen_netdev_tx", "-*"], set()),
    ],
)
def test_patterns_turn_points_on_and_off(patterns: list[str], on: set[str]) -> None:
    lines: list[str] = []
    tracer = Tracer(lines.append)
    for pattern in patterns:
        tracer.select(pattern)
    for name, fields in TRACE_POINTS.items():
        tracer.emit(name, *range(len(fields)))
        assert tracer.on(name) == (name.removeprefix("xen_netdev_") in on)
    assert {line.split()[0].removeprefix("xen_netdev_") for line in lines} == on


def test_sinks_get_their_points_and_one_that_is_given_twice_is_called_once() -> None:
    seen: list[tuple[str, object]] = []

    def sink(name: str, _time: float, values: Mapping[str, object]) -> None:
        seen.append((name, values["dev"]))

    tracer = Tracer(lambda _: None)
    with tracer.sent_to(sink, frozenset({"xen_netdev_create"})):
        with tracer.sent_to(sink, frozenset({"xen_netdev_create", "xen_netdev_destroy"})):
            tracer.emit("xen_netdev_create", 1)
            tracer.emit("xen_netdev_destroy", 2)
        tracer.emit("xen_netdev_create", 3)
        tracer.emit("xen_netdev_destroy", 4)
    tracer.emit("xen_netdev_create", 5)
    assert seen == [("xen_netdev_create", 1), ("xen_netdev_destroy", 2), ("xen_netdev_create", 3)]


def test_a_line_names_its_values() -> None:
    lines: list[str] = []
    tracer = Tracer(lines.append)
    tracer.select("xen_netdev_tx")
    tracer.emit("xen_netdev_tx", "vif1.0", 8, 0, 60, "CSUM_BLANK")
    assert lines == ["xen_netdev_tx dev=vif1.0 gref=8 offset=0 size=60 flags=CSUM_BLANK"]
    with pytest.raises(ValueError, match="shorter"):
        tracer.emit("xen_netdev_tx", "vif1.0")


@pytest.mark.parametrize("pattern", ["", "-", "xen_netdev", "-nothing*", "XEN_*"])
def test_a_pattern_that_matches_nothing_is_an_error_that_lists_the_points(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"no trace point matches .*: known are .*xen_netdev_rx"):
        Tracer().select(pattern)


def test_a_log_budget_counts_the_lines_that_it_leaves_out(caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    budget = LogBudget(3, 10.0, lambda: now[0])
    log = logging.getLogger("netback.test")
    for n in range(1000):
        budget.warn(log, f"fault {n}")
    now[0] += 10
    budget.warn(log, "fault again")
    budget.warn(log, "and again")
    assert caplog.messages == ["fault 0", "fault 1", "fault 2", "fault again (and 997 more)", "and again"]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    bench.queue.watch(traced=True)
    yield bench
    bench.close()


def records(bench: Bench) -> list[Record]:
    data, lost = bench.worker.records()
    assert lost == 0
    return list(parse_records(data))


def test_what_a_guest_sent_is_written_down_slot_by_slot(bench: Bench) -> None:
    whole = build(4, TCP, bytes(range(256)) * 20)
    first, flags = TWO_SLOTS, TWO_SLOTS_FLAGS
    post_gso_frame(bench, whole)
    before = time.time_ns()
    bench.run()
    head, tail = records(bench)
    assert (head.kind, tail.kind) == (RecordKind.TX_SLOT, RecordKind.TX_SLOT)
    assert (head.gref, head.offset, head.size, head.flags, head.index) == (8, 96, first, flags, 0)
    assert (tail.gref, tail.offset, tail.size, tail.flags, tail.index) == (9, 0, len(whole) - first, 0, 2)
    assert head.link == bench.queue.index
    assert before <= head.time_ns <= tail.time_ns <= time.time_ns()


def test_what_a_guest_received_is_written_down(bench: Bench) -> None:
    for n in range(8):
        bench.grant(8 + n, 20 + n)
    post(bench, 2, [netif.RX_REQUEST.pack(n, 0, 8 + n) for n in range(8)])
    whole = build(4, TCP, bytes(5000))
    header = HEADER.pack(F_NEEDS_CSUM, GSO_TCPV4, 54, 1400, 34, 16)
    assert bench.peer_end is not None
    bench.peer_end.send(header + with_pseudo(whole, 34, TCP, whole[26:34]))
    bench.run()
    assert [(r.kind, r.gref, r.index, r.status) for r in records(bench)] == [
        (RecordKind.RX_SLOT, 8, 0, 4096),
        (RecordKind.RX_SLOT, 10, 2, len(whole) - 4096),
    ]


def test_nothing_is_written_down_unless_asked(bench: Bench) -> None:
    bench.queue.watch(traced=False)
    bench.grant(8, 10)
    post(bench, 1, [netif.TX_REQUEST.pack(8, 0, 0, 1, 60)])
    bench.run()
    assert records(bench) == []
    assert bench.queue.counters["tx_frames"] == 1


def test_counters_are_a_snapshot_with_every_name(bench: Bench) -> None:
    before = bench.queue.counters
    assert tuple(before) == COUNTERS
    bench.grant(8, 10)
    post(bench, 1, [netif.TX_REQUEST.pack(8, 0, 0, 1, 60)])
    bench.run()
    after = bench.queue.counters
    changed = {name: after[name] - before[name] for name in COUNTERS if after[name] != before[name]}
    assert changed.items() >= {"tx_frames": 1, "tx_bytes": 60, "tx_slots": 1, "tx_bursts": 1}.items()
    assert before == dict.fromkeys(COUNTERS, 0)
