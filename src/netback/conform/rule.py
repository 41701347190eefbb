# SPDX-License-Identifier: Apache-2.0
"""What a rule is, and what comes of it. Pure.

A rule looks at everything that it could be broken by: each such occasion holds or does not, with the values that were
seen. A rule without an occasion in a run does not apply to it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Generic, NamedTuple, TypeVar

from netback.conform.profiles import BackendProfile

V = TypeVar("V")


class Level(Enum):
    """How much a broken rule weighs."""

    MUST = "must"
    """The two ends do not work together, or only with some luck: the rule fails."""
    SHOULD = "should"
    """Known frontends do otherwise, and known backends cope: a warning."""


class Outcome(Enum):
    """A rule's verdict on one run."""

    PASS = "pass"
    FAIL = "fail"
    WARN = "warn"
    NOT_APPLICABLE = "n/a"


class Occasion(NamedTuple):
    """One occasion at which a rule held or not, and what was seen there."""

    holds: bool
    seen: str


Occasions = Iterator[tuple[bool, str]]


def always(_profile: BackendProfile) -> bool:
    """A rule that every profile can give occasions for."""
    return True


@dataclass(frozen=True, slots=True)
class Rule(Generic[V]):
    """A row: `text` says what must hold, `source` where that is written, `judge` finds its occasions in a view."""

    id: str
    text: str
    source: str
    level: Level
    when: Callable[[BackendProfile], bool]
    """Whether a backend of this profile gives occasions for it."""
    judge: Callable[[V], Iterable[tuple[bool, str]]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule says of one run, or of several together."""

    rule: str
    outcome: Outcome
    evidence: str
    occasions: int
    broken: int


MAX_EVIDENCE = 3
"""Broken occasions that a verdict shows."""


class Rules(Generic[V]):
    """A table of rules, in the order of their definitions."""

    def __init__(self) -> None:
        self.rows: list[Rule[V]] = []

    def rule(
        self,
        id: str,
        source: str,
        *,
        level: Level = Level.MUST,
        when: Callable[[BackendProfile], bool] = always,
    ) -> Callable[[Callable[[V], Occasions]], Callable[[V], Occasions]]:
        """Add a function to the table; its docstring is the rule's text."""

        def add(judge: Callable[[V], Occasions]) -> Callable[[V], Occasions]:
            text = " ".join((judge.__doc__ or "").split())
            self.rows.append(Rule(id, text, source, level, when, judge))
            return judge

        return add

    def judge(self, view: V) -> list[Verdict]:
        """Every rule's verdict, in the table's order."""
        return [judge_one(row, view) for row in self.rows]


def judge_one(row: Rule[V], view: V) -> Verdict:
    """A rule's verdict on a run."""
    occasions = [Occasion(*occasion) for occasion in row.judge(view)]
    if not occasions:
        return Verdict(row.id, Outcome.NOT_APPLICABLE, "", 0, 0)
    broken = [occasion.seen for occasion in occasions if not occasion.holds]
    if not broken:
        return Verdict(row.id, Outcome.PASS, occasions[0].seen, len(occasions), 0)
    shown = list(dict.fromkeys(broken))[:MAX_EVIDENCE]
    outcome = Outcome.FAIL if row.level is Level.MUST else Outcome.WARN
    return Verdict(row.id, outcome, "; ".join(shown), len(occasions), len(broken))
