# SPDX-License-Identifier: Apache-2.0
"""The table of advisories is complete: a row for each, and every test that it names is one that runs."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.advisories import ADVISORIES, Advisory, render_document

ROOT = Path(__file__).parents[1]
NUMBERS = (
    39, 90, 115, 155, 157, 175, 178, 180, 197, 206, 216, 270, 300, 326, 331, 332, 349, 350, 354, 361,
    362, 363, 365, 367, 371, 374, 376, 391, 392, 396, 403, 405, 414, 415, 416, 417, 418, 419, 420, 421,
    423, 424, 432, 441, 448, 465,
)  # fmt: skip
"""Every advisory that concerns backends, frontends, event channels or the store."""
WITHOUT_A_NUMBER = 1
"""Fixes that never became an advisory."""


@cache
def names_in(path: Path) -> set[str]:
    """The names of a module's tests, with their class before them where they have one."""
    found = set[str]()
    for node in ast.parse(path.read_text()).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        functions = [one for one in inner if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
        found |= {prefix + one.name for one in functions if one.name.startswith("test_")}
    return found


def test_the_page_is_made_from_the_table() -> None:
    assert (ROOT / "docs" / "advisories.md").read_text() == render_document(), "make docs"


def test_every_advisory_has_one_row() -> None:
    numbers = [row.number for row in ADVISORIES]
    assert [int(number) for number in numbers if number != "none"] == [*NUMBERS]
    assert numbers.count("none") == WITHOUT_A_NUMBER


@pytest.mark.parametrize("row", ADVISORIES, ids=lambda row: f"XSA-{row.number}")
def test_a_row_is_whole(row: Advisory) -> None:
    assert re.fullmatch(r"[0-9]+|none", row.number)
    assert re.fullmatch(r"none|[0-9]{4}-[0-9]{4,}((, | to |, [0-9]{4})-[0-9]{4,})*", row.cves)
    assert row.flaw
    assert row.rule
    assert row.tests


@pytest.mark.parametrize("name", sorted({name for row in ADVISORIES for name in row.tests}))
def test_the_test_is_there(name: str) -> None:
    path, _, test = name.partition("::")
    assert test in names_in(ROOT / path)


def test_every_advisory_that_a_hostile_test_names_names_it_back() -> None:
    """The docstrings in tests/hostile say which advisory they are about: the table agrees."""
    table = {row.number: row.tests for row in ADVISORIES}
    for path in sorted((ROOT / "tests" / "hostile").glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                subject = (ast.get_docstring(node) or "").partition(":")[0]
                for number in re.findall(r"-([0-9]+)", subject) if subject.startswith("XSA-") else ():
                    name = f"{path.relative_to(ROOT)}::{node.name}"
                    assert name in table[number], f"XSA-{number} does not name {name}"
