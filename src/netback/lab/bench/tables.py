# SPDX-License-Identifier: Apache-2.0
"""The tables that `netback lab profile` prints. Pure."""

from collections.abc import Mapping, Sequence

from netback.lab.bench.profile import COUNTS, Account, Profile

_LEAST = 0.05
"""Calls that occur less often for each frame are not named."""
_COLUMNS = [name for name in COUNTS if name != "frames"]


def render(result: Profile) -> str:
    """Costs of calls, the counts of a frame, calls by name, and why something is missing or derived."""
    accounts = [one for one in result.accounts if not one.fault]
    lines = [f"{what}: {price:.3g} us" for what, price in result.call_costs.items()]
    lines += ["", *_counts(result.accounts), "", *_named(accounts), ""]
    lines += _notes(accounts)
    return "\n".join([*lines, f"Made by `netback lab profile --seconds {result.seconds}`: {result.made}."])


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def _counts(accounts: Sequence[Account]) -> list[str]:
    """A line for each row and backend. A star marks what was derived."""
    head = ["", "", "frames/s", "while counted", "bytes a frame", *(COUNTS[name] for name in _COLUMNS)]
    table = [head, ["---"] * len(head)]
    for one in accounts:
        if one.fault:
            table.append([one.row, one.backend, *["n/a"] * (len(head) - 3), one.fault])
            continue
        cells = [one.row, one.backend, f"{one.pace:.0f}", f"{one.counted_pace:.0f}"]
        cells.append(_number(one.bytes_to_guest + one.bytes_from_guest))
        for name in _COLUMNS:
            star = "*" if name in one.derived else ""
            cells.append(_number(one.counts[name]) + star if name in one.counts else "n/a")
        table.append(cells)
    return ["| " + " | ".join(cells) + " |" for cells in table]


def _named(accounts: Sequence[Account]) -> list[str]:
    """Processor time of the backend's threads, and calls by name."""
    lines = ["| | | us, user | system | system calls | hypercalls of dom0 |", "|---|---|---|---|---|---|"]
    return lines + [
        f"| {one.row} | {one.backend} | {one.user:.0f} | {one.system:.0f}"
        f" | {_often(one.calls)} | {_often(one.hypercalls)} |"
        for one in accounts
    ]


def _often(calls: Mapping[str, float]) -> str:
    often = sorted(calls.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count:.2g}" for name, count in often if count >= _LEAST) or "none"


def _notes(accounts: Sequence[Account]) -> list[str]:
    """Each reason once, with its backends."""
    reasons: dict[str, set[str]] = {}
    for one in accounts:
        for mark, why in (("n/a", one.missing), ("*", one.derived)):
            for name, reason in why.items():
                reasons.setdefault(f"{mark}, {COUNTS[name]}: {reason}", set()).add(one.backend)
    return [f"{text} ({', '.join(sorted(names))})." for text, names in sorted(reasons.items())]
