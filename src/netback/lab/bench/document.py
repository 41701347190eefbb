# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/speed.md, made again from docs/speed.json: `make docs`. Pure but for the two files."""

import re
from pathlib import Path

from netback.lab.bench import estimate, tables
from netback.lab.bench.estimate import Machine
from netback.lab.bench.profile import COUNTS, Profile

_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def prices_table(machines: list[Machine]) -> str:
    """Every price with its source."""
    lines = []
    for machine in machines:
        lines += [f"**{machine.name}**", "", "| | ns | source |", "|---|---|---|"]
        for name, label in COUNTS.items():
            if name in machine.prices:
                price = machine.prices[name]
                unit = ", a KiB" if name.startswith("bytes_") else ""
                lines.append(f"| {label}{unit} | {price.ns:g} | {price.source} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def with_tables(text: str, result: Profile, machines: list[Machine]) -> str:
    """The document with each of its tables replaced by what `result` and `machines` give."""
    made = {
        "counts": tables.render(result),
        "estimates": estimate.render(result, machines),
        "prices": prices_table(machines),
    }
    return _BLOCK.sub(lambda match: f"{match[1]}{made[match[2]]}\n{match[3]}", text)


def render_document(directory: Path) -> str:
    """docs/speed.md with its tables as they should be."""
    result = estimate.read_profile(directory / "speed.json")
    return with_tables((directory / "speed.md").read_text(), result, estimate.read_prices(estimate.PRICES))


if __name__ == "__main__":
    docs = Path("docs")
    (docs / "speed.md").write_text(render_document(docs))
