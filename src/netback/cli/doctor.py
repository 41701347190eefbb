# SPDX-License-Identifier: Apache-2.0
"""`netback doctor`: prints the checks' findings as lines or as JSON."""

import json as codec
from dataclasses import asdict
from pathlib import Path

import click

from netback.cli import options
from netback.cli.target import PlatformName, Target


@click.command
@options.directory
@options.json
def doctor(directory: Path | None, json: bool) -> None:
    """Check what a backend needs from a Xen domain and print what to do, with a line for each device of the running
    backend. Changes nothing; exits with 1 if a check fails.
    """
    from netback.daemon.doctor import Verdict, examine
    from netback.daemon.machine import Machine

    findings = examine(Machine(Target.choose(PlatformName.XEN, directory).directory))
    if json:
        rows = [{"check": name, **asdict(finding)} for name, finding in findings.items()]
        click.echo(codec.dumps(rows, indent=2))
    else:
        for name, finding in findings.items():
            click.echo(f"{finding.verdict:<5} {name:<10} {finding.found}")
            if finding.advice:
                click.echo(f"{'':<16} -> {finding.advice}")
    if any(finding.verdict is Verdict.FAIL for finding in findings.values()):
        raise SystemExit(1)
