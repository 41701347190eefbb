# SPDX-License-Identifier: Apache-2.0
"""The parts of the lab's bench that need no machine: columns, ratios, results."""

import math
from pathlib import Path

import pytest

from netback.errors import ConfigError
from netback.lab.bench.backends import BACKENDS, Netback, choose_backends, parse_variant
from netback.lab.bench.profile import calls_in
from netback.lab.bench.report import evaluate, render, write
from netback.lab.bench.rows import ROWS, Sample
from netback.lab.bench.run import given_up


def test_ratios_are_taken_within_a_round_and_a_crash_is_no_win(tmp_path: Path) -> None:
    row, ping = ROWS[0], ROWS[-1]
    backends = (*BACKENDS, Netback("fast"))
    samples = []
    for number, (kernel, ours, fast) in enumerate(
        ((100.0, 50.0, 100.0), (200.0, 150.0, 150.0), (400.0, 400.0, 200.0))
    ):
        samples += [
            Sample(row.name, "kernel", 0, number, kernel, 1.0),
            Sample(row.name, "netback", 0, number, ours, 2.0),
            Sample(row.name, "fast", 0, number, fast, 2.0),
        ]
        samples.append(Sample(row.name, "qnic", 0, number, math.nan, math.nan, "crashed"))
        samples += [
            Sample(ping.name, "kernel", 0, number, 1.0, 1.0),
            Sample(ping.name, "netback", 0, number, 2.0, 1.0),
        ]
    lines = {line.row.name: line for line in evaluate(samples, backends)}
    assert lines[row.name].ratios["netback", "kernel"] == 0.75
    assert lines[row.name].ratios["fast", "netback"] == 1.0
    assert math.isnan(lines[row.name].ratios["netback", "qnic"])
    assert "qnic" not in lines[row.name].medians
    assert lines[ping.name].ratios["netback", "kernel"] == 0.5  # less is better
    head, _, first, *_ = render(list(lines.values()), backends).splitlines()
    shown = dict(zip(head.split(" | "), first.split(" | "), strict=True))
    assert shown["netback to kernel (wanted)"] == "0.75 (0.85)"
    assert (shown["fast"], shown["fast to netback (wanted) |"]) == ("150 (100-200)", "1 |")
    assert (shown["qnic"], shown["netback to qnic (wanted)"]) == ("n/a", "n/a")
    data, picture = write(samples, list(lines.values()), backends, tmp_path)
    assert "NaN" not in data.read_text()
    assert picture.stat().st_size > 1000


def test_a_variant_is_netback_with_more_words() -> None:
    variant = parse_variant("a.b=KEY='x y' B=2 --net 'tap' --workers 1")
    assert variant == Netback("a.b", ("KEY=x y", "B=2"), ("--net", "tap", "--workers", "1"))
    assert parse_variant("plain=").options == ()
    assert [backend.name for backend in choose_backends(["qnic"], ["a=", "b="])] == [
        "kernel",
        "netback",
        "a",
        "b",
    ]


@pytest.mark.parametrize(
    ("without", "variants", "message"),
    [
        (["netback"], [], "--without 'netback': not one of kernel, qnic"),
        ([], ["no name"], "variant 'no name': not NAME=WORDS"),
        ([], ["a|b="], r"variant 'a\|b=': not NAME=WORDS"),
        ([], ["a='"], 'variant "a=\'": No closing quotation'),
        ([], ["qnic="], "variant 'qnic': another column has this name"),
        (["qnic"], ["a=", "a="], "variant 'a': another column has this name"),
        ([], ["a=--nope"], "variant 'a=--nope': netback: No such option: --nope"),
        ([], ["a=--net none:x"], "variant 'a=--net none:x': netback: network 'none:x'"),
    ],
)
def test_a_column_that_cannot_be_is_one_line(without: list[str], variants: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        choose_backends(without, variants)
    assert "\n" not in str(caught.value)


def test_a_row_that_failed_twice_running_is_not_tried_again_in_that_boot() -> None:
    samples: list[Sample] = []
    for number, fault in enumerate(("stalled", "", "stalled", "crashed")):
        assert given_up(samples, "UDP", "qnic", (0, number)) is None
        samples.append(Sample("UDP", "qnic", 0, number, 1.0, 1.0, fault))
        samples.append(Sample("UDP", "kernel", 0, number, 1.0, 1.0))
    for number in (4, 5):
        skipped = given_up(samples, "UDP", "qnic", (0, number))
        assert skipped is not None
        assert (skipped.round, skipped.fault, math.isnan(skipped.value)) == (number, "crashed", True)
        samples.append(skipped)
    assert given_up(samples, "UDP", "kernel", (0, 6)) is given_up(samples, "TCP", "qnic", (0, 6)) is None


def test_calls_are_read_from_the_kernel_s_histogram() -> None:
    text = """# trigger info: hist:keys=id.syscall:vals=hitcount:sort=hitcount:size=2048 if common_pid==7 [active]
{ id: sys_read                      [  0] } hitcount:         12
{ id: sys_epoll_wait                [232] } hitcount:          3
{ id: unknown_syscall               [999] } hitcount:          1
Totals:"""
    assert calls_in(text) == {"read": 12, "epoll_wait": 3, "unknown_syscall": 1}
