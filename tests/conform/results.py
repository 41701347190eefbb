# SPDX-License-Identifier: Apache-2.0
"""docs/conform-results.md: its tables are made from docs/conform-results.json, which has the verdicts of known ends.

python -m tests.conform.results                # the page again (make docs)
python -m tests.conform.results emulated       # judges those that run on emulated Xen: ten minutes, as root
python -m tests.conform.results lab DIR        # takes the recordings of
                                               # `netback lab test conform conform-frontend --out DIR`
python -m tests.conform.results kernel DIR     # and that of `netback lab conform --kernel KERNEL --out DIR`
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from netback.conform import backend_rules, rules
from netback.conform.answers import BackendSeen
from netback.conform.backend import Limits
from netback.conform.observation import Observation
from netback.conform.profiles import PROFILES
from netback.conform.recording import load
from netback.conform.report import Judged, together
from netback.conform.rule import Outcome, Rules
from netback.conform.session import Setting, observe
from netback.conform.view import View
from netback.frontend.profiles import PROFILES as FRONTENDS
from netback.lab.bench.results import commit
from netback.platforms.emulated import CFLAGS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "conform-results.md"
DATA = ROOT / "docs" / "conform-results.json"
REFLECT = f"{sys.executable} {ROOT}/examples/reflecting_guest.py"
STACK = (
    'unshare -rn sh -c \'ip link set lo up; netback guest --net tap:eth0 {options} & trap "kill $!; wait" TERM; '
    "while ! ip addr add 192.0.2.2/24 dev eth0 2>/dev/null; do sleep 0.05; done; "
    "ip -6 addr add 2001:db8::2/64 dev eth0 nodad; ip link set eth0 up; wait'"
)
LAB_BACKENDS = {"kernel": "Linux's xen-netback", "qnic": "QEMU's qnic", "netback": "netback"}
"""By the name of the recording."""
LAB_FRONTEND = "Linux 6.12's netfront"
UNIKERNEL = "Unikraft 0.16.3's netfront"
"""The kernel from outside that the page has."""
ON_XEN = (LAB_FRONTEND, UNIKERNEL, *LAB_BACKENDS.values())

Side = Literal["frontend", "backend"]


class Broken(msgspec.Struct, frozen=True, omit_defaults=True):
    """A rule that does not hold."""

    rule: str
    evidence: str
    profiles: tuple[str, ...] = ()
    """The runs in which it does not, unless in all."""


class End(msgspec.Struct, frozen=True):
    """A known end, and what it does with every rule that there was when it was judged."""

    side: Side
    title: str
    made: str
    """When, of which netback, on what."""
    verdicts: dict[str, Outcome]
    """The worst of all runs, by rule."""
    broken: list[Broken]

    def having(self, outcome: Outcome) -> list[str]:
        """The rules with this verdict."""
        return [rule for rule, found in self.verdicts.items() if found is outcome]


WHY: dict[tuple[str, str], str] = {
    (
        LAB_FRONTEND,
        "tx.waits",
    ): "`xennet_connect` registers the link and turns its carrier on, then `netback_changed` writes"
    " Connected: what the guest sends at once, such as IPv6's first messages, is in the ring before",
    (
        LAB_FRONTEND,
        "rx.padding",
    ): "`xennet_alloc_rx_buffers` writes id and gref of a slot; what the last response or extra"
    " info had in between stays in it",
    (
        UNIKERNEL,
        "domain.stays",
    ): "`netfront_recv` asserts that its interrupt is off (netfront.c:389): a frame that comes"
    " while it is being enabled ends the guest now and then",
    (UNIKERNEL, "rx.consumes"): "the guest had ended: `domain.stays`",
    (
        UNIKERNEL,
        "close.follows",
    ): "`netfront_xb_wait_be_connect` looks at the backend's state until it is Connected;"
    " nothing does after that",
    (UNIKERNEL, "keys.needs-rx-copy"): "of the backend's features `multi-queue-max-queues` and"
    " `feature-split-event-channels` alone are read",
    (
        UNIKERNEL,
        "keys.queues-offered",
    ): "`netfront_xb_front_init` writes `multi-queue-num-queues` in any case",
    (UNIKERNEL, "tx.granted-readonly"): "`netfront_xmit` grants with `readonly` 0",
    (
        UNIKERNEL,
        "rx.padding",
    ): "`netfront_rxq_enqueue` writes id and gref of a slot; what the last response had in"
    " between stays in it",
    ("Linux's xen-netback", "fatal.closes"): "`xenvif_tx_build_gops` calls `xenvif_fatal_tx_err`, which sets"
    " `vif->disabled`: the ring is not served any more, the link's carrier goes, and the state stays",
    ("QEMU's qnic", "fatal.closes"): "`net_tx_packets` compares its consumer with its own `rsp_prod`"
    " (RING_REQUEST_CONS_OVERFLOW) and answers each request before the next: it serves 1000 slots, old ones again",
}
"""Where an end's source shows what it breaks: by its title and the rule. Only what ran as it is has an entry."""


# ---- runs


def end_of(side: Side, title: str, made: str, table: Rules[Any], runs: Sequence[Judged]) -> End:
    """The verdicts of all runs together; evidence of what does not hold."""
    rows = together(table.rows, runs)
    broken = [
        Broken(row.rule.id, row.evidence, tuple(row.profiles) if len(row.profiles) < len(runs) else ())
        for row in rows
        if row.outcome in (Outcome.FAIL, Outcome.WARN)
    ]
    return End(side, title, made, {row.rule.id: row.outcome for row in rows}, broken)


def frontend(title: str, made: str, runs: Sequence[Observation]) -> End:
    judged = [Judged(run.profile, rules.RULES.judge(View(run))) for run in runs]
    return end_of("frontend", title, made, rules.RULES, judged)


def backend(title: str, made: str, seen: BackendSeen) -> End:
    judged = [Judged(seen.platform, backend_rules.RULES.judge(seen))]
    return end_of("backend", title, made, backend_rules.RULES, judged)


def emulated() -> Iterator[End]:
    """The frontends that run here."""
    made = f"{datetime.now(UTC).date().isoformat()}, netback {commit()}, emulated Xen"
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as name:
        for title, command in subjects(Path(name)).items():
            setting = Setting(command=command, limits=Limits(join=60.0, answer=5.0, end=20.0))
            print(title, file=sys.stderr)
            yield frontend(title, made, [asyncio.run(observe(profile, setting)) for profile in PROFILES])


def subjects(scratch: Path) -> dict[str, str]:
    """Each frontend's title and command."""
    guest = scratch / "guest"
    source = str(ROOT / "examples/c/guest.c")
    subprocess.run(["cc", "-std=c11", "-O2", CFLAGS, "-o", str(guest), source], check=True)
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


def lab(directory: Path) -> Iterator[End]:
    """The ends that were recorded in a lab's directory, or in a host's below it, in the order of LAB_BACKENDS."""
    found = {path.stem: path for path in directory.rglob("*.runs")}
    for stem in sorted(found, key=[*LAB_BACKENDS, "conform"].index):
        path, made = found[stem], found[stem].with_suffix(".made").read_text().strip()
        if stem in LAB_BACKENDS:
            (seen,) = load(path, "backend", BackendSeen)
            yield backend(LAB_BACKENDS[stem], made, seen)
        else:
            yield frontend(LAB_FRONTEND, made, load(path, "frontend", Observation))


def kernel(directory: Path) -> End:
    """The unikernel that `netback lab conform --kernel` recorded."""
    made = (directory / "conform.made").read_text().strip()
    return frontend(UNIKERNEL, made, load(directory / "conform.runs", "frontend", Observation))


# ---- the page


def read() -> list[End]:
    return msgspec.json.decode(DATA.read_bytes(), type=list[End])


def write(new: Sequence[End]) -> None:
    """Put ends into the file, each in place of an earlier one of its title, or behind the others."""
    ends = {end.title: end for end in read()} if DATA.exists() else {}
    ends |= {end.title: end for end in new}
    DATA.write_bytes(msgspec.json.format(msgspec.json.encode([*ends.values()]), indent=1) + b"\n")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def sums(ends: Sequence[End]) -> str:
    """A line for each end: how many rules hold, and the names of those that do not."""
    lines = ["| end | hold | n/a | warn | fail |", "|---|---|---|---|---|"]
    for end in ends:
        counts = f"{len(end.having(Outcome.PASS))} | {len(end.having(Outcome.NOT_APPLICABLE))}"
        names = [
            ", ".join(f"`{rule}`" for rule in end.having(outcome)) or "-"
            for outcome in (Outcome.WARN, Outcome.FAIL)
        ]
        lines.append(f"| {end.title} | {counts} | {names[0]} | {names[1]} |")
    lines += ["", *dict.fromkeys(f"Made {end.made}." for end in ends)]
    return "\n".join(lines)


def without_occasion(ends: Sequence[End]) -> str:
    """The rules that were not judged."""
    names = (", ".join(f"`{rule}`" for rule in end.having(Outcome.NOT_APPLICABLE)) for end in ends)
    return "\n".join(f"No run gave an occasion to {listed}." for listed in names)


def each_rule(ends: Sequence[End]) -> str:
    """A line for each rule, a column for each end."""
    lines = [f"| rule | {' | '.join(end.title for end in ends)} |", "|---" * (1 + len(ends)) + "|"]
    for rule in backend_rules.RULES.rows:
        cells = [end.verdicts[rule.id].value if rule.id in end.verdicts else "-" for end in ends]
        shown = [f"**{cell}**" if cell in ("fail", "warn") else cell for cell in cells]
        lines.append(f"| `{rule.id}` | {' | '.join(shown)} |")
    return "\n".join(lines)


def broken(ends: Sequence[End]) -> str:
    """What was seen of each rule that does not hold, and where its source shows the same."""
    lines = ["| end | rule | what was seen | in its source |", "|---|---|---|---|"]
    for end in ends:
        for row in end.broken:
            word = "fails" if end.verdicts[row.rule] is Outcome.FAIL else "warns"
            where = f" ({', '.join(row.profiles)})" if row.profiles else ""
            lines.append(
                f"| {end.title} | `{row.rule}` {word}{where} | {_cell(row.evidence)} | {WHY[end.title, row.rule]} |"
            )
    return "\n".join(lines)


def render_document() -> str:
    """The page with its tables as they should be."""
    ends = read()
    on_xen = [end for end in ends if end.title in ON_XEN]
    backends = [end for end in on_xen if end.side == "backend"]
    frontends = [end for end in on_xen if end.title == LAB_FRONTEND]
    unikernels = [end for end in on_xen if end.title == UNIKERNEL]
    tables = {
        "emulated": lambda: sums([end for end in ends if end not in on_xen]),
        "linux": lambda: f"{sums(frontends)}\n\n{without_occasion(frontends)}",
        "backends": lambda: f"{sums(backends)}\n\n{each_rule(backends)}",
        "broken": lambda: broken([end for end in on_xen if end not in unikernels]),
        "unikernel": lambda: f"{sums(unikernels)}\n\n{broken(unikernels)}",
    }
    return re.sub(
        r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)",
        lambda match: f"{match[1]}{tables[match[2]]()}\n{match[3]}",
        PAGE.read_text(),
        flags=re.DOTALL,
    )


def main(words: Sequence[str]) -> None:
    if words[:1] == ["emulated"]:
        for end in emulated():
            write([end])
    elif words[:1] == ["lab"]:
        write([*lab(Path(words[1]))])
    elif words[:1] == ["kernel"]:
        write([kernel(Path(words[1]))])
    PAGE.write_text(render_document())


if __name__ == "__main__":
    main(sys.argv[1:])
