# SPDX-License-Identifier: Apache-2.0
"""Verdicts for readers: a text of 80 columns, JSON, JUnit's XML and TAP. Pure."""

import textwrap
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from netback.conform.rule import Outcome, Rule, Verdict
from netback.errors import printable

WIDTH = 80
_ORDER = (Outcome.FAIL, Outcome.WARN, Outcome.PASS, Outcome.NOT_APPLICABLE)
_UNPRINTABLE_XML = dict.fromkeys([*range(9), 11, 12, *range(14, 32), 0xFFFE, 0xFFFF], "?")


class Judged(NamedTuple):
    """A run's verdicts."""

    profile: str
    verdicts: list[Verdict]


class Together(NamedTuple):
    """A rule's verdict over all runs: the worst one, with the profiles that have it."""

    rule: Rule[Any]
    outcome: Outcome
    profiles: list[str]
    evidence: str


def together(rules: Sequence[Rule[Any]], runs: Sequence[Judged]) -> list[Together]:
    """Each rule's worst verdict, in the table's order."""
    found = []
    for number, rule in enumerate(rules):
        mine = [(run.profile, run.verdicts[number]) for run in runs]
        worst = min(
            (verdict.outcome for _, verdict in mine), key=_ORDER.index, default=Outcome.NOT_APPLICABLE
        )
        having = [(profile, verdict) for profile, verdict in mine if verdict.outcome is worst]
        evidence = having[0][1].evidence if having else ""
        found.append(Together(rule, worst, [profile for profile, _ in having], evidence))
    return found


def holds(runs: Iterable[Judged]) -> bool:
    """Whether no rule fails. Warnings do not count."""
    return not any(verdict.outcome is Outcome.FAIL for run in runs for verdict in run.verdicts)


def render(subject: str, rules: Sequence[Rule[Any]], runs: Sequence[Judged], *, verbose: bool = False) -> str:
    """The report as text: failures and warnings with their evidence, a line for each run, the sums."""
    rows = together(rules, runs)
    lines = [*_wrap(subject, ""), ""]
    shown = (Outcome.FAIL, Outcome.WARN, Outcome.PASS) if verbose else (Outcome.FAIL, Outcome.WARN)
    for outcome in shown:
        for row in rows:
            if row.outcome is outcome:
                lines += _row(row, len(row.profiles) == len(runs))
    if lines[-1]:
        lines.append("")
    width = max((len(run.profile) for run in runs), default=0)
    for run in runs:
        lines.append(f"{run.profile:{width}}  {_sums(verdict.outcome for verdict in run.verdicts)}")
    lines.append(f"{'all':{width}}  {_sums(row.outcome for row in rows)}")
    return "\n".join(lines)


def _row(row: Together, every: bool) -> Iterator[str]:
    where = "every run" if every else ", ".join(row.profiles)
    yield from _wrap(f"{row.outcome.value:5}{row.rule.id}  ({where})", " " * 5)
    if row.outcome is not Outcome.PASS:
        yield from _wrap(row.rule.text, " " * 5, first=" " * 5)
        yield from _wrap(f"source: {row.rule.source}", " " * 7, first=" " * 5)
    yield from _wrap(f"seen: {row.evidence}", " " * 7, first=" " * 5)


def _wrap(text: str, indent: str, first: str = "") -> list[str]:
    return textwrap.wrap(printable(text), WIDTH, initial_indent=first, subsequent_indent=indent) or [""]


def _sums(outcomes: Iterable[Outcome]) -> str:
    counts = Counter(outcomes)
    names = {
        Outcome.PASS: "hold",
        Outcome.FAIL: "fail",
        Outcome.WARN: "warn",
        Outcome.NOT_APPLICABLE: "not applicable",
    }
    return ", ".join(f"{counts[outcome]} {name}" for outcome, name in names.items())


def as_data(subject: str, rules: Sequence[Rule[Any]], runs: Sequence[Judged]) -> Mapping[str, object]:
    """The report as plain values, for JSON."""
    texts = {row.id: {"text": row.text, "source": row.source, "level": row.level.value} for row in rules}
    return {
        "subject": subject,
        "holds": holds(runs),
        "rules": texts,
        "runs": [
            {
                "profile": run.profile,
                "verdicts": [
                    {
                        "rule": verdict.rule,
                        "verdict": verdict.outcome.value,
                        "evidence": verdict.evidence,
                        "occasions": verdict.occasions,
                        "broken": verdict.broken,
                    }
                    for verdict in run.verdicts
                ],
            }
            for run in runs
        ],
    }


def as_junit(subject: str, rules: Sequence[Rule[Any]], runs: Sequence[Judged]) -> str:
    """The report as JUnit's XML: a suite for each run, a case for each rule. A warning is a case's output."""
    texts = {row.id: row for row in rules}
    root = ET.Element("testsuites", name=_xml(f"netback conform: {subject}"))
    for run in runs:
        counts = Counter(verdict.outcome for verdict in run.verdicts)
        suite = ET.SubElement(
            root,
            "testsuite",
            name=run.profile,
            tests=str(len(run.verdicts)),
            failures=str(counts[Outcome.FAIL]),
            errors="0",
            skipped=str(counts[Outcome.NOT_APPLICABLE]),
        )
        for verdict in run.verdicts:
            case = ET.SubElement(
                suite, "testcase", classname=f"netback.conform.{run.profile}", name=verdict.rule
            )
            text = f"{texts[verdict.rule].text} ({texts[verdict.rule].source})"
            if verdict.outcome is Outcome.FAIL:
                ET.SubElement(case, "failure", message=_xml(verdict.evidence)).text = _xml(text)
            elif verdict.outcome is Outcome.WARN:
                ET.SubElement(case, "system-out").text = _xml(f"warning: {verdict.evidence}\n{text}")
            elif verdict.outcome is Outcome.NOT_APPLICABLE:
                ET.SubElement(case, "skipped", message="not applicable")
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _xml(text: str) -> str:
    return printable(text).translate(_UNPRINTABLE_XML)


def as_tap(rules: Sequence[Rule[Any]], runs: Sequence[Judged]) -> str:
    """The report as TAP 13. A warning is `not ok` with a TODO, which does not count; what was seen is a comment."""
    lines = ["TAP version 13", f"1..{len(rules) * len(runs)}"]
    number = 0
    for run in runs:
        for verdict in run.verdicts:
            number += 1
            word = "not ok" if verdict.broken else "ok"
            mark = {Outcome.WARN: " # TODO warning", Outcome.NOT_APPLICABLE: " # SKIP not applicable"}
            lines.append(f"{word} {number} - {run.profile}: {verdict.rule}{mark.get(verdict.outcome, '')}")
            if verdict.broken:
                lines.append(f"# {printable(verdict.evidence)}")
    return "\n".join(lines) + "\n"
