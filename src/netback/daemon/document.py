# SPDX-License-Identifier: Apache-2.0
"""Makes docs/explain.md from the rules: `python -m netback.daemon.document > docs/explain.md`."""

from collections.abc import Iterable
from typing import TypeVar

from netback.daemon.rules import HOST_RULES, RULES, Rule

F = TypeVar("F")


def render_document() -> str:
    """docs/explain.md."""
    return "\n".join(
        [
            "<!-- SPDX-License-Identifier: Apache-2.0 -->",
            "# What `netback explain` knows",
            "",
            "Made from `src/netback/daemon/rules.py`: `python -m netback.daemon.document > docs/explain.md`.",
            "`tests/daemon/test_explain.py` provokes each rule, and shows that none fires while a frontend works.",
            "",
            "`netback explain DEVICE` says why a device is not connected, or slow, or loses frames. It takes what",
            "`show`, `stats`, `rings` and the links say, twice a second apart, and applies every rule. Each finding",
            "names its rule, the values from which it follows (in braces here), and what to do; the exit code is 1 if",
            "there are any. Without a backend it explains from the store and the links alone.",
            "",
            "An *error*: frames do not pass, or some never will. A *warning*: frames are lost, or may be. A *note*:",
            "they pass, more slowly or fewer than could be. Counters count since the backend started, so what ended",
            "stays a finding; `NAME now` is what one grew by between the two readings, 0 if nothing happened.",
            "",
            "## The backend's domain",
            "",
            *_table(HOST_RULES),
            "",
            "## A device",
            "",
            *_table(RULES),
            "",
        ]
    )


def _table(rules: Iterable[Rule[F]]) -> list[str]:
    rows = (
        f"| `{rule.id}` | {rule.severity} | {rule.looks_at} | {rule.finding} | {rule.fix} |" for rule in rules
    )
    return ["| rule | severity | looks at | finding | what to do |", "|---|---|---|---|---|", *rows]


if __name__ == "__main__":
    print(render_document(), end="")
