# SPDX-License-Identifier: Apache-2.0
"""Verdicts as text, JSON, JUnit and TAP."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import msgspec
import pytest

from netback.conform.report import Judged, as_data, as_junit, as_tap, holds, render, together
from netback.conform.rule import Level, Outcome, Rules

TABLE: Rules[dict[str, bool]] = Rules()


@TABLE.rule("a.holds", "a.h")
def _(view: dict[str, bool]) -> Iterator[tuple[bool, str]]:
    """It holds."""
    yield True, "seen"


@TABLE.rule("b.fails", "b.h")
def _(view: dict[str, bool]) -> Iterator[tuple[bool, str]]:
    """It fails where the view says so, with a text that is far too long for one line of a terminal's width."""
    yield view["good"], "\x1b[31mred\x00 & <tag>" + " more" * 30


@TABLE.rule("c.warns", "c.h", level=Level.SHOULD)
def _(view: dict[str, bool]) -> Iterator[tuple[bool, str]]:
    """It warns."""
    yield view["good"], "odd"


@TABLE.rule("d.none", "d.h")
def _(view: dict[str, bool]) -> Iterator[tuple[bool, str]]:
    """It has no occasion."""
    yield from ()


RUNS = [Judged("one", TABLE.judge({"good": True})), Judged("two", TABLE.judge({"good": False}))]


def test_the_worst_verdict_counts() -> None:
    rows = {row.rule.id: (row.outcome, row.profiles) for row in together(TABLE.rows, RUNS)}
    assert rows == {
        "a.holds": (Outcome.PASS, ["one", "two"]),
        "b.fails": (Outcome.FAIL, ["two"]),
        "c.warns": (Outcome.WARN, ["two"]),
        "d.none": (Outcome.NOT_APPLICABLE, ["one", "two"]),
    }
    assert holds(RUNS[:1])
    assert not holds(RUNS)


@pytest.mark.parametrize("verbose", [False, True])
def test_the_text_fits_eighty_columns_and_controls_no_terminal(verbose: bool) -> None:
    text = render("the frontend 'x'", TABLE.rows, RUNS, verbose=verbose)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "\\x1b[31mred\\x00" in text
    assert ("a.holds" in text) == verbose
    assert "one  3 hold, 0 fail, 0 warn, 1 not applicable" in text
    assert "two  1 hold, 1 fail, 1 warn, 1 not applicable" in text


def test_junit_is_xml_with_a_suite_for_each_run() -> None:
    root = ET.fromstring(as_junit("the frontend \x00'x'", TABLE.rows, RUNS))
    suites = {suite.get("name"): suite for suite in root}
    assert [suites["two"].get(key) for key in ("tests", "failures", "skipped")] == ["4", "1", "1"]
    (failure,) = suites["two"].iter("failure")
    assert "<tag>" in str(failure.get("message"))
    assert len([*suites["one"].iter("failure")]) == 0


def test_tap_has_its_plan() -> None:
    lines = as_tap(TABLE.rows, RUNS).splitlines()
    assert lines[:2] == ["TAP version 13", "1..8"]
    numbered = [line for line in lines if line.startswith(("ok", "not ok"))]
    assert len(numbered) == 8
    assert numbered[5] == "not ok 6 - two: b.fails"
    assert numbered[6] == "not ok 7 - two: c.warns # TODO warning"
    assert numbered[3] == "ok 4 - one: d.none # SKIP not applicable"


def test_json_has_every_verdict() -> None:
    data = json.loads(msgspec.json.encode(as_data("x", TABLE.rows, RUNS)))
    assert data["holds"] is False
    assert data["runs"][1]["verdicts"][1]["verdict"] == "fail"
    assert data["rules"]["c.warns"] == {"text": "It warns.", "source": "c.h", "level": "should"}
