# SPDX-License-Identifier: Apache-2.0
"""`netback doctor`: the checks' findings as lines or as JSON."""

import json
from dataclasses import asdict

from netback.cli.place import Place
from netback.daemon.doctor import Machine, Verdict, examine


def show_checkup(place: Place, *, as_json: bool) -> bool:
    """Print what was found: whether nothing failed."""
    findings = examine(Machine(place.directory))
    if as_json:
        print(
            json.dumps([{"check": name, **asdict(finding)} for name, finding in findings.items()], indent=2)
        )
    else:
        for name, finding in findings.items():
            print(f"{finding.verdict:<5} {name:<10} {finding.found}")
            if finding.advice:
                print(f"{'':<16} -> {finding.advice}")
    return all(finding.verdict is not Verdict.FAIL for finding in findings.values())
