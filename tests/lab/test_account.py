# SPDX-License-Identifier: Apache-2.0
"""What a frame costs: counters, Xen's traces and prices, from texts and bytes to tables. Needs no machine."""

import asyncio
import json
import os
import random
import socket
import struct
import sys
from asyncio.subprocess import PIPE
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from netback.errors import ConfigError, NetbackError
from netback.lab.bench import estimate as prices
from netback.lab.bench import tables
from netback.lab.bench.counters import Hits, Span, histogram, hits, interrupts, span
from netback.lab.bench.document import render_document, with_tables
from netback.lab.bench.estimate import Machine, Price, estimate, read_prices, read_profile
from netback.lab.bench.made import Made
from netback.lab.bench.profile import COUNTS, Account, Profile, account, as_json
from netback.lab.bench.xentrace import Trace, TraceError, read_trace
from tests.cli.commands import run

HYPERCALL, SUBCALL, MAP, UNMAP, PAGE_FAULT = 0x20100D, 0x20200E, 0x10F001, 0x10F002, 0x201104
CPU, LOST, RUNS, BLOCKS = 0x1F003, 0x1F001, 0x21101, 0x21021
DOM0, GUEST = 0 << 16, 5 << 16
COPY, GRANT_UNMAP, EVENT, IRET, MULTICALL = (20, 5, 1), (20, 1, 1), (32,), (23,), (13, 2)


def record(event: int, *words: int, cycles: int | None = None) -> bytes:
    head = event | len(words) << 28 | (1 << 31 if cycles is not None else 0)
    time = b"" if cycles is None else struct.pack("<Q", cycles)
    return struct.pack("<I", head) + time + struct.pack(f"<{len(words)}I", *words)


def window(cpu: int, *events: bytes) -> bytes:
    return record(CPU, cpu, 100) + b"".join(events)


def test_hypercalls_are_counted_by_kind_and_only_those_of_the_domain() -> None:
    data = window(
        0,
        record(HYPERCALL, *IRET, cycles=100),  # whose it is is not known yet
        record(RUNS, DOM0, cycles=110),
        record(HYPERCALL, *COPY),
        record(HYPERCALL, *COPY),
        record(HYPERCALL, *EVENT),
        record(HYPERCALL, *MULTICALL),
        record(SUBCALL, 14),
        record(PAGE_FAULT, 1, 2),
        record(HYPERCALL, 99),
    ) + window(1, record(RUNS, GUEST, cycles=400), record(HYPERCALL, *EVENT), record(MAP, 0))
    data += window(0, record(HYPERCALL, *IRET, cycles=1100), record(BLOCKS, DOM0), record(RUNS, GUEST))
    data += window(0, record(HYPERCALL, *IRET))
    assert read_trace(data) == Trace(
        cycles=1000,
        calls={
            "grant_copy": 2,
            "event_channel_op": 1,
            "multicall": 1,
            "update_va_mapping": 1,
            "hypercall 99": 1,
            "iret": 1,
        },
        traps=1,
        mapped=0,
        unmapped=0,
        flushes=0,
    )
    assert read_trace(data, domain=5).calls == {"event_channel_op": 1, "iret": 1}


@pytest.mark.parametrize(
    ("batches", "flushes"),
    [((1,), 1), ((32,), 1), ((33,), 2), ((70,), 3), ((32, 6), 2), ((5, 5), 2), ((), 0)],
)
def test_a_flush_is_derived_for_each_batch_of_32_pages_of_each_unmap(
    batches: tuple[int, ...], flushes: int
) -> None:
    events = [record(RUNS, DOM0, cycles=1), record(MAP, 5), record(MAP, 5)]
    for pages in batches:
        events += [record(HYPERCALL, *GRANT_UNMAP), *[record(UNMAP, 5)] * pages]
    trace = read_trace(window(0, *events, record(RUNS, DOM0, cycles=9)))
    assert (trace.mapped, trace.unmapped, trace.flushes) == (2, sum(batches), flushes)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "is empty"),
        (record(RUNS, DOM0, cycles=1), "is empty"),
        (record(RUNS, DOM0, cycles=1)[:-2], "ends within a record, at byte 12"),
        (window(0, record(LOST, 17, cycles=1), record(RUNS, DOM0, cycles=2)), "lost 17 records"),
    ],
)
def test_a_trace_that_is_not_whole_is_refused(data: bytes, fault: str) -> None:
    with pytest.raises(TraceError, match=fault):
        read_trace(data)


def test_any_bytes_are_counted_or_refused() -> None:
    chance = random.Random(11)
    events = (HYPERCALL, SUBCALL, MAP, UNMAP, CPU, LOST, RUNS, 0x21002)
    for _ in range(3000):
        data = b"".join(
            record(chance.choice(events), *(chance.getrandbits(32) for _ in range(chance.randrange(4))))
            for _ in range(chance.randrange(6))
        ) + chance.randbytes(chance.randrange(20))
        try:
            read_trace(data)
        except TraceError:
            continue


HISTOGRAM = """# event histogram
# trigger info: hist:keys=common_pid,id.syscall:vals=hitcount,ret:sort=hitcount:size=2048 if ret>0 [active]
{ common_pid:          7, id: sys_read                      [  0] } hitcount:         12  ret:       8200
{ common_pid:          7, id: sys_epoll_wait                [232] } hitcount:          3  ret:          4
{ common_pid:          7, id: unknown_syscall               [999] } hitcount:          1
{ common_pid:        900, id: sys_read                      [  0] } hitcount:         50  ret:       9999
Totals:
    Hits: 16
"""


def test_calls_are_read_from_the_kernel_s_histogram() -> None:
    assert histogram(HISTOGRAM) == {
        (7, "read"): Hits(12, 8200),
        (7, "epoll_wait"): Hits(3, 4),
        (7, "unknown_syscall"): Hits(1),
        (900, "read"): Hits(50, 9999),
    }
    assert histogram("{ common_pid:        316 } hitcount:        594  count:       5147") == {
        (316, ""): Hits(594, 5147)
    }
    assert histogram("") == {}


def test_what_was_counted_before_the_stretch_does_not_count() -> None:
    earlier = "{ common_pid:          7, id: sys_read [  0] } hitcount:         10  ret: 8000"
    counted = {"begin": {"histograms": {"calls": earlier}}, "end": {"histograms": {"calls": HISTOGRAM}}}
    assert hits(counted, "calls", {7, 900}) == {
        "read": Hits(52, 200 + 9999),
        "epoll_wait": Hits(3, 4),
        "unknown_syscall": Hits(1),
    }
    assert hits(counted, "calls", {900}) == hits(counted, "calls", {900, 5}) == {"read": Hits(50, 9999)}
    assert hits(counted, "returned") == {}


def test_interrupts_are_those_of_the_backend_s_channels_on_all_processors() -> None:
    text = """           CPU0       CPU1
 58:        115          2  xen-dyn-lateeoi    -event     vif1.0-q0-tx
 59:          1          0  xen-dyn-lateeoi    -event     vif1.0-q0-rx
 60:        900        900  xen-dyn-lateeoi    -event     evtchn:xenstored
LOC:          7          7   Local timer interrupts
ERR:          5
"""
    assert interrupts(text, r"vif\d+\.\d+-") == 118
    assert interrupts(text, "evtchn:xen-qemu") == interrupts("", "x") == 0


def task(name: str, sleeps: int, user: int, system: int, ns: int) -> dict[str, str]:
    return {
        "comm": f"{name}\n",
        "status": f"Name:\t{name}\nvoluntary_ctxt_switches:\t{sleeps}\nnonvoluntary_ctxt_switches:\t77\n",
        "stat": f"7 ({name} ) S) " + " ".join(["0"] * 11 + [str(user), str(system)]),
        "schedstat": f"{ns} 5 6\n",
    }


def snapshot(time: float, frames: int, tasks: Mapping[str, Any]) -> dict[str, Any]:
    link = {
        "rx_packets": frames,
        "rx_bytes": 100 * frames,
        "tx_packets": 3 * frames,
        "tx_bytes": 900 * frames,
    }
    rows = f"     CPU0\n 1:  {frames}  xen-dyn  -event  evtchn:python3\n"
    return {"time": time, "link": link, "interrupts": rows, "tasks": tasks}


def test_a_span_is_the_difference_of_two_snapshots() -> None:
    begin = {"7": task("worker", 10, 1, 3, 8_000_000_000), "8": task("ended", 0, 0, 0, 0)}
    end = {
        "7": task("worker", 60, 2, 6, 16_000_000_000),
        "9": task("vhost-6", 1, 1, 1, 1),  # began meanwhile: no difference
    }
    counted = {"begin": snapshot(5.0, 100, begin), "end": snapshot(7.5, 150, end)}
    assert span(counted, "evtchn:(python|netback)") == Span(
        seconds=2.5,
        to_guest=150,
        from_guest=50,
        bytes_to_guest=45000,
        bytes_from_guest=5000,
        interrupts=50,
        wakeups=50,
        user=2.0,
        system=6.0,
        threads=1,
        vhost=True,
    )


HZ = 1e9


def span_of(*, vhost: bool = False) -> Span:
    return Span(2.0, 300, 100, 300_000, 20_000, 40, 80, 0.1, 0.3, 2, vhost)


def trace_of(cycles: int) -> bytes:
    events = (
        [record(HYPERCALL, *COPY)] * 20 + [record(HYPERCALL, *EVENT)] * 8 + [record(HYPERCALL, *IRET)] * 40
    )
    events += [record(HYPERCALL, *GRANT_UNMAP), record(UNMAP, 5)] * 4
    return window(0, record(RUNS, DOM0, cycles=0), *events, record(RUNS, DOM0, cycles=cycles))


def found(**more: Any) -> dict[str, Any]:
    texts = {"calls": HISTOGRAM, "returned": HISTOGRAM, "copies": "{ common_pid: 3 } hitcount: 9  count: 800"}
    missing: dict[str, str] = more.pop("missing", {})
    known = {name: text for name, text in texts.items() if name not in missing}
    begin, end = {"tasks": {}, "histograms": {}}, {"tasks": {"7": {}}, "histograms": known}
    return {"missing": missing, "hz": HZ, "begin": begin, "end": end} | more


def account_of(backend: str, *, vhost: bool = False, trace: bytes | None = None, **more: Any) -> Account:
    data = trace_of(4 * int(HZ)) if trace is None else trace
    own = more.pop("own", {"rx_staged": 0})
    return account("UDP", backend, span_of(), span_of(vhost=vhost), found(**more), data, own)


def test_counts_are_per_frame_and_a_longer_trace_counts_for_less() -> None:
    one = account_of("netback")
    assert one.pace == one.counted_pace == 200
    assert (one.user, one.system) == pytest.approx((250, 750))
    assert one.counts == pytest.approx(
        {
            "frames": 1,
            "system_calls": 16 / 400,
            "grant_hypercalls": 24 / 800,  # the trace is twice as long as the span
            "event_hypercalls": 8 / 800,
            "other_hypercalls": 40 / 800,
            "copies": 2,
            "bytes_by_xen": 800,
            "bytes_by_kernel": 8200 / 400,  # what epoll_wait returns is no bytes
            "bytes_by_backend": 0,
            "pages_mapped": 0,
            "pages_unmapped": 4 / 800,
            "tlb_flushes": 4 / 800,
            "wakeups": 0.2,
            "interrupts": 0.1,
        }
    )
    assert list(one.counts) == list(COUNTS)
    assert {"tlb_flushes", "bytes_by_xen"} <= set(one.derived)
    assert not one.missing


def test_what_cannot_be_counted_is_missing_with_its_reason() -> None:
    one = account_of(
        "netback", missing={"trace": "xentrace: no buffers", "copies": "no probe"}, own={"rx_staged": 3}
    )
    assert one.missing["pages_mapped"] == one.missing["tlb_flushes"] == "xentrace: no buffers"
    assert one.missing["event_hypercalls"] == "xentrace: no buffers"
    assert "not their bytes" in one.missing["bytes_by_backend"]
    assert not set(one.missing) & set(one.counts)
    damaged = account_of("netback", trace=b"\x01")
    assert "ends within a record" in damaged.missing["grant_hypercalls"]
    assert "tlb_flushes" not in damaged.derived
    assert "timestamps" in account_of("netback", hz=0.0).missing["pages_mapped"]
    assert "QEMU" in account_of("qnic").missing["bytes_by_backend"]


def test_copies_of_a_vhost_worker_and_of_xen_netback_follow_from_the_link_s_bytes() -> None:
    one = account_of("netback", vhost=True)
    assert one.counts["bytes_by_kernel"] == 800
    assert "vhost" in one.derived["bytes_by_kernel"]
    kernel = account_of("kernel")
    assert kernel.counts["bytes_by_xen"] == (300_000 + 100 * 128) / 400
    assert kernel.counts["bytes_by_kernel"] == 0


def profile_of(*accounts: Account) -> Profile:
    return Profile(Made("2026-01-02", "abc", "Xen 4.20", "6.12"), 3, {"a system call": 54.2}, accounts)


def test_the_table_has_stars_reasons_and_what_failed() -> None:
    text = tables.render(profile_of(account_of("qnic"), Account("TCP", "qnic", "it stalled")))
    lines = text.splitlines()
    assert "a system call: 54.2 us" in lines
    row = next(line for line in lines if line.startswith("| UDP | qnic | 200 | 200 | 800 "))
    assert "0*" in row
    assert "n/a" in row
    assert any(line.startswith("| TCP | qnic | n/a") and line.endswith("| it stalled |") for line in lines)
    assert len({line.count("|") for line in lines if line.startswith(("| UDP | qnic | 200", "| TCP"))}) == 1
    assert any("QEMU does not count" in line and line.endswith("(qnic).") for line in lines)
    assert lines[-1] == (
        "Made by `netback lab profile --seconds 3`: 2026-01-02, netback abc, Xen 4.20, Linux 6.12."
    )


def test_what_the_command_prints_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "counts.json"
    result = profile_of(account_of("netback"), Account("TCP", "qnic", "it stalled"))
    path.write_text(as_json(result))
    again = read_profile(path)
    assert again.made == result.made
    assert list(again.accounts) == list(result.accounts)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"made": 3}', b"\xff\xfe".decode("latin1")])
def test_counts_of_another_form_are_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "counts.json"
    path.write_text(text)
    with pytest.raises(
        ConfigError, match=r"counts\.json: not what `netback lab profile --json` prints"
    ) as error:
        read_profile(path)
    assert "\n" not in str(error.value)


def machine_of(**ns: float) -> Machine:
    return Machine("one", {name: Price(value, "a paper") for name, value in ns.items()})


def test_an_estimate_is_counts_times_prices_and_names_what_it_is_without() -> None:
    one = Account(
        "TCP", "netback", bytes_to_guest=1000, counts={"frames": 1, "copies": 3, "bytes_by_xen": 2048}
    )
    made = estimate(one, machine_of(frames=100, copies=200, bytes_by_xen=50, wakeups=9))
    assert made.parts == {"frames": 100, "copies": 600, "bytes_by_xen": 100}
    assert made.ns == 800
    assert made.rate == 1.25e6
    assert made.gbits == 10
    assert set(made.without) == set(COUNTS) - set(made.parts)
    assert estimate(one, machine_of()).gbits == 0


def test_the_estimates_are_a_table_for_each_machine() -> None:
    kernel = Account("TCP", "kernel", bytes_from_guest=1000, counts={"copies": 1})
    ours = Account("TCP", "netback", bytes_from_guest=2000, counts={"copies": 4})
    failed = Account("TCP", "qnic", "it stalled")
    text = prices.render(profile_of(kernel, failed, ours), [machine_of(copies=1000, frames=5), machine_of()])
    assert "| TCP | netback | 4.00 | 250 | 4.00 | 0.50 | grant copies 100% |" in text
    assert "| TCP | qnic | n/a | n/a | n/a | n/a | it stalled |" in text
    assert "Without, netback: frames, " in text
    assert text.count("**one**") == 2


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "missing required field `machine`"),
        ("x = 1", "unknown field `x`"),
        ("machine = []", "length >= 1"),
        ("[[machine]]\nname = 'a'", r"missing required field `prices` - at `\$\.machine\[0\]`"),
        (
            "[[machine]]\nname = 'a'\nprices = {copies = 3}",
            r"Expected `object`, got `int` - at .*prices\[\.\.\.\]",
        ),
        (
            "[[machine]]\nname = 'a'\nprices.copies = {ns = 'x', source = 's'}",
            r"`float`, got `str` - at .*ns`",
        ),
        ("[[machine]]\nname = 'a'\nprices.copies = {ns = -1, source = 's'}", ">= 0"),
        ("[[machine]]\nname = 'a'\nprices.copies = {ns = nan, source = 's'}", ">= 0"),
        ("[[machine]]\nname = 'a'\nprices.copies = {ns = 1}", "missing required field `source`"),
        ("[[machine]]\nname = 'a'\nprices.copies = {ns = 1, source = ''}", "length >= 1"),
        (
            "[[machine]]\nname = 'a'\nprices.bribes = {ns = 1, source = 's'}",
            "a: nothing is counted as 'bribes', only",
        ),
        ("[[machine", "end of an array declaration"),
    ],
)
def test_a_bad_price_list_is_one_line_that_says_where(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=fault) as error:
        read_prices(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    for read in (read_prices, read_profile):
        with pytest.raises(NetbackError, match="none: No such file"):
            read(tmp_path / "none")
        with pytest.raises(NetbackError, match="Is a directory"):
            read(tmp_path)
    (tmp_path / "prices.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"prices\.toml"):
        read_prices(tmp_path / "prices.toml")


def test_netback_s_price_list_prices_every_count_of_every_machine_with_a_source() -> None:
    machines = read_prices(prices.PRICES)
    assert len({machine.name for machine in machines}) == len(machines) > 1
    for machine in machines:
        assert set(machine.prices) == set(COUNTS) - {"other_hypercalls"}
        assert all(len(price.source) > 5 for price in machine.prices.values())


async def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    counts, prices_file = tmp_path / "counts.json", tmp_path / "prices.toml"
    counts.write_text(as_json(profile_of(account_of("netback"))))
    prices_file.write_text("[[machine]]\nname = 'mine'\nprices.copies = {ns = 500, source = 'measured'}")
    code, out, _ = await run("lab", "estimate", counts, prices_file)
    assert code == 0
    assert "| UDP | netback | 1.00 | 1000 | 6.00 | n/a | grant copies 100% |" in out
    code, out, err = await run("lab", "estimate", counts, tmp_path / "none.toml")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "none.toml: No such file" in err


def test_the_tables_of_the_document_are_those_of_its_counts_and_prices() -> None:
    docs = Path(__file__).parents[2] / "docs"
    assert (docs / "speed.md").read_text() == render_document(docs), "make docs"
    text = with_tables(
        "<!-- table: counts -->\nold\n<!-- end of table -->\n", profile_of(account_of("qnic")), []
    )
    assert "| UDP | qnic |" in text
    assert "old" not in text


async def test_the_program_in_dom0_counts_the_frames_and_the_threads_of_a_flow(tmp_path: Path) -> None:
    """Here it counts this process's datagrams to itself; Xen's tracer and the probes need the lab."""
    ready = tmp_path / "ready"
    job = {"link": "lo", "seconds": 0.2, "pid": os.getpid(), "main": True, "kthreads": "none", "trace": ""}
    command = (
        sys.executable,
        "-P",
        "-m",
        "netback.lab.inside.counting",
        json.dumps(job | {"ready": str(ready)}),
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        process = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
        ended = asyncio.create_task(process.communicate())
        sent = 0
        while not ended.done():
            if ready.exists():  # what came before is no part of the flow
                one.sendto(bytes(100), one.getsockname())
                one.recv(200)
                sent += 1
            await asyncio.sleep(0.001)
        out, _ = await ended
    assert process.returncode == 0
    counted = span(json.loads(out), "evtchn:x")
    assert 0 < counted.to_guest <= sent  # lo counts each datagram in both directions
    assert counted.bytes_to_guest == 128 * counted.to_guest
    assert (counted.threads > 0, counted.wakeups > 0, counted.interrupts) == (True, True, 0)
    assert counted.seconds >= 0.2
