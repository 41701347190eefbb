# SPDX-License-Identifier: Apache-2.0
"""Each counter has one meaning, and what has one is counted."""

import re
from pathlib import Path

import pytest

from netback.dataplane.counters import MEANINGS, render_document
from netback.dataplane.link import COUNTERS

ROOT = Path(__file__).parents[2]
PLANE = ROOT / "src/netback/dataplane"
WORKER = {"events", "events_empty"}
"""Counted by the worker, for both ends."""


def test_the_document_is_of_today() -> None:
    assert (ROOT / "docs/statistics.md").read_text() == render_document(), "make docs"


def test_names_in_the_order_of_the_enum() -> None:
    declared = re.search(r"counters\.py has the names.*\n((?:    .*\n)+)", (PLANE / "link.pxd").read_text())
    assert declared is not None
    enum = [name.strip().lower() for name in declared[1].replace("\n", " ").split(",")]
    assert tuple(enum) == (*COUNTERS, "counters_end")


@pytest.mark.parametrize("end", ["back", "front"])
def test_a_counter_with_a_meaning_is_counted(end: str) -> None:
    """And one that is counted has a meaning."""
    paths = [*(PLANE / end).glob("*.pyx"), *([PLANE / "link.pxd"] if end == "back" else [])]
    text = "".join(path.read_text() for path in paths)
    counted = {name.lower() for name in re.findall(r"counters\[([A-Z_]+)\] \+=", text)}
    meant = {
        name
        for name, means in MEANINGS.items()
        if getattr(means, f"{end}end" if end == "front" else "backend")
    }
    assert meant - WORKER == counted
