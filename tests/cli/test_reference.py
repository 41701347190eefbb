# SPDX-License-Identifier: Apache-2.0
"""docs/reference.md is made from the code: each table has everything, in its words."""

from __future__ import annotations

from pathlib import Path

from netback.cli.app import _COMMANDS
from netback.cli.document import render_document
from netback.daemon.config import NO_KEYS, Config, DeviceRule
from netback.errors import EXIT_MEANINGS, Exit

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"


def cells(title: str) -> list[list[str]]:
    """A section's table, without its head."""
    section = PAGE.read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_the_page_is_made_from_the_code() -> None:
    assert PAGE.read_text() == render_document(), "make docs"


def test_every_exit_code_has_a_meaning() -> None:
    assert {*EXIT_MEANINGS} == {*Exit}
    assert [row[0] for row in cells("Exit codes")] == [str(int(code)) for code in Exit]


def test_every_key_and_command_has_a_meaning() -> None:
    assert {row[0].split()[1].strip("`") for row in cells("Commands")} == {*_COMMANDS}
    for title, struct in (("Configuration", Config), ("Rules", DeviceRule)):
        rows = {row[0].strip("`"): row[-1] for row in cells(title)}
        assert {*rows} == {*struct.__struct_fields__} - NO_KEYS - {"device"}
        assert all(rows.values())
