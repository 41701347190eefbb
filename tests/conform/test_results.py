# SPDX-License-Identifier: Apache-2.0
"""docs/conform-results.md is made from the verdicts in docs/conform-results.json, and explains each that is bad."""

from __future__ import annotations

import asyncio
from pathlib import Path

from netback.conform import backend_rules, rules
from netback.conform.recording import save
from netback.conform.rule import Outcome
from tests.conform.results import ON_XEN, PAGE, WHY, lab, read, render_document
from tests.conform.test_backend_rules import ask
from tests.vif.guest import SECONDS


def test_the_page_is_made_from_the_verdicts() -> None:
    assert PAGE.read_text() == render_document(), "make docs"


def test_the_verdicts_are_of_the_rules_that_there_are() -> None:
    tables = {"frontend": rules.RULES.rows, "backend": backend_rules.RULES.rows}
    for end in read():
        assert {*end.verdicts} == {row.id for row in tables[end.side]}, f"judge {end.title} again"


def test_what_ran_on_xen_is_explained_by_its_source() -> None:
    broken = {(end.title, row.rule) for end in read() for row in end.broken if end.title in ON_XEN}
    assert broken == {*WHY}
    assert not any(title == "netback" for title, _ in WHY)


def test_a_recording_of_the_lab_is_read(tmp_path: Path) -> None:
    seen = asyncio.run(asyncio.wait_for(ask(tmp_path / "xen"), SECONDS))
    (tmp_path / "dom0").mkdir()
    save(tmp_path / "dom0" / "netback.runs", "backend", [seen])
    (tmp_path / "dom0" / "netback.made").write_text("today, of this\n")
    (end,) = lab(tmp_path)
    assert (end.side, end.title, end.made) == ("backend", "netback", "today, of this")
    assert end.having(Outcome.PASS) == [row.id for row in backend_rules.RULES.rows]
    assert end.broken == []
