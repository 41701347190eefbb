# SPDX-License-Identifier: Apache-2.0
"""The matrix of frontends: each profile runs against the backend, and docs/frontends.md shows what came of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from netback.abi.netif_keys import Key
from netback.frontend.profiles import PROFILES, Profile
from tests.frontend.matrix import row, run

PAGE = Path(__file__).parent.parent.parent / "docs" / "frontends.md"


@pytest.mark.parametrize("profile", PROFILES, ids=[profile.word for profile in PROFILES])
async def test_a_frontend_gets_what_the_page_says(tmp_path: Path, profile: Profile) -> None:
    """It connects, passes frames both ways, closes as it does and comes back; `make docs` renews the page."""
    outcome = await run(profile, tmp_path)
    assert outcome.keys == profile.handshake.keys
    assert outcome.posted == profile.config.rx_slots
    lines = PAGE.read_text().splitlines()
    for line in row(profile, outcome):
        assert line in lines


def test_the_page_has_no_other_frontends() -> None:
    tables, own, _ = PAGE.read_text().partition("## netback's own frontend")
    assert own
    named = re.findall(r"^\| ([A-Z\w][\w. -]*?) \|", tables, re.MULTILINE)
    assert [name for name in named if name != "frontend"] == [profile.name for profile in PROFILES] * 3


def test_profiles_name_each_key_once() -> None:
    names = {str(key) for key in Key} | {"feature-smart-poll", "vifname"}
    for profile in PROFILES:
        keys = profile.handshake.keys
        assert len(set(keys)) == len(keys)
        assert set(keys) <= names
        assert set(profile.handshake.removes) <= set(keys)
