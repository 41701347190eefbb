# SPDX-License-Identifier: Apache-2.0
"""docs/conform-results.md, from runs of known frontends: `python -m tests.conform.results > docs/conform-results.md`.

It takes some ten minutes. Root or a user namespace is needed for the runs with Linux's TCP/IP stack.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from netback.conform.backend import Limits
from netback.conform.observation import Observation
from netback.conform.profiles import PROFILES
from netback.conform.report import Judged, together
from netback.conform.rule import Outcome
from netback.conform.rules import RULES
from netback.conform.session import Setting, observe
from netback.conform.view import View
from netback.frontend.profiles import PROFILES as FRONTENDS

ROOT = Path(__file__).parents[2]
REFLECT = f"{sys.executable} {ROOT}/examples/reflecting_guest.py"
STACK = (
    'unshare -rn sh -c \'ip link set lo up; netback guest --net tap:eth0 {options} & trap "kill $!; wait" TERM; '
    "while ! ip addr add 192.0.2.2/24 dev eth0 2>/dev/null; do sleep 0.05; done; "
    "ip -6 addr add 2001:db8::2/64 dev eth0 nodad; ip link set eth0 up; wait'"
)


def subjects(scratch: Path) -> dict[str, str]:
    """Each frontend's title and command."""
    guest = scratch / "guest"
    source = str(ROOT / "examples/c/guest.c")
    subprocess.run(["cc", "-std=c11", "-O2", f"-I{ROOT}/include", "-o", str(guest), source], check=True)
    reflected = {
        f"netback's netfront as {profile.name}": f"{REFLECT} {profile.word}"
        for profile in FRONTENDS
        if not profile.word.startswith("linux") or profile.word == "linux-6.12"
    }
    return {
        "`examples/c/guest.c`": f'{guest} "$(dirname "$XENSTORED_PATH")"',
        "`netback guest`, Linux's TCP/IP stack behind it": STACK.format(options=""),
        "`netback guest --queues 4 --hash --stage`, the same": STACK.format(
            options="--queues 4 --hash --stage"
        ),
        **reflected,
    }


def judge(command: str) -> list[Judged]:
    """All profiles."""
    setting = Setting(command=command, limits=Limits(answer=2.0))
    runs: list[Observation] = [asyncio.run(observe(profile, setting)) for profile in PROFILES]
    return [Judged(run.profile, RULES.judge(View(run))) for run in runs]


def main() -> None:
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    print("<!-- SPDX-License-Identifier: Apache-2.0 -->\n# Conformance of known ends\n")
    print(
        "Made by `python -m tests.conform.results` from runs of [`netback conform`](conform.md) on emulated Xen."
    )
    print("TX is what the guest sends. *n/a*: no run gave the rule an occasion.\n")
    print("## Frontends\n")
    print("| frontend | hold | n/a | warn | fail |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        for title, command in subjects(Path(name)).items():
            rows = together(RULES.rows, judge(command))
            by = {
                outcome: [f"`{row.rule.id}`" for row in rows if row.outcome is outcome] for outcome in Outcome
            }
            counts = f"{len(by[Outcome.PASS])} | {len(by[Outcome.NOT_APPLICABLE])}"
            words = [", ".join(by[outcome]) or "-" for outcome in (Outcome.WARN, Outcome.FAIL)]
            print(f"| {title} | {counts} | {words[0]} | {words[1]} |", flush=True)
    print(f"\n{(Path(__file__).parent / 'results.md').read_text().strip()}")


if __name__ == "__main__":
    main()
