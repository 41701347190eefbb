# SPDX-License-Identifier: Apache-2.0
"""When, and of what, a table of figures was made."""

import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import netback
from netback.lab.host import Lab


@dataclass(frozen=True, slots=True)
class Made:
    """A line under a table: the day, netback's commit, and what it ran on."""

    date: str
    commit: str
    """A commit of git, with "-dirty" if files differ from it; netback's version outside a repository."""
    xen: str
    linux: str

    def __str__(self) -> str:
        return f"{self.date}, netback {self.commit}, {self.xen}, Linux {self.linux}"


def commit() -> str:
    """The commit that this netback runs from, else its version."""
    where = Path(netback.__file__).parent
    command = ["git", "-C", str(where), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return netback.__version__
    return done.stdout.strip() if done.returncode == 0 else netback.__version__


async def made(lab: Lab) -> Made:
    """Of a running lab."""
    xen = await lab.dom0("xl info xen_version")
    linux = await lab.dom0("uname -r")
    return Made(datetime.now(UTC).date().isoformat(), commit(), f"Xen {xen.strip()}", linux.strip())
