# SPDX-License-Identifier: Apache-2.0
"""Linux's netfront is judged by every rule over every backend that netback plays in dom0 (`netback lab conform`).

It breaks no rule that fails. The recording stays in the lab's directory as conform.runs; conform.made says of what.
"""

from netback.conform.report import together
from netback.conform.rule import Outcome
from netback.conform.rules import RULES
from netback.lab.conform import judge, made_of, observe_linux
from netback.lab.host import Lab

BACKEND = "none"


async def run(lab: Lab) -> str:
    (lab.machine.directory / "conform.made").write_text(await made_of(lab))
    rows = together(RULES.rows, judge(await observe_linux(lab, (), lambda _line: None)))
    by = {outcome: [row for row in rows if row.outcome is outcome] for outcome in Outcome}
    failed = "; ".join(f"{row.rule.id}: {row.evidence}" for row in by[Outcome.FAIL])
    assert not failed, failed
    assert len(by[Outcome.PASS]) > 60, f"{len(by[Outcome.PASS])} rules had an occasion"
    warned = ", ".join(row.rule.id for row in by[Outcome.WARN]) or "none"
    return f"({len(by[Outcome.PASS])} rules hold; warnings: {warned})"
