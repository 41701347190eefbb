# SPDX-License-Identifier: Apache-2.0
"""Every rule holds for an honest frontend, and fails for the one of deeds.py that breaks just it."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from netback.conform import backend_rules, document
from netback.conform.backend import Limits
from netback.conform.observation import Observation
from netback.conform.profiles import PROFILES, find_profile
from netback.conform.rule import Outcome, Verdict
from netback.conform.rules import RULES
from netback.conform.session import Setting, observe
from netback.conform.view import View
from netback.frontend import FrontConfig
from tests.conform.deeds import DEEDS
from tests.conform.scripted import Deed, living
from tests.vif.guest import SECONDS

PATIENT = Limits(join=10, answer=10, settle=2, event=0.1, end=5)

PROCESS = {"domain.joins", "process.sound", "process.ends"}
"""Rules about the command itself: test_process.py."""


def bring(deed: Deed, directory: Path) -> AbstractAsyncContextManager[asyncio.Event]:
    return living(directory, deed)


async def run(deed: Deed) -> Observation:
    profile = find_profile(deed.profile)
    forms = profile.forms if deed.forms is None else deed.forms
    offer = {**profile.offer, **deed.offer}
    async with asyncio.timeout(SECONDS):
        return await observe(
            replace(profile, forms=forms, offer=offer),
            Setting(limits=replace(PATIENT, answer=deed.answer, event=deed.event)),
            partial(bring, deed),
        )


def broken(verdicts: list[Verdict]) -> dict[str, str]:
    return {
        verdict.rule: f"{verdict.outcome.value}: {verdict.evidence}"
        for verdict in verdicts
        if verdict.outcome in (Outcome.FAIL, Outcome.WARN)
    }


@pytest.mark.parametrize("profile", [profile.name for profile in PROFILES])
@pytest.mark.parametrize("split", [False, True])
async def test_an_honest_frontend_breaks_no_rule(profile: str, split: bool) -> None:
    split = split and find_profile(profile).offers("feature-split-event-channels")
    answer = 10.0 if find_profile(profile).offers("feature-rx-copy") else 2.0
    seen = await run(Deed(profile=profile, config=FrontConfig(split=split), answer=answer))
    assert broken(RULES.judge(View(seen))) == {}


@pytest.mark.parametrize("rule", DEEDS)
async def test_a_frontend_that_breaks_one_rule_fails_it(rule: str) -> None:
    deed = DEEDS[rule]
    found = broken(RULES.judge(View(await run(deed))))
    assert {*found} == {rule} | deed.also, found


def test_every_rule_has_a_frontend_that_breaks_it() -> None:
    assert {*DEEDS} | PROCESS == {row.id for row in RULES.rows}
    assert not {*DEEDS} & PROCESS


def test_the_numbers_in_the_texts_are_those_of_the_tables() -> None:
    """And docs/conform.md is made from them."""
    root = Path(__file__).parents[2]
    assert (root / "docs" / "conform.md").read_text() == document.render()
    for page in ("README.md", "CHANGELOG.md"):
        assert f"{len(RULES.rows)} rules" in (root / page).read_text()
    assert f"a backend by {len(backend_rules.RULES.rows)};" in " ".join(
        (root / "CHANGELOG.md").read_text().split()
    )


def test_every_rule_says_what_must_hold_and_where_that_is_written() -> None:
    ids = [row.id for row in RULES.rows]
    assert len(ids) == len(set(ids)) >= 60
    for row in RULES.rows:
        assert row.text.endswith(".")
        assert row.source
        assert any(row.when(profile) for profile in PROFILES), f"no profile gives {row.id} an occasion"
