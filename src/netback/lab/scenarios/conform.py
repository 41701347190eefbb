# SPDX-License-Identifier: Apache-2.0
"""netback's netfront judges Linux's xen-netback, QEMU's qnic and netback, rule by rule (`netback conform --backend`).

Linux's netfront is kept out of the guest. Each backend serves it in turn; netback breaks no rule. The recordings stay
in the lab's directory, and the remark says what the others break.
"""

import base64

from netback.conform import recording
from netback.conform.answers import BackendSeen
from netback.conform.backend_rules import RULES
from netback.conform.rule import Outcome
from netback.lab.bench.backends import BACKENDS, NETBACK, LabBackend
from netback.lab.host import Guest, Lab
from netback.lab.machine import LabError

BACKEND = "none"
ADDRESS = "10.0.0.2"
"""The guest's; dom0 has the address before it."""
SECONDS = 1800.0
_ASK = (
    "setsid netback conform --backend --platform xen"
    f" --ip {ADDRESS} --limit 30 --record /run/runs --json >/run/verdicts 2>/run/conform & echo $! >/run/conform.pid"
)
_ENDED = "while kill -0 $(cat /run/conform.pid) 2>/dev/null; do sleep 0.2; done"


async def run(lab: Lab) -> str:
    guest = await lab.create("g1", vif=(), python=True, more="netback.nofront")
    remarks = []
    for backend in BACKENDS:
        seen = await ask(guest, backend)
        bad = [verdict for verdict in RULES.judge(seen) if verdict.outcome in (Outcome.FAIL, Outcome.WARN)]
        shown = "; ".join(f"{verdict.rule}: {verdict.evidence}" for verdict in bad)
        assert backend is not NETBACK or not bad, shown
        remarks.append(f"{backend.name} breaks {', '.join(verdict.rule for verdict in bad) or 'none'}")
    return f"({'; '.join(remarks)})"


async def ask(guest: Guest, backend: LabBackend) -> BackendSeen:
    """One backend's answers; its recording goes to the lab's directory as NAME.runs."""
    await guest(_ASK)
    try:
        async with backend.serving(guest, link=False):
            await guest(_ENDED, seconds=SECONDS)
    except LabError as error:
        output = await guest("cat /run/conform", check=False)
        raise LabError(f"{backend.name}: {error}\nthe frontend printed:\n{output}") from error
    directory = guest.lab.machine.directory
    encoded = await guest("base64 /run/runs")
    path = directory / f"{backend.name}.runs"
    path.write_bytes(base64.b64decode(encoded))
    (seen,) = recording.load(path, "backend", BackendSeen)
    return seen
