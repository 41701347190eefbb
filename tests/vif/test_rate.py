# SPDX-License-Identifier: Apache-2.0
"""Rates as text: the toolstack's, people's, and everything that is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netback.vif.rate import Rate, as_node, parse_node, parse_rate


@pytest.mark.parametrize(
    ("text", "node", "shown"),
    [
        ("10Mb/s", "62500,50000", "10Mb/s"),
        ("10Mb/s@20ms", "25000,20000", "10Mb/s"),
        ("1GB/s@1s", "1000000000,1000000", "8Gb/s"),
        ("1.5 MB/s", "75000,50000", "12Mb/s"),
        ("500kbit/s", "62500,1000000", "500kb/s"),
        ("500Kbps", "62500,1000000", "500kb/s"),
        ("8b/s", "1,1000000", "8b/s"),
        ("10Gb/s@1us", "1250,1", "10Gb/s"),
    ],
)
def test_units(text: str, node: str, shown: str) -> None:
    """xl writes the same node for `rate=10Mb/s` (libxlu_vif.c: 50 ms)."""
    rate = parse_rate(text)
    assert rate is not None
    assert (as_node(rate), str(rate)) == (node, shown)
    assert parse_node(node) == rate


def test_the_burst_is_128_kib_or_an_interval() -> None:
    """tx_add_credit in Linux's backend."""
    assert [Rate(size, 50_000).burst for size in (1, 131071, 131072, 10**7)] == [131072] * 3 + [10**7]


def test_no_limit() -> None:
    assert parse_rate("none") is None
    assert parse_node("none") is None
    assert as_node(None) == "none"


HUGE = "9" * 21
WRONG_NODES = [
    "",
    ",",
    "1",
    "1,",
    ",1",
    "-1,5",
    "1,2,3",
    " 1,2",
    "1,2 ",
    "0x10,5",
    "1.5,5",
    "10Mb/s",
    "\u0661,5",
]
ZERO_NODES = ["62500,0", "1,0"]
LARGE_NODES = [f"{HUGE},1", f"1,{HUGE}", "99999999999999999999,1", "x" * 5000]
WRONG_TEXTS = [
    "",
    "10",
    "10M",
    "10Mb",
    "Mb/s",
    "-1Mb/s",
    "1,5Mb/s",
    "10Tb/s",
    "10Mb/s@",
    "10Mb/s@5",
    "2kpps",
    "1e3b/s",
]
ZERO_TEXTS = ["0b/s", "7b/s", "10Mb/s@0s", "1kb/s@1us", "None", f"{HUGE}b/s", "x" * 5000]


@pytest.mark.parametrize("text", WRONG_NODES + ZERO_NODES + LARGE_NODES)
def test_nodes_that_are_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match=r"not bytes and microseconds|limits nothing|too large"):
        parse_node(text)


@pytest.mark.parametrize("text", WRONG_TEXTS + ZERO_TEXTS)
def test_texts_that_are_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a rate|passes nothing|too large") as refused:
        parse_rate(text)
    assert len(str(refused.value)) < 200


@given(st.text(max_size=40))
def test_any_text_is_a_rate_or_refused(text: str) -> None:
    for parse in (parse_node, parse_rate):
        try:
            rate = parse(text)
        except ValueError:
            continue
        assert rate is None or parse_node(as_node(rate)) == rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [("0,50000", Rate(0, 50_000)), ("0,1", Rate(0, 1)), ("0,0", Rate(0, 1)), ("00,0", Rate(0, 1))],
)
def test_a_node_of_no_bytes_lets_nothing_pass(text: str, rate: Rate) -> None:
    """xl writes the first for `rate=100b/s`; Linux's backend lets nothing pass for any of them."""
    assert parse_node(text) == rate
    assert str(rate) == "0b/s"


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**64 - 1))
def test_a_node_comes_back(size: int, interval: int) -> None:
    assert parse_node(f"{size},{interval}") == Rate(size, interval)
    assert str(Rate(size, interval)).endswith("b/s")
