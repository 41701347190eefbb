# SPDX-License-Identifier: Apache-2.0
"""When, and of what, a table of figures was made."""

from dataclasses import dataclass
from datetime import UTC, datetime

from netback.lab.bench.results import commit
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


async def made(lab: Lab) -> Made:
    """Of a running lab."""
    xen = await lab.dom0("xl info xen_version")
    linux = await lab.dom0("uname -r")
    return Made(datetime.now(UTC).date().isoformat(), commit(), f"Xen {xen.strip()}", linux.strip())
